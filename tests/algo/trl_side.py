"""TRL's own loss on given tensors: JSON cases from standard input, {name: {loss, gradients}} on the last line.

Runs in an environment that holds TRL, without coterie. `GRPOTrainer._compute_loss` is called as it stands on a trainer
that was never constructed: it gets the attributes that the loss reads, and a model's answer in place of a model.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

torch: Any = importlib.import_module("torch")
accelerate: Any = importlib.import_module("accelerate")
trl: Any = importlib.import_module("trl.trainer.grpo_trainer")


class Given(trl.GRPOTrainer):
    """A trainer whose model says what the case says."""

    def __init__(self, case: dict[str, Any], accelerator: Any) -> None:
        settings = case["settings"]
        self.accelerator = accelerator
        self.model = torch.nn.Identity().train()
        self.args = SimpleNamespace(
            delta=settings.get("delta"),
            use_bias_correction_kl=settings.get("use_bias_correction_kl", False),
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
            steps_per_generation=1,
        )
        self.loss_type = settings["loss_type"]
        self.importance_sampling_level = settings.get("importance_sampling_level", "token")
        self.epsilon_low = settings["epsilon"]
        self.epsilon_high = settings["epsilon_high"]
        self.beta = settings.get("beta", 0.0)
        self.top_entropy_quantile = settings.get("top_entropy_quantile", 1.0)
        self.off_policy_mask_threshold = settings.get("off_policy_mask_threshold")
        self.use_vllm = self.vllm_importance_sampling_correction = "importance_sampling_ratio" in case["tensors"]
        self.entropy_coef = settings.get("entropy_coef", 0.0)
        self._entropy_bonus_enabled = self.entropy_coef != 0
        self.use_adaptive_entropy = False
        self.aux_loss_enabled = False
        self.max_completion_length = settings["max_completion_length"]
        self.current_gradient_accumulation_steps = 1
        self._metrics = {"train": defaultdict(list)}
        self.tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["tensors"].items()}
        self.logprobs = self.tensors.pop("logprobs").requires_grad_()
        self.entropy = self.tensors.pop("entropy").requires_grad_()
        self.mask = self.tensors.pop("mask").long()

    def _get_per_token_logps_and_entropies(self, *unused: Any, **also: Any) -> tuple[Any, Any, None]:
        return self.logprobs, self.entropy, None

    def answer(self) -> dict[str, Any]:
        rows = self.mask.shape[0]
        inputs = {
            "prompt_ids": torch.zeros(rows, 1, dtype=torch.int64),
            "prompt_mask": torch.ones(rows, 1, dtype=torch.int64),
            "completion_ids": torch.zeros_like(self.mask),
            "completion_mask": self.mask,
            "num_items_in_batch": self.mask.sum(),
            **self.tensors,
        }
        loss = self._compute_loss(self.model, inputs)
        loss.backward()
        grads = {}
        for name, leaf in (("logprobs", self.logprobs), ("entropy", self.entropy)):
            grads[name] = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).tolist()
        return {"loss": loss.item(), **grads}


def main() -> None:
    cases = json.load(sys.stdin)
    accelerator = accelerate.Accelerator(cpu=True)
    print(json.dumps({name: Given(case, accelerator).answer() for name, case in cases.items()}))


main()
