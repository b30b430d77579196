"""How much less noisy is the gradient with a baseline for every token (OTB)? One command.

python -m benchmarks.grouping.token_baseline [--prompts 48] [--group 8] @ recipes/code/config.toml [--KEY VALUE …]

Groups are sampled from the settings' model on its training prompts. For each group whose rewards differ, the gradient
Σ_i Σ_t A_it ∇ log π_it is computed under every baseline, and its squared length taken. All baselines leave the rollout
itself out, so the expected gradient is the same, and the mean squared length differs by the variance alone.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.grouping.gradients import Projection
from coterie.algo.advantages import by_prompt, credit
from coterie.batches.pack import plan
from coterie.build.learner import learner_for
from coterie.build.reading import read_inputs
from coterie.build.run import collector_for, engine_for, policy_for, sampling_for, use_threads
from coterie.callbacks import Callback
from coterie.config.load import load
from coterie.config.objective import AdvantageConfig
from coterie.config.schema import RunConfig
from coterie.data.order import PromptOrder
from coterie.rewards.pool import Scorer
from coterie.stats import bootstrap_interval

BASELINES = ("leave_one_out", "length_weighted", "optimal_token")


def squared_lengths(config: RunConfig, prompts: int, group: int) -> tuple[np.ndarray, float]:
    """[N, 3] squared length of each group's gradient under `BASELINES`, N groups with a difference; mean tokens."""
    use_threads(config)
    inputs = read_inputs(config, Callback())
    policy = policy_for(config, inputs)
    engine = engine_for(config, inputs, policy)
    engine.commit(0)
    drawn = PromptOrder(inputs.train.prompts, seed=config.seed).draw(0, prompts)
    with Scorer(config.rewards) as scorer:
        scorer.start(inputs.prompts)
        collector = collector_for(config, engine, inputs.chat, scorer, seed=config.seed)
        sampling = sampling_for(config, config.sampling.temperature)
        rollouts = collector.collect(drawn, samples=group, sampling=sampling).rollouts
    learner = learner_for(config, policy, lambda: policy)
    projection = Projection(policy.parameters(), seed=0)
    by_id = {rollout.id: rollout for rollout in rollouts}
    rows = []
    for prompt_group in by_prompt(rollouts):
        if len(prompt_group.members) < 2 or np.ptp(prompt_group.rewards) == 0:
            continue
        members = [by_id[name] for name in prompt_group.members]
        row = []
        for name in BASELINES:
            rule = AdvantageConfig(baseline=name, scale="none")
            credits = credit([prompt_group], by_id, rule, clip_low=1.0, clip_high=1.0)
            batches = plan(
                members, credits, loss_agg_mode="seq-mean-token-sum", max_tokens_per_microbatch=4096, skip_zero=True
            )
            row.append(float(np.square(projection(learner.gradient(batches))).sum()))
        rows.append(row)
        print(f"group {len(rows)}: " + "  ".join(f"{x:.4g}" for x in row), file=sys.stderr, flush=True)
    return np.array(rows), float(np.mean([rollout.trained_tokens for rollout in rollouts]))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--prompts", type=int, default=48)
    words.add_argument("--group", type=int, default=8, help="rollouts a prompt")
    given, settings = words.parse_known_args()
    lengths, tokens = squared_lengths(load(settings).config, given.prompts, given.group)
    print(f"{len(lengths)} groups of {given.group} with a difference, {tokens:.0f} tokens a rollout\n")
    print("| baseline | squared length of the gradient, leave_one_out = 1 |\n| --- | --- |")
    plain = lengths[:, 0].mean()
    for index, name in enumerate(BASELINES):
        ratio, low, high = bootstrap_interval(1 + (lengths[:, index] - lengths[:, 0]) / plain, seed=0)
        print(f"| `{name}` | {ratio:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
