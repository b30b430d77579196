"""Log-probs of a prompt's own tokens, for clients that score given text: `echo` with `logprobs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from coterie.algo.sampling import widened
from coterie.batches.batch import pack_prompts
from coterie.engines.base import Engine
from coterie.engines.embedded import EmbeddedEngine
from coterie.policy.attention import PackedLayout
from coterie.policy.kernels import eager
from coterie.policy.model import Policy

POSITIONS = 256
"""Of one block of logits: [POSITIONS, V] of float32 are in memory at once."""


@dataclass(slots=True, kw_only=True)
class PromptScores:
    """Scores of the tokens of a prompt from the second on, [P - 1] each; natural log-probs at temperature 1."""

    logprobs: list[float] = field(default_factory=list)
    """Of the token that is there."""
    likeliest: list[int] = field(default_factory=list)
    """Token that is the likeliest in its place."""
    likeliest_logprobs: list[float] = field(default_factory=list)
    """Its log-prob."""


def policy_of(engine: Engine) -> Policy | None:
    """The policy that an engine reads in place; None of one that has none."""
    return engine.policy if isinstance(engine, EmbeddedEngine) else None


@torch.inference_mode()
def prompt_scores(policy: Policy, tokens: Sequence[int]) -> PromptScores:
    """Scores of a prompt by one forward pass.

    Args:
        tokens: [P]
    """
    row = pack_prompts([tokens], head=0)
    ids = torch.from_numpy(row.tokens).to(policy.device)
    positions = torch.from_numpy(row.positions).to(policy.device)
    with eager(policy):
        hidden = policy.hidden(ids[None], positions[None], PackedLayout(row.segments, policy.device))[0]
        scores = PromptScores()
        for block in _blocks(len(tokens) - 1):
            logprobs = widened(policy.head(hidden[block])).log_softmax(-1)
            given = ids[block.start + 1 : block.stop + 1, None]
            top = logprobs.max(-1)
            scores.logprobs += logprobs.gather(1, given)[:, 0].tolist()
            scores.likeliest += top.indices.tolist()
            scores.likeliest_logprobs += top.values.tolist()
    return scores


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, POSITIONS):
        yield slice(start, min(start + POSITIONS, count))
