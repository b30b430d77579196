"""Drafts against none, on the prompts that a run would sample next; and what a pass costs by rows and tokens.

    coterie train @ recipes/search/config.toml --name search --checkpoint.every 10 --checkpoint.keep 4
    python -m benchmarks.drafts runs/search
    python -m benchmarks.drafts runs/search --checkpoint 10 --steps 4 --rounds 5
    python -m benchmarks.drafts --cost

From the weights of a checkpoint, the prompts of the steps after it are sampled with `engine.draft = "off"` and
`"history"` in turns; the history is that of the run's stored rollouts up to the checkpoint. Passes, guesses and tokens
are counts, and repeat. Tokens of bfloat16 may differ after rounding: the first such token of each rollout is counted
among the tokens compared until then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.peers.growth_step import load_policy
from coterie.batches.batch import pack_prompts
from coterie.build import reading, run
from coterie.callbacks import Callback
from coterie.config.load import load_file
from coterie.engines.attempt_history import AttemptHistory
from coterie.engines.embedded import EmbeddedEngine
from coterie.envs.base import Limits
from coterie.envs.registry import environment_for, limits_of
from coterie.policy.kernels import eager
from coterie.policy.kv import KVPool, PrefillLayout, RaggedLayout
from coterie.policy.prepack import prepacked
from coterie.rollout.episodes import Attempt, Episodes
from coterie.runs import checkpoint, parquet, rollouts
from coterie.runs.durable import json_loads
from coterie.types import Prompt, Turn


class Counting(EmbeddedEngine):
    """Counts its passes."""

    passes = 0

    def step(self) -> list[tuple[int, Turn]]:
        self.passes += 1
        return super().step()


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step, sampled once."""

    turns: list[list[tuple[int, ...]]]
    """Tokens of each attempt's turns."""
    passes: int
    guessed: int
    accepted: int
    processor: float
    """Seconds of the processor."""
    wall: float

    @property
    def tokens(self) -> int:
        return sum(len(turn) for turns in self.turns for turn in turns)


class Sampling:
    """A checkpoint's policy and the prompts that come next."""

    def __init__(self, folder: Path, step: int | None) -> None:
        config = load_file(folder / "config.toml").config
        steps = checkpoint.steps(folder / "checkpoints")
        self.step = steps[-1] if step is None else step
        if self.step not in steps:
            raise SystemExit(f"{folder} has no checkpoint of step {self.step}; it has those of {steps}")
        source = folder / "checkpoints" / f"step_{self.step:06}"
        state = json_loads((source / checkpoint.STATE).read_bytes())
        self.config, self.cursor = config, int(state["cursor"])
        self.inputs = reading.read_inputs(config, Callback())
        self.policy = run.load_policy(config, str(source / "model"))
        self.order = reading.prompt_order(config, self.inputs.train)
        self.folder = folder

    def history(self) -> AttemptHistory:
        """Of the rollouts that the run stored until the checkpoint."""
        history = AttemptHistory()
        for step in parquet.steps(self.folder / "rollouts"):
            if step <= self.step:
                history.remember(record.rollout for record in rollouts.read_step(self.folder / "rollouts", step))
        return history

    def prompts(self, number: int) -> Sequence[Prompt]:
        """Of the step `number` steps after the checkpoint."""
        count = self.config.collect.prompts_per_step
        return self.order.draw(self.cursor + number * count, count)

    def sample(self, number: int, *, draft: bool, slots: int | None) -> Sampled:
        """The rollouts of a step after the checkpoint, with the checkpoint's weights."""
        config, version = self.config, self.step + number
        engine = Counting(
            self.policy,
            self.inputs.chat,
            max_num_seqs=slots or config.engine.max_num_seqs,
            capacity=run.longest_episode(config, self.inputs),
            version=version,
            draft=draft,
        )
        if engine.drafts is not None:
            engine.drafts.history = self.history()
        limits = limits_of(config.environment) or Limits()
        episodes = Episodes(
            engine, environment_for(config.environment), self.inputs.chat, seed=config.seed, limits=limits
        )
        pairs = [(prompt, k) for prompt in self.prompts(number) for k in range(config.collect.group_size)]
        began, wall = time.process_time(), time.perf_counter()
        attempts = episodes.run(pairs, run.sampling_for(config, config.sampling.temperature))
        seconds, wall = time.process_time() - began, time.perf_counter() - wall
        guessed, accepted = (engine.drafts.guessed, engine.drafts.accepted) if engine.drafts else (0, 0)
        return Sampled(_tokens(attempts), engine.passes, guessed, accepted, seconds, wall)


def _tokens(attempts: Sequence[Attempt]) -> list[list[tuple[int, ...]]]:
    return [[turn.tokens for turn in attempt.turns] for attempt in attempts]


def changed(plain: Sampled, drafted: Sampled) -> tuple[int, int]:
    """Attempts whose tokens differ, and the tokens compared until the first difference of each."""
    differ = compared = 0
    for before, after in zip(plain.turns, drafted.turns, strict=True):
        first = [token for turn in before for token in turn]
        second = [token for turn in after for token in turn]
        equal = next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        differ += equal is not None
        compared += min(len(first), len(second)) if equal is None else equal + 1
    return differ, compared


def compare(sampling: Sampling, steps: int, rounds: int, slots: int | None) -> None:
    """One row a step: counts of the first round, and medians of the others' seconds and ratios."""
    print("| step | tokens | passes | with drafts | guesses | accepted | CPU s | with drafts | ratio | wall ratio |")
    print("|" + " --: |" * 10)
    totals: list[list[float]] = [[] for _ in range(rounds)]
    differ = compared = 0
    for number in range(steps):
        pairs = []
        for turn in range(rounds + 1):  # the first warms up
            order = (False, True) if turn % 2 else (True, False)
            by_draft = {draft: sampling.sample(number, draft=draft, slots=slots) for draft in order}
            pairs.append((by_draft[False], by_draft[True]))
        plain, drafted = pairs[0]
        counts = changed(plain, drafted)
        differ, compared = differ + counts[0], compared + counts[1]
        timed = pairs[1:]
        ratios = [after.processor / before.processor for before, after in timed]
        for total, (before, after) in zip(totals, timed, strict=True):
            total += [before.processor, after.processor]
        figures = [f"{median(pair[side].processor for pair in timed):.2f}" for side in (0, 1)]
        walls = median(after.wall / before.wall for before, after in timed)
        share = f"{drafted.accepted / max(1, drafted.guessed):.0%}"
        print(
            f"| {sampling.step + number + 1} | {plain.tokens} | {plain.passes} | {drafted.passes} | {drafted.guessed} "
            f"| {share} | {' | '.join(figures)} | {median(ratios):.2f} | {walls:.2f} |",
            flush=True,
        )
    overall = [sum(total[1::2]) / sum(total[::2]) for total in totals]
    print(f"\nCPU seconds with drafts to those without: {median(overall):.3f} [{min(overall):.3f}, {max(overall):.3f}]")
    print(f"{differ} of {compared} tokens compared were changed by rounding")


def cost(threads: int) -> None:
    """CPU milliseconds of a pass by rows and new tokens of each, at 320 tokens of context: the least of five."""
    policy, context, times = load_policy(), 320, (1, 2, 4, 8)
    with torch.inference_mode(), eager(policy), prepacked(policy.model, rows=32, tokens=1 << 20):
        pool, prompt = KVPool(64, 512), tuple(range(100, 100 + context))
        layout = PrefillLayout(pack_prompts([prompt], 0).segments, policy.device)
        policy.hidden(torch.tensor([prompt]), torch.arange(context)[None], layout)
        pool.admit(range(pool.slots), layout.kept[0])
        print(f"| rows | {' | '.join(f'{count} tokens a row' for count in times)} |")
        print("|" + " --: |" * (1 + len(times)))
        for rows in (1, 2, 4, 8, 16, 32, 64):
            cells = []
            for count in times:
                seconds = []
                for _ in range(6):
                    positions = torch.arange(context, context + count).repeat(rows)
                    began = time.process_time()
                    ragged = RaggedLayout(pool, positions, [count] * rows, context + count)
                    policy.head(policy.hidden(positions[None], positions[None], ragged)[0])
                    seconds.append(time.process_time() - began)
                cells.append(f"{1000 * min(seconds[1:]):.0f}")
            print(f"| {rows} | {' | '.join(cells)} |", flush=True)
    print(f"\nmilliseconds, {threads} thread{'s' * (threads > 1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run with checkpoints")
    parser.add_argument("--checkpoint", type=int, help="step of the checkpoint; the newest by default")
    parser.add_argument("--steps", type=int, default=4, help="steps after it whose prompts are sampled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, help="engine.max_num_seqs; that of the run by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true", help="measure what a pass costs")
    options = parser.parse_args()
    if not options.cost and options.run is None:
        parser.error("name a run, or --cost")
    torch.set_num_threads(options.threads)
    if options.cost:
        cost(options.threads)
        return
    compare(Sampling(options.run, options.checkpoint), options.steps, options.rounds, options.slots)


if __name__ == "__main__":
    main()
