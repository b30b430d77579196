"""How noisy is the policy's gradient under each baseline, on a language model? One command; appended per checkpoint.

python benchmarks/grouping/gradients.py RUN [RUN …] [--prompts 128] [--batches 400] --out gradients.json

A run that was trained with [grouping] gives history: its recorded rollouts are shown to every estimator, in order. At
each checkpoint that it kept, fresh rollouts are sampled with the weights as they are, and the gradient s_i of each
rollout's log-probability is taken one by one and kept as a random projection. A batch of N rollouts has the gradient
Σ A_i s_i / N, so batches of any group size and with any baseline are put together from the same rollouts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.algo.subsample import keep_probabilities
from coterie.batches.pack import plan
from coterie.build.learner import group_aware_estimator, learner_for
from coterie.build.reading import read_inputs
from coterie.build.run import collector_for, embed_for, engine_for, policy_for, sampling_for, use_threads
from coterie.callbacks import Callback
from coterie.config.load import load_file
from coterie.data.order import PromptOrder
from coterie.grouping.arrays import Rollouts
from coterie.grouping.estimator import sampled_weights
from coterie.grouping.features import PromptFeatures
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from coterie.policy.learner import Learner
from coterie.rewards.pool import Scorer
from coterie.rng import generator
from coterie.runs import checkpoint, parquet
from coterie.runs import rollouts as store
from coterie.runs.durable import json_dumps, write_file
from coterie.types import Credit, Rollout

DIMENSIONS = 2048
"""Of the projection. A squared length comes out with a relative standard error of √(2 / 2048) = 3 %, a mean of many far
better."""
BUDGET = 64
"""Rollouts of a batch, for every group size; as many prompts are sampled at least."""
SIZES = (1, 2, 4, 8)
ATTEMPTS = 8
WEIGHTS = ("length", "probability")
"""What a rollout may count for (`grouping.weights`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A baseline, and what is done with it."""

    preset: str | None
    """None: plain GRPO with its std."""
    weights: str = "none"
    subsample: float = 0.0


ARMS = {
    "grpo-std": Arm(preset=None),
    **{preset: Arm(preset=preset) for preset in ("prompt", "rloo", "global", "tracker")},
    **{f"{p}, {w}": Arm(preset=p, weights=w) for p in ("js2", "empirical_bayes", "mixture") for w in WEIGHTS},
    "mixture, probability, subsample 1": Arm(preset="mixture", weights="probability", subsample=1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Fresh rollouts of one policy: P prompts, S attempts each, prompt by prompt."""

    prompts: tuple[str, ...]
    """[P]"""
    rewards: np.ndarray
    """[P, S]"""
    weights: Mapping[str, np.ndarray]
    """What each counts for under each of `WEIGHTS`, [P, S]."""
    features: np.ndarray
    """[P, F]"""
    scores: np.ndarray
    """[P, S, D] projected gradients of the log-probability of the whole completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """Of batches of `BUDGET` rollouts."""

    mean: np.ndarray
    """[D]"""
    noise: float
    """Trace of the covariance."""
    silent: float
    """Share of rollouts without an advantage, or that roulette left out: those that cost no update."""

    def numbers(self, gain: float) -> dict[str, float]:
        """JSON-able; `noise` is that of an estimate of the gradient itself, not of `gain` times it."""
        return {"noise": self.noise / gain**2, "gain": gain, "silent": self.silent}


class Projection:
    """Signs at random, then sums over coordinates that are equal modulo D: inner products are kept on average."""

    def __init__(self, parameters: Mapping[str, Tensor], seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        self.signs = {
            name: torch.randint(0, 2, (parameter.numel(),), generator=source, dtype=torch.int8).mul_(2).sub_(1)
            for name, parameter in parameters.items()
        }

    def __call__(self, gradient: Mapping[str, Tensor]) -> np.ndarray:
        """[D]"""
        total = torch.zeros(DIMENSIONS)
        for name, tensor in gradient.items():
            flat = tensor.reshape(-1).float() * self.signs[name]
            whole = flat.numel() // DIMENSIONS * DIMENSIONS
            total += flat[:whole].view(-1, DIMENSIONS).sum(0)
            total[: flat.numel() - whole] += flat[whole:]
        return total.numpy()


def collect(run: Path, step: int, prompts: int) -> tuple[Pool, PromptFeatures]:
    """Fresh rollouts of the checkpoint's policy on the training prompts that come next, and their scores."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    config = load_file(run / "config.toml").config
    model = config.model.model_copy(update={"name": str(folder / "model"), "lora": None})
    config = config.model_copy(update={"model": model})
    use_threads(config)
    inputs = read_inputs(config, Callback())
    policy = policy_for(config, inputs)
    engine = engine_for(config, inputs, policy)
    engine.commit(step)
    cursor = int(json.loads((folder / checkpoint.STATE).read_text(encoding="utf-8"))["cursor"])
    order = PromptOrder(inputs.train.prompts, seed=config.seed)
    # Two epochs' worth, since an epoch may end in between and the next one start with the same prompts.
    coming = {prompt.id: prompt for prompt in order.draw(cursor, 2 * len(order.prompts))}
    drawn = list(coming.values())[:prompts]
    with Scorer(config.rewards) as scorer:
        scorer.start(inputs.prompts)
        # Another seed: these draws are none of those that the run goes on to make.
        collector = collector_for(config, engine, inputs.chat, scorer, seed=config.seed + 1_000_003)
        sampling = sampling_for(config, config.sampling.temperature)
        rollouts = collector.collect(drawn, samples=ATTEMPTS, sampling=sampling).rollouts
    estimator = group_aware_estimator(config, inputs.train.prompts, embed_for(config, inputs, policy))
    estimator.read(folder)
    names = tuple(prompt.id for prompt in drawn)
    shape = len(names), ATTEMPTS
    pool = Pool(
        prompts=names,
        rewards=np.array([np.nan if rollout.reward is None else rollout.reward for rollout in rollouts]).reshape(shape),
        weights={kind: _weights(rollouts, kind).reshape(shape) for kind in WEIGHTS},
        features=estimator.features.of(names),
        scores=_scores(learner_for(config, policy, lambda: policy), rollouts).reshape(*shape, -1),
    )
    return pool, estimator.features


def _scores(learner: Learner, rollouts: Sequence[Rollout]) -> np.ndarray:
    """[R, D]; what was said twice in answer to the same prompt is taken once."""
    projection = Projection(learner.policy.parameters(), seed=0)
    scores: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
    for rollout in rollouts:
        key = rollout.context.prompt_id, rollout.turns[0].tokens
        if key in scores:
            continue
        credit = Credit(rollout_id=rollout.id, advantage=1.0, clip_low=1.0, clip_high=1.0)
        batches = plan(
            [rollout], [credit], loss_agg_mode="token-mean", max_tokens_per_microbatch=1 << 20, skip_zero=False
        )
        # The loss is the mean over tokens and is minimised; the score is the sum, and points upwards.
        scores[key] = -rollout.trained_tokens * projection(learner.gradient(batches))
    return np.stack([scores[rollout.context.prompt_id, rollout.turns[0].tokens] for rollout in rollouts])


def _weights(rollouts: Sequence[Rollout], kind: str) -> np.ndarray:
    weights = sampled_weights(rollouts, kind)
    assert weights is not None
    return weights


def taught(run: Path, step: int, arm: Arm, features: PromptFeatures) -> GroupAwareBaseline | None:
    """The arm's estimator after the run's recorded steps up to `step`; None for plain GRPO with its std."""
    if arm.preset is None:
        return None
    estimator = GroupAwareBaseline(features.map.columns, preset=arm.preset, settings=Settings(), seed=0)
    for number in (past for past in parquet.steps(run / "rollouts") if past <= step):
        estimator.observe(recorded(run, number, features, arm.weights))
    return estimator


def recorded(run: Path, number: int, features: PromptFeatures, weights: str) -> Rollouts:
    """One recorded step, as an estimator sees it; `weights` as in `[grouping]`."""
    rows = [record.rollout for record in store.read_step(run / "rollouts", number) if record.rollout.reward is not None]
    names = tuple(rollout.context.prompt_id for rollout in rows)
    return Rollouts(
        prompts=names,
        rewards=np.array([rollout.reward for rollout in rows], dtype=np.float64),
        features=features.of(names),
        time=float(number - 1),
        weights=sampled_weights(rows, weights),
    )


def draw(pool: Pool, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[N] prompts and [N] attempts of one batch, neither with repetition; groups lie together."""
    if len(pool.prompts) < BUDGET // size:
        raise ValueError(f"{len(pool.prompts)} prompts do not make {BUDGET // size} groups of {size}; sample more")
    source = generator("gradients", size, seed)
    chosen = source.permutation(len(pool.prompts))[: BUDGET // size]
    attempts = np.stack([source.permutation(ATTEMPTS)[:size] for _ in chosen])
    return np.repeat(chosen, size), attempts.ravel()


def advantages(
    pool: Pool, rows: np.ndarray, attempts: np.ndarray, size: int, arm: Arm, model: GroupAwareBaseline | None, time: int
) -> np.ndarray:
    """[N] undivided, but for plain GRPO with its std. A rollout that could not be scored has none."""
    rewards = pool.rewards[rows, attempts]
    if model is None:
        table = rewards.reshape(-1, size)
        centred = table - table.mean(axis=1, keepdims=True)
        return np.nan_to_num(centred / (table.std(axis=1, ddof=1, keepdims=True) + 1e-4)).ravel()
    shown = Rollouts(
        prompts=tuple(pool.prompts[row] for row in rows),
        rewards=rewards,
        features=pool.features[rows],
        time=float(time),
        weights=pool.weights[arm.weights][rows, attempts] if arm.weights in pool.weights else None,
    )
    return np.nan_to_num(rewards - model.predict(shown))


def measure(pool: Pool, size: int, arm: Arm, model: GroupAwareBaseline | None, time: int, batches: int) -> Gradient:
    """Of `batches` batches; those of one size are the same for every arm."""
    gradients, silent = [], []
    for seed in range(batches):
        rows, attempts = draw(pool, size, seed)
        credit = advantages(pool, rows, attempts, size, arm, model, time)
        keep = keep_probabilities(np.abs(credit), arm.subsample)
        uniforms = np.repeat(generator("roulette", size, seed).random(BUDGET // size), size)
        credit = np.where(uniforms < keep, credit / np.maximum(keep, 1e-12), 0.0)
        gradients.append(credit @ pool.scores[rows, attempts] / BUDGET)
        silent.append(np.mean(np.abs(credit) < 1e-6))
    table = np.stack(gradients)
    mean = table.mean(axis=0)
    noise = float(((table - mean) ** 2).sum() / (len(table) - 1))
    return Gradient(mean=mean, noise=noise, silent=float(np.mean(silent)))


def gain(arm: str, size: int, gradients: Mapping[tuple[str, int], Gradient]) -> float:
    """What an arm's expected advantages multiply the gradient by.

    1 for a baseline without the own reward, 1 - 1/G for the group's mean: known, and not measured, because the mean
    over a thousand rollouts is itself mostly noise. Dividing by the group's deviation changes the direction a little
    too; how much it lengthens the gradient is measured against the group's mean on the same rollouts, whose noise
    cancels.
    """
    if arm not in ("prompt", "grpo-std"):
        return 1.0
    scaled, plain = gradients[arm, size].mean, gradients["prompt", size].mean
    return (1 - 1 / size) * float(scaled @ plain) / float(plain @ plain)


def study(run: Path, step: int, prompts: int, batches: int) -> dict[str, Any]:
    """Every arm at every group size, at one checkpoint."""
    pool, features = collect(run, step, prompts)
    gradients: dict[tuple[str, int], Gradient] = {}
    for name, arm in ARMS.items():
        model = taught(run, step, arm, features)
        for size in SIZES:
            if size > 1 or name not in ("grpo-std", "prompt", "rloo"):  # a lone rollout has no siblings
                gradients[name, size] = measure(pool, size, arm, model, step, batches)
    return {
        "arms": {
            f"{arm}/{size}": gradient.numbers(gain(arm, size, gradients)) for (arm, size), gradient in gradients.items()
        },
        "reward": float(np.nanmean(pool.rewards)),
        "within": float(np.nanvar(pool.rewards, axis=1, ddof=1).mean()),
        "between": float(np.nanvar(np.nanmean(pool.rewards, axis=1), ddof=1)),
        "distinct": len({score.tobytes() for score in pool.scores.reshape(-1, DIMENSIONS)}),
    }


def table(results: dict[str, Any], what: str = "noise") -> str:
    """Noise over that of plain GRPO in groups of eight, as geometric mean and range over checkpoints; or `what` as it
    is, as mean and range."""
    lines = ["| arm | " + " | ".join(f"G = {size}" for size in SIZES) + " |", "| --- |" + " --- |" * len(SIZES)]
    for arm in ARMS:
        cells = []
        for size in SIZES:
            tables = [result["arms"] for result in results.values() if f"{arm}/{size}" in result["arms"]]
            values = [arms[f"{arm}/{size}"][what] for arms in tables]
            if what == "noise":
                values = [value / arms["grpo-std/8"][what] for value, arms in zip(values, tables, strict=True)]
            mean = np.exp(np.mean(np.log(values))) if values and what == "noise" else np.mean(values or [np.nan])
            cells.append(f"{mean:.2f} [{min(values):.2f}, {max(values):.2f}]" if values else "–")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="+", type=Path)
    words.add_argument("--prompts", type=int, default=128, help="of a checkpoint, eight attempts each")
    words.add_argument("--batches", type=int, default=400)
    words.add_argument("--out", type=Path, required=True, help="JSON; checkpoints in it are not measured again")
    given = words.parse_args()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for run in given.runs:
        for step in sorted(int(folder.name[5:]) for folder in (run / "checkpoints").glob("step_*")):
            if f"{run.name}/{step}" in results:
                continue
            started = time.perf_counter()
            results[f"{run.name}/{step}"] = study(run, step, given.prompts, given.batches)
            write_file(given.out, json_dumps(results).encode())
            print(f"{run.name}, step {step}: {time.perf_counter() - started:.0f} s", flush=True)
    print(f"gradient noise at equal rollouts, GRPO in groups of eight = 1\n\n{table(results)}")
    print(f"\nshare of rollouts that cost no update\n\n{table(results, 'silent')}")


if __name__ == "__main__":
    main()
