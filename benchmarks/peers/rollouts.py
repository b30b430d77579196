"""Rollouts made by hand, for benchmarks that have no environment and no reward function."""

from __future__ import annotations

from coterie.types import Context, Outcome, Rollout, Turn


def rollout(prompt: str, sample: int, turn: Turn, reward: float, completion: str = "") -> Rollout:
    """One attempt of one turn, as the collector would hand it on."""
    context = Context(
        prompt_id=prompt,
        task="bench",
        difficulty=None,
        version=turn.version,
        prompt_length=len(turn.prompt_tokens),
        completion_length=len(turn.tokens),
        stop_reason=turn.stop_reason,
    )
    return Rollout(
        id=f"{prompt}#{sample}@{turn.version}",
        sample=sample,
        turns=(turn,),
        completion=completion,
        reward=reward,
        reward_parts={"bench": reward},
        outcome=Outcome.OK,
        context=context,
    )
