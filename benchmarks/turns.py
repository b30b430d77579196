"""Cost of conversations: the same tokens in 1, 2, 4 and 8 turns, and the time of tools that decoding hides.

    python -m benchmarks.turns
    python -m benchmarks.turns --prompts 4 --group-size 4 --rounds 2

Every case has the same prompts, and as many sampled tokens and tokens that an environment adds. With one turn these
stand in the prompt for generation; for the update it is a completion of as many tokens in all. The cases of a round
follow each other, so that other load concerns them alike. The first table has the processor's time,
of one thread unless `--threads` says otherwise; the second has that of the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks.peers.growth_step import Endless, learner_for, load_policy
from benchmarks.peers.rollouts import rollout
from coterie.batches.batch import Batch
from coterie.batches.pack import plan
from coterie.engines.base import Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.envs.base import Limits, Observation, Shown
from coterie.envs.registry import FunctionEnvironment
from coterie.policy.learner import Learner
from coterie.rollout.episodes import Attempt, Episodes
from coterie.types import Credit, Message, Prompt

TURNS = (1, 2, 4, 8)
SAMPLED, ADDED = 96, 32
"""Tokens of an episode that the model samples, and that the environment adds."""


class Numbers:
    """Messages are token ids in decimal."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        return [int(word) for message in messages for word in message["content"].split()]

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        return self.render(messages)

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Sometimes(Endless):
    """About one token in 24 ends a turn, so that turns end at different times."""

    stop_ids = frozenset(range(3, 49152, 24))


def message(first: int, count: int) -> tuple[Message, ...]:
    return (Message(role="user", content=" ".join(str(100 + first + k) for k in range(count))),)


def talk(prompt: Prompt, turns: int, seconds: float = 0.0) -> Generator[Shown, str, float]:
    """Adds its tokens between the turns, after as many seconds."""
    yield prompt.messages
    for turn in range(1, turns):
        time.sleep(seconds)
        count = ADDED * turn // (turns - 1) - ADDED * (turn - 1) // (turns - 1)
        yield Observation(messages=message(1000 + 40 * turn, count))
    return 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """Prompts, rollouts of each, and tokens of a prompt."""

    prompts: int
    group: int
    tokens: int

    def pairs(self, extra: int) -> list[tuple[Prompt, int]]:
        """Each prompt, `extra` tokens longer, with each of its samples."""
        asked = [
            Prompt(id=f"p{k}", messages=message(2000 + 500 * k, self.tokens + extra), answer=None, task="turns")
            for k in range(self.prompts)
        ]
        return [(prompt, sample) for prompt in asked for sample in range(self.group)]


def sampled(
    policy: Any, size: Size, turns: int, *, codec: Any = None, kept: int = 0, delay: int = 1, seconds: float = 0.0
) -> tuple[list[Attempt], float, Episodes]:
    """The attempts, the seconds that they took, and the episodes with their own account of waiting."""
    capacity = size.tokens + ADDED + SAMPLED
    engine = EmbeddedEngine(policy, codec or Endless(), max_num_seqs=32, capacity=capacity, max_kept_tokens=kept)
    environment = FunctionEnvironment(name="turns:talk", function=talk, params={"turns": turns, "seconds": seconds})
    limits = Limits(turns=turns, tokens=capacity, delay=delay, workers=64)
    episodes = Episodes(engine, environment, Numbers(), seed=0, limits=limits)
    began = time.perf_counter()
    attempts = episodes.run(
        size.pairs(ADDED if turns == 1 else 0), Sampling(temperature=1.0, max_tokens=SAMPLED // turns, timeout_s=3600.0)
    )
    return attempts, time.perf_counter() - began, episodes


def as_one(attempt: Attempt) -> Attempt:
    """The tokens of a conversation as one completion."""
    first, last = attempt.turns[0], attempt.turns[-1]
    tokens = (*last.prompt_tokens, *last.tokens)[len(first.prompt_tokens) :]
    turn = replace(first, tokens=tokens, sampler_logprobs=(-1.0,) * len(tokens))
    return replace(attempt, turns=[turn])


def updated(learner: Learner, attempts: Sequence[Attempt]) -> float:
    """Seconds of one optimizer step on these attempts."""
    rows = packed(attempts)
    began = time.process_time()
    learner.update([rows])
    return time.process_time() - began


def packed(attempts: Sequence[Attempt]) -> list[Batch]:
    """The micro-batches of one update in which every attempt has a gradient; a conversation is one row's sequence."""
    rollouts = [
        replace(rollout(attempt.prompt.id, attempt.sample, attempt.turns[-1], 1.0), turns=tuple(attempt.turns))
        for attempt in attempts
    ]
    credits = [
        Credit(rollout_id=member.id, advantage=1.0 if member.sample % 2 else -1.0, clip_low=0.2, clip_high=0.2)
        for member in rollouts
    ]
    return plan(rollouts, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=1024, skip_zero=True)


def cost(policy: Any, size: Size, rounds: int) -> None:
    """Seconds of generation and update by number of turns."""
    learner = learner_for(policy)
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds + 1):  # the first warms up
        for turns in TURNS:
            began = time.process_time()
            attempts, _, _ = sampled(policy, size, turns)
            kept_seconds = time.process_time() - began
            if turns == TURNS[1]:
                seconds.setdefault(("update", 1), []).append(
                    updated(learner, [as_one(attempt) for attempt in attempts])
                )
            if turns > 1:
                seconds.setdefault(("update", turns), []).append(updated(learner, attempts))
            seconds.setdefault(("kept", turns), []).append(kept_seconds)
            began = time.process_time()
            sampled(policy, size, turns, kept=1)
            seconds.setdefault(("read anew", turns), []).append(time.process_time() - began)
    print("| turns | generation, s | to one turn | read anew, s | to one turn | update, s | to one turn |")
    print("|" + " --: |" * 7)
    for turns in TURNS:
        cells = []
        for part in ("kept", "read anew", "update"):
            pairs = zip(seconds[part, turns][1:], seconds[part, 1][1:], strict=True)
            cells += [f"{median(seconds[part, turns][1:]):.2f}", f"{median(a / b for a, b in pairs):.2f}"]
        print(f"| {turns} | {' | '.join(cells)} |", flush=True)


def hidden(policy: Any, size: Size, tool_seconds: Sequence[float], delays: Sequence[int]) -> None:
    """Share of the tools' time that sampling did not wait for."""
    print(
        "| a tool takes, s | delay, passes | sampling, s | without tools, s | all tools, s | waited for, s | hidden |"
    )
    print("|" + " --: |" * 7)
    for seconds in tool_seconds:
        for delay in delays:
            _, bare, _ = sampled(policy, size, 4, codec=Sometimes(), delay=delay)
            attempts, wall, episodes = sampled(policy, size, 4, codec=Sometimes(), delay=delay, seconds=seconds)
            answers = sum(len(attempt.turns) - 1 for attempt in attempts)
            share = 1 - episodes.waited_seconds / (seconds * answers)
            figures = f"{wall:.2f} | {bare:.2f} | {seconds * answers:.1f} | {episodes.waited_seconds:.2f} | {share:.1%}"
            print(f"| {seconds:g} | {delay} | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", type=float, nargs="*", default=[0.1, 0.5], help="seconds that a tool takes")
    parser.add_argument("--delays", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = load_policy(options.model)
    size = Size(options.prompts, options.group_size, options.prompt_tokens)
    cost(policy, size, options.rounds)
    print()
    hidden(policy, size, options.tools, options.delays)


if __name__ == "__main__":
    main()
