"""A synthetic step of known lengths: random prompts, completions that all run to the limit, advantages of ±1.

What is measured is the engine and the learner that train; only what is said does not matter here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.peers.rollouts import rollout
from coterie import machine
from coterie.algo.objective import Objective
from coterie.batches.batch import Batch
from coterie.batches.pack import plan
from coterie.build import reading, run
from coterie.callbacks import Callback
from coterie.config.optim import OptimConfig
from coterie.config.schema import RunConfig
from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.types import Credit, SampleKey, Turn

MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a step consists of."""

    prompts: int
    group_size: int
    prompt: int
    """Tokens of each prompt."""
    completion: int
    """Tokens of each completion."""

    @property
    def rollouts(self) -> int:
        return self.prompts * self.group_size

    @property
    def generated(self) -> int:
        """Tokens sampled."""
        return self.rollouts * self.completion

    @property
    def tokens(self) -> int:
        """Tokens that have to be processed: each prompt once, and every completion."""
        return self.prompts * self.prompt + self.generated


class Endless:
    """A codec without end tokens: every completion runs to its limit."""

    stop_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def load_policy(name: str = MODEL, dtype: str = "auto") -> Policy:
    """The asset (fetched if need be) or model folder `name`, on the CPU."""
    config = RunConfig.model_validate({"model": {"name": name, "dtype": dtype, "device": "cpu"}})
    return run.load_policy(config, reading.locate_model(config.model.name, Callback()))


def engine_for(policy: Policy, sizes: Sizes, slots: int = 64) -> EmbeddedEngine:
    return EmbeddedEngine(policy, Endless(), max_num_seqs=slots, capacity=sizes.prompt + sizes.completion)


def learner_for(policy: Policy) -> Learner:
    """With the default settings of a run."""
    return Learner(policy, optim=OptimConfig(), objective=Objective(), temperature=1.0, total_steps=1000)


def sampling(tokens: int) -> Sampling:
    return Sampling(temperature=1.0, max_tokens=tokens, timeout_s=3600.0)


def requests(sizes: Sizes, vocabulary: int) -> list[Request]:
    """`group_size` requests of each of `prompts` random prompts, the same at every call."""
    words = np.random.default_rng(0).integers(3, vocabulary, (sizes.prompts, sizes.prompt))
    return [
        Request(
            key=SampleKey(seed=0, version=0, prompt=f"synthetic/{index}", sample=sample),
            prompt_tokens=tuple(row.tolist()),
        )
        for index, row in enumerate(words)
        for sample in range(sizes.group_size)
    ]


def packed(
    asked: Sequence[Request],
    turns: Sequence[Turn],
    max_tokens_per_microbatch: int = OptimConfig().max_tokens_per_microbatch,
) -> list[Batch]:
    """The micro-batches of one update in which every rollout has a gradient."""
    keys = [request.key for request in asked]
    rollouts = [
        rollout(key.prompt, key.sample, turn, float(key.sample % 2)) for key, turn in zip(keys, turns, strict=True)
    ]
    credits = [
        Credit(rollout_id=member.id, advantage=1.0 if member.sample % 2 else -1.0, clip_low=0.2, clip_high=0.2)
        for member in rollouts
    ]
    return plan(
        rollouts,
        credits,
        loss_agg_mode="seq-mean-token-mean",
        max_tokens_per_microbatch=max_tokens_per_microbatch,
        skip_zero=True,
    )


def use_threads() -> int:
    """As a run does; returns the number."""
    return run.use_threads(RunConfig())


def heading(title: str) -> list[str]:
    """Markdown: what was measured where, and whether anything else was running."""
    busy = os.getloadavg()[0]
    return [
        f"# {title}",
        "",
        f"{machine.facts().line()}; torch {torch.__version__}, {torch.get_num_threads()} threads; load average at the "
        f"start {busy:.1f}" + (": other programs were running, so these figures are too low" if busy > 0.5 else ""),
        "",
    ]
