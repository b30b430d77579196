"""TRL's side: `GRPOTrainer.train()` itself, paused between optimizer steps while nobody asks.

What is given from outside enters through TRL's own doors only: `rollout_func` hands over the prompt's token ids and
either asks TRL's generation for completions or returns given ones; a reward function returns the given rewards. All
else (padding, reference log-probs, advantages, micro-batches, clipping, AdamW) is the trainer's own loop. Runs in
TRL's environment, without coterie.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from typing import Any

from benchmarks.peers.wire import STOP, Wire, versions
from coterie.machine import peak_resident

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl: Any = importlib.import_module("trl")
torch: Any = importlib.import_module("torch")
datasets: Any = importlib.import_module("datasets")
transformers: Any = importlib.import_module("transformers")
safetensors: Any = importlib.import_module("safetensors.torch")

MICRO = 8
"""TRL's default `per_device_train_batch_size`."""


class StopAskedError(Exception):
    """Leaves `train()`."""


class Side(transformers.TrainerCallback):
    """The trainer, and what it is asked to do next."""

    def __init__(self, wire: Wire, setup: dict[str, Any]) -> None:
        torch.set_num_threads(setup["threads"])
        self.wire = wire
        self.setup = setup
        self.case = setup["case"]
        self.prompts = setup["prompts"]
        self.question: dict[str, Any] = {}
        self.answer: dict[str, Any] = {}
        self.started = 0.0
        self.args = self._args()
        self.trainer = trl.GRPOTrainer(
            model=setup["model"],
            reward_funcs=self.reward,
            args=self.args,
            train_dataset=datasets.Dataset.from_dict({"prompt": [str(k) for k in range(len(self.prompts))] * 1000}),
            peft_config=self._adapter(),
            rollout_func=self.roll_out,
            callbacks=[self],
        )

    def _args(self) -> Any:
        rollouts = len(self.prompts) * self.case["group_size"]
        micro = max(size for size in range(1, MICRO + 1) if rollouts % size == 0)
        settings: dict[str, Any] = {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": rollouts // micro,
            "num_generations": self.case["group_size"],
            "max_completion_length": self.case["max_tokens"],
            "beta": self.case["kl_beta"],
            "loss_type": "grpo",
            "use_bias_correction_kl": False,  # on, the gradient is that of another KL estimator than GRPO's k3
            "shuffle_dataset": False,
            "max_steps": 1_000_000,
            "use_cpu": True,
            "bf16": self.setup["dtype"] == "bfloat16",
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        if self.setup["tuned"]:
            settings["gradient_checkpointing"] = False
            settings["model_init_kwargs"] = {"dtype": self.setup["dtype"]}
        if self.setup["unclipped"]:
            settings["max_grad_norm"] = 0.0
        self.changed = settings
        return trl.GRPOConfig(output_dir=tempfile.mkdtemp(prefix="bench-trl-"), **settings)

    def _adapter(self) -> Any:
        rank = self.case["lora_rank"]
        if not rank:
            return None
        peft: Any = importlib.import_module("peft")
        return peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )

    def facts(self) -> dict[str, Any]:
        kept = {
            "gradient_checkpointing": self.args.gradient_checkpointing,
            "bf16 autocast": self.args.bf16,
            "weights": str(next(self.trainer.model.parameters()).dtype),
            "attention": self.trainer.model.config._attn_implementation,
            "optim": str(self.args.optim),
            "learning_rate": self.args.learning_rate,
            "adam_beta2": self.args.adam_beta2,
            "max_grad_norm": self.args.max_grad_norm,
            "epsilon": self.args.epsilon,
            "scale_rewards": self.args.scale_rewards,
            "mask_truncated_completions": self.args.mask_truncated_completions,
            "threads": torch.get_num_threads(),
        }
        return {
            "versions": versions("trl", "torch", "transformers", "peft", "accelerate"),
            "settings": {"changed": self.changed, "in effect": kept},
            "stop_ids": sorted(self.trainer.eos_token_ids),
        }

    def generate(self) -> tuple[float, list[list[int]]]:
        """TRL's own generation (transformers `generate`); seconds and completions."""
        ids = [prompt for prompt in self.prompts for _ in range(self.case["group_size"])]
        started = time.perf_counter()
        completions, _ = self.trainer._generate_single_turn(ids, None, {}, self.case["group_size"])
        return time.perf_counter() - started, completions

    def roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [self.prompts[int(prompt)] for prompt in prompts]
        expected = [str(k) for k in range(len(self.prompts)) for _ in range(self.case["group_size"])]
        if prompts != expected:
            raise ValueError("TRL hands the prompts over in another order than expected")
        if self.question["do"] == "step":
            seconds, completions = self.generate()
            self.answer = {"generate_s": seconds, "rollouts": completions}
        else:
            self.answer = {}
            completions = [list(tokens) for tokens in self.question["rollouts"]]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    def reward(self, **_: Any) -> list[float]:
        return [value for row in self.question["rewards"] for value in row]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for what to do; asking for a step or an update lets the trainer go on."""
        while True:
            question = self.wire.read()
            if question["do"] == STOP:
                raise StopAskedError
            if question["do"] in ("step", "update", "gradient"):
                self.question = question
                self.started = time.perf_counter()
                return
            if question["do"] == "generate":
                seconds, completions = self.generate()
                self.wire.answer({"generate_s": seconds, "rollouts": completions})
            elif question["do"] == "weights":
                self._load(question["path"])
                self.wire.answer({})
            else:
                raise ValueError(f"unknown question {question['do']!r}")

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self.question["do"] == "gradient":
            grads = {name: parameter.grad for name, parameter in self._trained().items() if parameter.grad is not None}
            safetensors.save_file(
                {name: gradient.float().contiguous() for name, gradient in grads.items()}, self.question["path"]
            )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self.started
        kind = self.question["do"]
        given = list(self.trainer._logs["advantages"])
        if kind == "step":
            self.answer |= {"step_s": seconds, "update_s": seconds - self.answer["generate_s"]}
        elif kind == "update":
            self.answer |= {"update_s": seconds}
        self.wire.answer(self.answer | {"advantages": given, "peak": peak_resident()})

    def _trained(self) -> dict[str, Any]:
        """Trained parameters under the names of the bare model."""
        parameters = self.trainer.model.named_parameters()
        return {
            name.removeprefix("base_model.model."): parameter
            for name, parameter in parameters
            if parameter.requires_grad
        }

    def _load(self, path: str) -> None:
        given = safetensors.load_file(path)
        parameters = self._trained()
        if given.keys() != parameters.keys():
            raise ValueError(f"other parameters than expected: {sorted(given.keys() ^ parameters.keys())[:3]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(given[name])


def main() -> None:
    wire = Wire()
    try:
        side = Side(wire, wire.read())
        wire.answer(side.facts())
        side.trainer.train()
    except StopAskedError:
        return
    except Exception as error:
        wire.fail(error)
        raise


if __name__ == "__main__":
    main()
