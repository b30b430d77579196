"""Scripts written for TRL run with their imports changed, and each argument has a meaning or a reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl_rewards import rewards_a, rewards_nothing

import coterie
from cluster_hosts import ThreadHost
from coterie.build import services
from coterie.compat.trl import GRPOConfig, GRPOTrainer
from coterie.compat.trl.arguments import ANY, ARGUMENTS, EXTRA, HELDOUT, LORA, TRAINER
from coterie.compat.trl.config import length_of, lora_of, schedule_of, settings_of
from coterie.config.keys import settings
from coterie.errors import ConfigError, RunError
from coterie.rewards import by_value
from runs_for_tests import make_model

OF_TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_grpo_config.json").read_text())
"""Every argument of TRL 1.16's GRPOConfig with its default, those of transformers' TrainingArguments among them."""
OLDER = {"warmup_ratio"}
QUICK_START = """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")

# Define the reward function, which rewards completions that are close to 20 characters
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]

training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", logging_steps=10)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=reward_len,
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
"""
"""Of TRL's documentation."""
OFFLINE = {
    "from trl import": "from coterie.compat.trl import",
    "from datasets import": "from offline_datasets import",
    "Qwen/Qwen2-0.5B-Instruct": "tiny",
    "logging_steps=10": "logging_steps=4, learning_rate=2e-2, max_completion_length=24, max_steps=12, "
    "per_device_train_batch_size=32",
}
"""The changed imports, and what a machine without network and with little time needs."""
DATASETS = """
class Dataset:
    def __len__(self):
        return 40

    def to_list(self):
        return [{"prompt": f"how many legs {k}?", "completion": str(k)} for k in range(40)]


def load_dataset(name, split):
    return Dataset()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COTERIE_THREADS", "1")
    (tmp_path / "tiny").symlink_to(model)
    (tmp_path / "offline_datasets.py").write_text(DATASETS)
    by_value._payloads.clear()
    yield tmp_path
    sys.modules.pop("offline_datasets", None)


@pytest.mark.filterwarnings("ignore:prompts are texts")
def test_the_quick_start_learns(folder: Path) -> None:
    script = QUICK_START
    for text, other in OFFLINE.items():
        assert text in script
        script = script.replace(text, other)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(script, "train_grpo.py", "exec"), names)
    trainer = names["trainer"]
    history = trainer.state.log_history
    assert [entry["step"] for entry in history] == [4, 8, 12, 12]
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    assert rewards[-1] > rewards[0] + 3
    assert {"loss", "grad_norm", "learning_rate", "reward_std", "rewards/reward_len/mean", "entropy"} <= set(history[0])
    assert {"completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std"} <= set(history[0])
    assert history[-1]["train_runtime"] > 0
    run = trainer.run
    assert run.path.parent == folder / "Qwen2-0.5B-GRPO"
    assert run.config.collect.group_size == 8
    trainer.save_model("Qwen2-0.5B-GRPO")
    assert (folder / "Qwen2-0.5B-GRPO" / "config.json").is_file()


class Watch:
    """A TrainerCallback of transformers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.calls.append("begin")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.calls.append("eval" if "eval_reward" in logs else "log")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.calls.append(f"step {state.global_step}")
        control.should_training_stop = state.global_step == 2
        return control


def conversations(first: int, last: int) -> list[dict[str, Any]]:
    prompts = ([{"role": "user", "content": f"how many legs {k}?"}] for k in range(first, last))
    return [{"prompt": prompt, "solution": str(k)} for k, prompt in enumerate(prompts)]


def lora(**changed: Any) -> SimpleNamespace:
    """What peft.LoraConfig has."""
    attributes: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": {"v_proj", "q_proj"},
        "lora_dropout": 0.0,
        "bias": "none",
    }
    attributes |= {"task_type": "CAUSAL_LM", "rank_pattern": {}, "use_dora": False}
    return SimpleNamespace(**attributes | changed)


def test_an_adapter_conversations_and_callbacks(folder: Path) -> None:
    args = GRPOConfig("out", per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4,
                      max_completion_length=6, learning_rate=1e-2, max_steps=5, eval_strategy="steps", eval_steps=2,
                      num_generations_eval=2, logging_steps=1, reward_weights=[2.0, 1.0], run_name="adapter",
                      disable_tqdm=True)  # fmt: skip
    watch = Watch()
    trainer = GRPOTrainer("tiny", [rewards_a, rewards_nothing], args, conversations(0, 12), conversations(50, 52),
                          callbacks=[watch], peft_config=lora())  # fmt: skip
    with pytest.raises(RunError, match=r"call train\(\) first"):
        trainer.save_model()
    before = trainer.evaluate()
    result = trainer.train()
    assert watch.calls == ["begin", "eval", "step 1", "log", "step 2", "log", "log"]
    assert result.global_step == 2
    run = trainer.run
    assert run is not None
    assert run.path == folder / "out" / "adapter"
    assert run.state == "stopped"
    config = run.config
    assert config.model.lora is not None
    assert (config.model.lora.rank, config.model.lora.targets) == (4, ["q_proj", "v_proj"])
    assert [part.weight for part in config.rewards.functions] == [2.0, 1.0]
    assert {part.completions for part in config.rewards.functions} == {"messages"}
    first = run.evaluations[0].reward
    assert first is not None
    assert before["eval_reward"] == pytest.approx(first.value)
    assert trainer.evaluate(conversations(60, 62))["eval_rewards/rewards_a/mean"] >= 0
    trainer.save_model()
    assert (folder / "out" / "adapter_config.json").is_file()
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint=True\) cannot be honoured: coterie\.resume"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(AttributeError, match="no 'accelerator' here"):
        _ = trainer.accelerator


def test_a_loaded_model_and_streams(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained("tiny")
    loaded: Any = AutoModelForCausalLM.from_pretrained("tiny")
    args = GRPOConfig("out", num_generations=4, per_device_train_batch_size=8, max_completion_length=4, max_steps=2,
                      disable_tqdm=True, use_cpu=True)  # fmt: skip
    trainer = GRPOTrainer(loaded, rewards_a, args, iter(conversations(0, 9)), processing_class=tokenizer,
                          settings={"name": "streamed"})  # fmt: skip
    assert trainer.train().global_step == 2
    assert trainer.run is not None
    assert trainer.run.path.name == "streamed"
    assert trainer.model.config.model_type == "llama"
    assert len(trainer._rows) == 4
    assert GRPOTrainer("tiny", rewards_a, args, conversations(0, 9), None, tokenizer)._tokenizer_of_model() is None
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="another chat template"):
        GRPOTrainer("tiny", rewards_a, args, conversations(0, 9), None, tokenizer).train()


def test_settings_put_the_engine_into_a_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the refusal of `use_vllm` says."""
    monkeypatch.setattr(services, "host_for", lambda *args, **options: ThreadHost())
    args = GRPOConfig("out", num_generations=4, per_device_train_batch_size=8, max_completion_length=4, max_steps=2,
                      disable_tqdm=True, use_cpu=True)  # fmt: skip
    apart = {"name": "apart", "cluster.host": "processes", "engine.sleep_mode": True}
    trainer = GRPOTrainer("tiny", rewards_a, args, conversations(0, 9), settings=apart)
    assert trainer.train().global_step == 2
    assert trainer.run is not None
    assert trainer.run.config.cluster.host == "processes"


def test_texts_are_announced(folder: Path) -> None:
    with pytest.warns(UserWarning, match="as one user message, through the chat template"):
        GRPOTrainer("tiny", rewards_a, train_dataset=[{"prompt": "a"}])


def test_every_argument_has_a_row_with_the_default_of_trl() -> None:
    assert set(ARGUMENTS) - OLDER == set(OF_TRL)
    assert {name: argument.default for name, argument in ARGUMENTS.items() if name not in OLDER} == OF_TRL
    for name, argument in ARGUMENTS.items():
        assert argument.note or argument.setting, name
        if argument.setting:
            assert argument.accepted is None, name
            plain = argument.setting.replace(".0", ".*")
            assert plain in settings() or any(key.startswith(f"{plain}.") for key in settings()), name
    for key in (*EXTRA, HELDOUT, *LORA.values()):
        assert key in settings() or any(other.startswith(f"{key}.") for other in settings()), key


@pytest.mark.parametrize("name", [name for name, row in ARGUMENTS.items() if isinstance(row.accepted, tuple)])
def test_what_cannot_be_honoured_is_refused_with_the_reason(name: str) -> None:
    default = OF_TRL[name]
    other: Any = {bool: not default, str: "other"}.get(type(default), 7)
    with pytest.raises(ConfigError, match=rf"^{name} = .* cannot be honoured: .*; leave it out") as refused:
        GRPOConfig(**{name: other})
    assert ARGUMENTS[name].note in str(refused.value)
    assert getattr(GRPOConfig(**{name: default}), name) == default


@pytest.mark.parametrize("name", TRAINER)
def test_what_the_trainer_refuses(name: str) -> None:
    option: dict[str, Any] = {name: 3}
    with pytest.raises(ConfigError, match=f"^{name} = 3 cannot be honoured: "):
        GRPOTrainer("tiny", rewards_a, **option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1}, "no argument 'learning_rat'; did you mean 'learning_rate'"),
        (
            {"max_prompt_length": 64},
            r"'max_prompt_length' in TRL 1\.16: here it is data\.max_prompt_tokens",
        ),
        ({"logging_dir": "logs"}, "no argument 'logging_dir' in TRL 1.16: every step is printed"),
        ({"num_generations": 3}, "must hold whole groups of num_generations = 3"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "make the first a multiple of the second"),
        ({"steps_per_generation": 2, "generation_batch_size": 8}, "say the same twice"),
        (
            {"lr_scheduler_type": "polynomial"},
            "lr_scheduler_type = 'polynomial' cannot be honoured: expected one of 'linear'",
        ),
        ({"optim": "lion_32bit"}, "optim = 'lion_32bit' cannot be honoured"),
        ({"loss_type": "cispo"}, "must be above 1; the ScaleRL paper has epsilon_high=5.0"),
        ({"loss_type": "bnpo", "gradient_accumulation_steps": 2}, "loss_type='dapo', the mean over all tokens"),
        ({"beta": 0.1, "importance_sampling_level": "sequence"}, "give use_bias_correction_kl=False"),
        ({"max_completion_length": None}, "a completion needs a limit"),
        ({"model_init_kwargs": {"attn_implementation": "sdpa"}}, r"model_init_kwargs\['attn_implementation'\] cannot"),
        ({"model_init_kwargs": {"dtype": "float16"}}, "expected bfloat16 or float32"),
        ({"gradient_checkpointing_kwargs": {"debug": True}}, r"gradient_checkpointing_kwargs\['debug'\] cannot"),
        ({"sync_ref_model": True, "num_iterations": 3}, "give a multiple of 3"),
    ],
)
def test_values_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_funcs": "org/reward-model"}, "holds 'org/reward-model', a reward model, which cannot be honoured"),
        ({"reward_funcs": [rewards_a, 3]}, "holds 3; expected functions"),
        ({"train_dataset": None}, "train_dataset is missing"),
        ({"train_dataset": iter([])}, "has no length, so max_steps"),
        ({"peft_config": lora(lora_dropout=0.1)}, r"peft_config\.lora_dropout = 0\.1 cannot be honoured"),
        ({"peft_config": lora(target_modules=None)}, "the default of PEFT depends on the model"),
        ({"peft_config": lora(peft_type="PREFIX_TUNING")}, "LoRA is the only adapter"),
        ({"callbacks": [SimpleNamespace()]}, "has no method on_"),
        ({"args": SimpleNamespace()}, r"args is a types\.SimpleNamespace; expected coterie\.compat\.trl\.GRPOConfig"),
    ],
)
def test_what_a_trainer_is_refused_for(given: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"model": "tiny", "reward_funcs": rewards_a, "train_dataset": conversations(0, 9), **given}
    with pytest.raises(ConfigError, match=message):
        GRPOTrainer(**call)


def translated(rows: int = 100, **arguments: Any) -> dict[str, Any]:
    args = GRPOConfig(**arguments)
    return settings_of(args) | schedule_of(args, length_of(args, rows))


def test_the_defaults_are_those_of_trl() -> None:
    assert (
        translated().items()
        >= {
            "steps": 300,
            "seed": 42,
            "collect.prompts_per_step": 1,
            "collect.group_size": 8,
            "sampling.max_tokens": 512,
            "optim.lr": 1e-6,
            "optim.beta2": 0.999,
            "optim.schedule": "linear",
            "optim.warmup": 0,
            "optim.minibatches": 1,
            "optim.gradient_checkpointing": True,
            "objective.loss_agg_mode": "token-mean",
            "objective.loss": "clip",
            "objective.clip_low": 0.2,
            "objective.clip_high": 0.2,
            "objective.kl_beta": 0.0,
            "advantage.scale": "group_std",
            "rollout_correction.kind": "none",
            "checkpoint.every": 500,
            "checkpoint.keep": 300,
        }.items()
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_train_epochs": 1, "gradient_accumulation_steps": 4}, {"steps": 25, "collect.prompts_per_step": 4}),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "steps_per_generation": 2},
         {"collect.prompts_per_step": 2, "optim.minibatches": 1, "steps": 150}),
        ({"steps_per_generation": 4, "num_iterations": 2, "max_steps": 16, "save_steps": 4},
         {"collect.prompts_per_step": 4, "optim.minibatches": 4, "optim.epochs": 2, "steps": 2, "checkpoint.every": 1}),
        ({"max_steps": 50, "warmup_steps": 0.1, "save_strategy": "no", "save_total_limit": 2},
         {"optim.warmup": 5, "checkpoint.every": 0, "checkpoint.keep": 2}),
        ({"max_steps": 50, "warmup_ratio": 0.2, "lr_scheduler_type": "constant_with_warmup"},
         {"optim.warmup": 10, "optim.schedule": "constant"}),
        ({"eval_strategy": "epoch", "num_generations_eval": 2}, {"eval.every": 100, "eval.samples": 2}),
        ({"eval_strategy": "steps", "eval_steps": 0.5}, {"eval.every": 150}),
        ({"eval_strategy": "steps"}, {"eval.every": 10, "eval.samples": 8}),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"objective.clip_low": 1.0, "objective.clip_high": 4.0}),
        ({"loss_type": "dr_grpo", "scale_rewards": False},
         {"objective.loss_agg_mode": "seq-mean-token-sum-norm", "advantage.scale": "none"}),
        ({"loss_type": "sapo"}, {"objective.loss_agg_mode": "seq-mean-token-mean", "objective.loss": "sapo"}),
        ({"beta": 0.04}, {"objective.kl_beta": 0.04, "objective.kl_estimator": "k3_unbiased"}),
        ({"beta": 0.04, "use_bias_correction_kl": False}, {"objective.kl_estimator": "k3"}),
        ({"multi_objective_aggregation": "normalize_then_sum"},
         {"advantage.per_reward": True, "advantage.whiten": "samples"}),
        ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 64},
         {"reference.sync_every": 64, "reference.sync_ema": 0.6}),
        ({"use_adaptive_entropy": True, "entropy_target": 0.5}, {"objective.entropy_target": 0.5}),
        ({"bf16": True, "use_cpu": True}, {"model.dtype": "bfloat16", "model.device": "cpu"}),
        ({"bf16": False, "model_init_kwargs": {"revision": "v1"}}, {"model.dtype": "float32", "model.revision": "v1"}),
        ({"optim": "adamw_8bit", "max_grad_norm": 0.0}, {"optim.moments": "8bit", "optim.max_grad_norm": 1e9}),
    ],
)  # fmt: skip
def test_what_arguments_are_translated_to(arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    assert translated(**arguments).items() >= expected.items()


def test_lengths_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="3 rows and a generation batch needs 4 prompts"):
        translated(3, gradient_accumulation_steps=4)
    with pytest.raises(ConfigError, match="max_steps = 10 ends within a collected batch, which makes 4"):
        translated(steps_per_generation=4, max_steps=10)


def test_an_adapter_of_peft() -> None:
    peft: Any = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    assert lora_of(adapter) == dict(zip(LORA.values(), [8, 16.0, ["q_proj", "v_proj"]], strict=True))
    for change in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}):
        with pytest.raises(ConfigError, match=rf"peft_config\.{next(iter(change))} = .* cannot be honoured"):
            lora_of(peft.LoraConfig(target_modules="all-linear", **change))


def test_translated_settings_are_settings() -> None:
    from coterie.config.load import load_with

    adapter = lora_of(lora())
    config = load_with(None, {}, {**translated(), **adapter}, source="test", env={}).config
    assert config.model.lora is not None
    assert config.model.lora.alpha == 8.0


def test_attributes_are_arguments() -> None:
    args = GRPOConfig("out", learning_rate=2e-5, lr_scheduler_type=SimpleNamespace(value="constant"))
    assert repr(args) == "GRPOConfig(output_dir='out', learning_rate=2e-05, lr_scheduler_type='constant')"
    assert GRPOConfig().include_for_metrics is not GRPOConfig().include_for_metrics
    with pytest.raises(AttributeError, match="no argument 'learning'"):
        _ = args.learning
    with pytest.raises(ConfigError, match="no argument 'learning'; did you mean"):
        args.learning = 1
    args.use_vllm = True
    with pytest.raises(ConfigError, match=r"use_vllm = True cannot be honoured: .* has vLLM sample"):
        args.check()
    assert ARGUMENTS["full_determinism"].accepted == ANY
    assert GRPOConfig(full_determinism=True).full_determinism


def table() -> list[str]:
    """Rows of the page: arguments that share what they are here stand in one."""
    shared: dict[tuple[str, str], list[str]] = {}
    for name, argument in {**ARGUMENTS, **TRAINER}.items():
        here = f"`{argument.setting}`" if argument.setting else "accepted"
        here = "refused" if isinstance(argument.accepted, tuple) else here
        shared.setdefault((here, argument.note), []).append(f"`{name}={argument.default!r}`")
    return [f"| {', '.join(names)} | {here} | {note} |" for (here, note), names in shared.items()]


def test_the_table_of_the_page_is_that_of_the_rows() -> None:
    page = (Path(coterie.__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    section = page[page.index("## Porting a TRL script") :]
    rows = re.findall(r"^\| `.*\|$", section.partition("\n## ")[0] or section, re.MULTILINE)
    assert [row for row in table() if row not in rows] == []


if __name__ == "__main__":  # the rows of the page
    print("\n".join(table()))
