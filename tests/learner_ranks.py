"""Learner ranks for tests: tiny learners by name, and a service that changes from one to the next."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from coterie.algo.objective import Objective
from coterie.cluster.learner_service import ServedLearner
from coterie.config.objective import CriticConfig, ObjectiveConfig, ReferenceConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.config.schema import LoraConfig
from coterie.policy.critic import Critic
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from tiny_models import tiny_policy

TEMPERATURE = 0.7


def learner(case: str, cls: type[Learner] = Learner, max_grad_norm: float = 0.5) -> Learner:
    """A tiny learner in float64: plain, lora, reference, entropy, share, covariance, critic or bfloat16."""
    policy = tiny_policy(
        "smollm",
        dtype=torch.bfloat16 if case == "bfloat16" else torch.float64,
        lora=LoraConfig(rank=4) if case == "lora" else None,
    )
    choices: dict[str, Any] = {
        "reference": {"kl_beta": 0.1},
        "entropy": {"entropy_bonus": 0.05},
        "covariance": {"loss": "clip_cov", "clip_cov_ratio": 0.2, "clip_cov_lb": -9, "clip_cov_ub": 9},
    }.get(case, {})
    reference = None
    if case == "reference":
        reference = Reference(policy, tiny_policy("smollm", seed=9), ReferenceConfig(sync_every=1))
    return cls(
        policy,
        optim=OptimConfig(lr=1e-2, max_grad_norm=max_grad_norm),
        objective=Objective(settings=ObjectiveConfig(**choices), correction=RolloutCorrectionConfig(kind="none")),
        temperature=TEMPERATURE,
        total_steps=10,
        reference=reference,
        critic=_critic(policy) if case == "critic" else None,
        entropy_share=0.5 if case == "share" else 1.0,
    )


def _critic(policy: Policy) -> Critic:
    judge = Critic(policy, None, config=CriticConfig(), optim=OptimConfig(lr=1e-2, max_grad_norm=0.5), total_steps=10)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(5))
    return judge


class Changing(ServedLearner):
    """A rank whose learner is made on demand, and which can be told to fail."""

    fails = ""

    def _build(self, case: str, max_grad_norm: float, fails: str) -> None:
        torch.manual_seed(1)
        self.learner, self.fails = learner(case, max_grad_norm=max_grad_norm), fails
        assert self.ranks is not None
        self.learner.gather = self.ranks.gather

    def _update(self, steps: Any, objective: Any) -> dict[str, Any]:
        if self.fails == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails == "raises":
            raise OSError("no space left")
        if self.fails == "drifts":
            next(iter(self.learner.policy.parameters().values())).data.mul_(1.01)
        return ServedLearner._update(self, steps, objective)


def served() -> Changing:
    """What a service of these tests serves."""
    torch.set_num_threads(1)
    return Changing(learner=learner("plain"))
