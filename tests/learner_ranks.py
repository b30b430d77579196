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
from coterie.policy.sharding import Sharding
from tiny_models import KINDS, tiny_policy

TEMPERATURE = 0.7


def learner(
    case: str, cls: type[Learner] = Learner, max_grad_norm: float = 0.5, sharding: Sharding | None = None
) -> Learner:
    """A tiny learner in float64 (bfloat16 for that case); see `CASES`, or the kind of a tiny model.

    Args:
        sharding: cuts its models.
    """
    torch.manual_seed(1)

    def tiny(seed: int = 0) -> Policy:
        policy = tiny_policy(
            case if case in KINDS else "smollm",
            dtype={"bfloat16": torch.bfloat16, "float32": torch.float32}.get(case, torch.float64),
            seed=seed,
            lora=LoraConfig(rank=4) if case.startswith("lora") else None,
        )
        if case == "lora-continued":
            policy.start = {name: tensor.detach() * 0.5 for name, tensor in policy.parameters().items()}
        return policy if sharding is None else sharding.cut(policy)

    policy = tiny()
    choices: dict[str, Any] = {
        "reference": {"kl_beta": 0.1},
        "ema": {"kl_beta": 0.1},
        "lora-reference": {"kl_beta": 0.1},
        "entropy": {"entropy_bonus": 0.05},
        "covariance": {"loss": "clip_cov", "clip_cov_ratio": 0.2, "clip_cov_lb": -9, "clip_cov_ub": 9},
    }.get(case, {})
    reference = None
    if case in ("reference", "ema"):
        config = ReferenceConfig(sync_every=1, sync_ema=0.3 if case == "ema" else None)
        reference = Reference(policy, tiny(seed=9), config)
    elif case.startswith("lora-"):
        reference = Reference(policy, None, ReferenceConfig())
    return cls(
        policy,
        optim=OptimConfig(lr=1e-2, max_grad_norm=max_grad_norm, gradient_checkpointing=case == "checkpointing"),
        objective=Objective(settings=ObjectiveConfig(**choices), correction=RolloutCorrectionConfig(kind="none")),
        temperature=TEMPERATURE,
        total_steps=10,
        reference=reference,
        critic=_critic(policy, tiny(seed=3) if case in ("critic-model", "critic-warmup") else None)
        if "critic" in case
        else None,
        entropy_share=0.5 if case == "share" else 1.0,
        warmup=1 if case == "critic-warmup" else 0,
    )


def _critic(policy: Policy, trunk: Policy | None) -> Critic:
    judge = Critic(policy, trunk, config=CriticConfig(), optim=OptimConfig(lr=1e-2, max_grad_norm=0.5), total_steps=10)
    with torch.no_grad():
        judge.head.weight.normal_(generator=torch.Generator().manual_seed(5))
    return judge


class Changing(ServedLearner):
    """A rank whose learner is made on demand, and which can be told to fail."""

    fails = ""

    sharding: Sharding | None = None

    def _build(self, case: str, max_grad_norm: float, fails: str, strategy: str) -> None:
        if strategy == "fsdp" and self.sharding is None:
            self.sharding = Sharding(self.ranks, torch.device("cpu"))
        self.learner, self.fails = learner(case, max_grad_norm=max_grad_norm, sharding=self.sharding), fails
        self.learner.attach(self.ranks, self.sharding)

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
    return Changing(build=lambda _: learner("plain"))
