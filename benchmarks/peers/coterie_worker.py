"""coterie's side: the embedded engine and the learner, as the training loop calls them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.peers import rewards as rule
from benchmarks.peers.rollouts import rollout
from benchmarks.peers.wire import STOP, Wire, versions
from coterie.algo.objective import Objective
from coterie.batches.pack import plan
from coterie.config.objective import ObjectiveConfig, ReferenceConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.config.schema import LoraConfig, ModelConfig
from coterie.data.chat import load_chat
from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.machine import peak_resident
from coterie.policy.activations import keep_freed
from coterie.policy.learner import Learner
from coterie.policy.model import load
from coterie.policy.reference import Reference
from coterie.types import Credit, Rollout, SampleKey, StopReason, Turn

CLIP = 0.2


class Side:
    """One model, one engine and one learner for one case."""

    def __init__(self, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        keep_freed()
        self.case = setup["case"]
        self.prompts = [tuple(ids) for ids in setup["prompts"]]
        self.chat = load_chat(setup["model"], None)
        self.version = 0
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[setup["dtype"]]
        rank = self.case["lora_rank"]
        lora = LoraConfig(rank=rank, alpha=2 * rank) if rank else None
        cpu = torch.device("cpu")
        self.policy = load(ModelConfig(lora=lora), setup["model"], dtype=dtype, device=cpu)
        reference = None
        if self.case["kl_beta"] > 0:
            frozen = None if rank else load(ModelConfig(), setup["model"], dtype=dtype, device=cpu)
            reference = Reference(self.policy, frozen, ReferenceConfig())
        self.optim = OptimConfig()
        # Without the correction of rounding between sampler and learner, which the other side does not make either.
        self.objective = Objective(
            settings=ObjectiveConfig(kl_beta=self.case["kl_beta"]), correction=RolloutCorrectionConfig(kind="none")
        )
        self.learner = Learner(
            self.policy,
            optim=self.optim,
            objective=self.objective,
            temperature=1.0,
            total_steps=1_000_000,
            reference=reference,
        )
        longest = max(map(len, self.prompts)) + self.case["max_tokens"]
        slots = min(64, len(self.prompts) * self.case["group_size"])
        self.engine = EmbeddedEngine(self.policy, self.chat, max_num_seqs=slots, capacity=longest, draft=setup["draft"])

    def facts(self) -> dict[str, Any]:
        settings = {"optim": self.optim.model_dump(), "objective": self.objective.settings.model_dump()}
        return {
            "versions": versions("coterie", "torch", "transformers", "peft"),
            "settings": settings | {"dtype": str(self.policy.dtype), "threads": torch.get_num_threads()},
            "stop_ids": sorted(self.chat.stop_ids),
        }

    def turns(self) -> list[Turn]:
        """Every rollout's one turn, by prompt, then by sample."""
        requests = [
            Request(
                key=SampleKey(seed=0, version=self.version, prompt=f"p{index}", sample=sample), prompt_tokens=prompt
            )
            for index, prompt in enumerate(self.prompts)
            for sample in range(self.case["group_size"])
        ]
        limits = Sampling(temperature=1.0, max_tokens=self.case["max_tokens"], timeout_s=3600.0)
        return self.engine.generate(requests, limits)

    def next_version(self) -> None:
        self.version += 1
        self.engine.commit(self.version)

    def generate(self, _: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        turns = self.turns()
        seconds = time.perf_counter() - started
        self.next_version()
        return {"generate_s": seconds, "rollouts": [list(turn.tokens) for turn in turns]}

    def step(self, question: dict[str, Any]) -> dict[str, Any]:
        """A whole step on its own rollouts: generate, score, group, credit, update."""
        started = time.perf_counter()
        turns = self.turns()
        generated = time.perf_counter()
        values = np.array(question["rewards"])
        trained = self.learn(self.rollouts(turns, values), values)
        ended = time.perf_counter()
        self.next_version()
        return {
            "generate_s": generated - started,
            "update_s": ended - generated,
            "step_s": ended - started,
            "rollouts": [list(turn.tokens) for turn in turns],
            "trained_tokens": trained,
            "peak": peak_resident(),
        }

    def update(self, question: dict[str, Any]) -> dict[str, Any]:
        """An optimizer step on given rollouts."""
        values = np.array(question["rewards"])
        started = time.perf_counter()
        trained = self.learn(self.rollouts(self.given(question["rollouts"]), values), values)
        return {"update_s": time.perf_counter() - started, "trained_tokens": trained, "peak": peak_resident()}

    def given(self, rollouts: Sequence[Sequence[int]]) -> list[Turn]:
        size = self.case["group_size"]
        return [
            Turn(
                prompt_tokens=self.prompts[index // size],
                tokens=tuple(tokens),
                sampler_logprobs=(0.0,) * len(tokens),
                temperature=1.0,
                stop_reason=StopReason.STOP,
                version=self.version,
            )
            for index, tokens in enumerate(rollouts)
        ]

    def rollouts(self, turns: Sequence[Turn], values: np.ndarray) -> list[Rollout]:
        size = self.case["group_size"]
        flat = values.reshape(-1)
        return [
            rollout(f"p{index // size}", index % size, turn, float(flat[index]), self.chat.decode(turn.tokens))
            for index, turn in enumerate(turns)
        ]

    def batches(self, rollouts: Sequence[Rollout], values: np.ndarray) -> list[Any]:
        advantages = rule.advantages(values).reshape(-1)
        credits = [
            Credit(rollout_id=rollout.id, advantage=float(advantage), clip_low=CLIP, clip_high=CLIP)
            for rollout, advantage in zip(rollouts, advantages, strict=True)
        ]
        return plan(
            rollouts,
            credits,
            loss_agg_mode="seq-mean-token-mean",
            max_tokens_per_microbatch=self.optim.max_tokens_per_microbatch,
            skip_zero=self.objective.kl_beta == 0,
        )

    def learn(self, rollouts: Sequence[Rollout], values: np.ndarray) -> int:
        """One optimizer step; how many tokens had a gradient."""
        packed = self.batches(rollouts, values)
        self.learner.update([packed])
        return sum(len(batch.targets) for batch in packed)

    @torch.no_grad()
    def weights(self, question: dict[str, Any]) -> dict[str, Any]:
        """Move the trained weights a little and write them, so that both sides compare a gradient at the same generic
        point: at the start, adapters and the KL to the reference have gradients that are exactly zero."""
        random = torch.Generator().manual_seed(question["seed"])
        for parameter in self.policy.parameters().values():
            size = max(0.02 * float(parameter.float().std()), 1e-3)
            noise = torch.randn(parameter.shape, generator=random) * size
            parameter += noise.to(parameter.dtype)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in self.policy.parameters().items()}, question["path"]
        )
        return {}

    def gradient(self, question: dict[str, Any]) -> dict[str, Any]:
        """Write the gradient of the loss on given rollouts, by parameter name."""
        values = np.array(question["rewards"])
        packed = self.batches(self.rollouts(self.given(question["rollouts"]), values), values)
        gradients = {name: grad.float().contiguous() for name, grad in self.learner.gradient(packed).items()}
        Path(question["path"]).unlink(missing_ok=True)
        save_file(gradients, question["path"])
        return {}


def main() -> None:
    wire = Wire()
    try:
        side = Side(wire.read())
        wire.answer(side.facts())
        verbs = {name: getattr(side, name) for name in ("generate", "step", "update", "weights", "gradient")}
        while (question := wire.read())["do"] != STOP:
            wire.answer(verbs[question["do"]](question))
    except Exception as error:
        wire.fail(error)
        raise


if __name__ == "__main__":
    main()
