"""TRL's GRPOConfig, and its translation to settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.compat.trl import arguments as names
from coterie.compat.trl.arguments import ARGUMENTS, LOSSES, OPTIMIZERS, SCALES, setting
from coterie.config.foreign import foreign
from coterie.errors import ConfigError
from coterie.text import did_you_mean

FOLDER = "trainer_output"
"""Folder of the runs where no `output_dir` is given, as in transformers."""
SAME = (
    "learning_rate",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "gradient_checkpointing",
    "torch_compile",
    "seed",
    "num_generations",
    "num_iterations",
    "temperature",
    "beta",
    "epsilon",
    "delta",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "mask_truncated_completions",
    "top_entropy_quantile",
    "entropy_coef",
    "off_policy_mask_threshold",
)
"""Arguments whose value is the setting's."""
NO_CLIPPING = 1e9
"""A gradient norm that no update reaches."""


class GRPOConfig:
    """The arguments of TRL 1.16's GRPOConfig, transformers' TrainingArguments among them, with TRL's defaults.

    docs/python.md says of each what it is here. Attributes have the arguments' names.

    Args:
        output_dir: folder of the runs; `trainer_output` when left out.
        arguments: by name.

    Raises:
        ConfigError: an argument that TRL does not have, or a value that cannot be honoured, with the reason.
    """

    def __init__(self, output_dir: str | None = None, **arguments: Any) -> None:
        for name, value in {**names.defaults(), **arguments, "output_dir": output_dir}.items():
            setattr(self, name, value)
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ARGUMENTS:
            raise ConfigError(f"GRPOConfig has no argument {name!r}{_hint(name)}")
        super().__setattr__(name, _plain(value))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"GRPOConfig has no argument {name!r}{_hint(name)}")

    def __repr__(self) -> str:
        changed = {name: value for name, value in self.to_dict().items() if value != ARGUMENTS[name].default}
        return f"GRPOConfig({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Every argument by name."""
        return {name: getattr(self, name) for name in ARGUMENTS}

    def check(self) -> None:
        """Refuse what has no meaning here; also called before training, since attributes can be changed.

        Raises:
            ConfigError: names the argument, the reason and the remedy.
        """
        for name, argument in ARGUMENTS.items():
            argument.check(name, getattr(self, name))
        batch_of(self)
        settings_of(self)


def _hint(name: str) -> str:
    row = foreign((name,))
    if row is not None:
        words = [f"here it is {row.key}"] if row.key else []
        return f" in TRL 1.16: {', '.join([*words, row.note] if row.note else words)}"
    return did_you_mean(name, ARGUMENTS) or " in TRL 1.16"


def _plain(value: Any) -> Any:
    """The text of an enumeration's member, such as transformers' `SchedulerType.LINEAR`."""
    text = getattr(value, "value", value)
    return text if isinstance(text, str) else value


def _choice(args: GRPOConfig, name: str, choices: Mapping[Any, Any]) -> Any:
    value = getattr(args, name)
    if isinstance(value, list | dict) or value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ConfigError(f"{name} = {value!r} cannot be honoured: expected one of {expected} ({ARGUMENTS[name].note})")
    return choices[value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step collects and how often it is trained on."""

    generation: int
    """Prompts of one of TRL's generation batches."""
    prompts: int
    """Prompts of a step here: of several generation batches where one optimizer step takes several."""
    minibatches: int
    updates: int
    """Optimizer steps of a step here: TRL's steps."""
    per_generation: int
    """TRL's steps_per_generation."""


def batch_of(args: GRPOConfig) -> Batch:
    """TRL's batch in prompts and optimizer steps.

    Raises:
        ConfigError: the sizes do not divide each other, as TRL demands, or an optimizer step would cut a batch.
    """
    size, accumulation, group = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.num_generations
    if args.generation_batch_size is not None and args.steps_per_generation is not None:
        raise ConfigError("generation_batch_size and steps_per_generation say the same twice; give one of them")
    rollouts = args.generation_batch_size or size * (args.steps_per_generation or accumulation)
    if rollouts % size or rollouts % group or group < 2:
        raise ConfigError(
            f"a generation batch of {rollouts} completions (per_device_train_batch_size = {size} × "
            f"steps_per_generation) must hold whole groups of num_generations = {group}, at least 2, and whole batches "
            f"of {size}; change per_device_train_batch_size, gradient_accumulation_steps or num_generations"
        )
    parts = rollouts // size
    if parts % accumulation == 0:
        minibatches, collected = parts // accumulation, rollouts
    elif accumulation % parts == 0 and args.num_iterations == 1 and not _over_batches(args):
        minibatches, collected = 1, size * accumulation
    else:
        raise ConfigError(
            f"steps_per_generation = {parts} and gradient_accumulation_steps = {accumulation}: an optimizer step here "
            "belongs to one collected batch; make the first a multiple of the second"
        )
    return Batch(
        generation=rollouts // group,
        prompts=collected // group,
        minibatches=minibatches,
        updates=minibatches * args.num_iterations,
        per_generation=parts,
    )


def _over_batches(args: GRPOConfig) -> bool:
    """Whether an advantage depends on which groups are collected together."""
    return args.scale_rewards == "batch" or args.multi_objective_aggregation != "sum_then_normalize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long a run is."""

    steps: int
    """Steps here."""
    updates: int
    """Optimizer steps, TRL's `max_steps`."""
    updates_per_epoch: int


def length_of(args: GRPOConfig, rows: int) -> Length:
    """How many steps a data set of so many rows makes, counted as transformers' Trainer counts them.

    Raises:
        ConfigError: a batch needs more rows than there are, or `max_steps` ends within a collected batch.
    """
    batch = batch_of(args)
    generations = rows // batch.generation
    if not generations:
        raise ConfigError(
            f"train_dataset has {rows} rows and a generation batch needs {batch.generation} prompts; give more rows, "
            "or lower per_device_train_batch_size or gradient_accumulation_steps"
        )
    micro_batches = generations * args.num_iterations * batch.per_generation
    per_epoch = math.ceil(micro_batches / args.gradient_accumulation_steps)
    updates = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if args.max_steps > 0 and updates % batch.updates:
        raise ConfigError(
            f"max_steps = {updates} ends within a collected batch, which makes {batch.updates} optimizer steps; give a "
            f"multiple of {batch.updates}"
        )
    return Length(steps=math.ceil(updates / batch.updates), updates=updates, updates_per_epoch=per_epoch)


def settings_of(args: GRPOConfig) -> dict[str, Any]:
    """The settings that depend on the arguments alone, by dotted key.

    Raises:
        ConfigError: a value that cannot be honoured.
    """
    batch = batch_of(args)
    settings = {setting(name): getattr(args, name) for name in SAME} | names.EXTRA
    settings |= {setting(name): _choice(args, name, choices) for name, choices in _CHOICES.items()}
    settings |= dict(zip(names.LOSS_SETTINGS, _choice(args, "loss_type", LOSSES), strict=True))
    settings |= {
        setting("per_device_train_batch_size"): batch.prompts,
        setting("steps_per_generation"): batch.minibatches,
        setting("max_grad_norm"): args.max_grad_norm or NO_CLIPPING,
        setting("epsilon_high"): args.epsilon if args.epsilon_high is None else args.epsilon_high,
        setting("num_generations_eval"): args.num_generations_eval or args.num_generations,
        names.EVAL_TEMPERATURE: args.temperature,
    }
    for part in (_completions, _objective, _entropy, _reference, _model):
        settings |= part(args, batch)
    return settings


_CHOICES: dict[str, Mapping[Any, Any]] = {
    "scale_rewards": SCALES,
    "optim": OPTIMIZERS,
    "multi_objective_aggregation": {"sum_then_normalize": False, "normalize_then_sum": True},
    "lr_scheduler_type": {
        "linear": "linear",
        "cosine": "cosine",
        "constant": "constant",
        "constant_with_warmup": "constant",
    },
    "importance_sampling_level": {"token": "token", "sequence": "sequence"},
}


def _completions(args: GRPOConfig, batch: Batch) -> dict[str, Any]:
    if not isinstance(args.max_completion_length, int):
        raise ConfigError(
            f"max_completion_length = {args.max_completion_length!r} cannot be honoured: a completion needs a limit, "
            "for which memory is planned; give a number of tokens"
        )
    return {setting("max_completion_length"): args.max_completion_length}


def _objective(args: GRPOConfig, batch: Batch) -> dict[str, Any]:
    settings: dict[str, Any] = {
        names.KL_ESTIMATOR: "k3_unbiased" if args.use_bias_correction_kl and args.beta else "k3",
    }
    if args.multi_objective_aggregation == "normalize_then_sum":
        settings |= {names.WHITEN: "samples", setting("scale_rewards"): SCALES["group"]}
    if args.beta and args.use_bias_correction_kl and args.importance_sampling_level == "sequence":
        raise ConfigError(
            "use_bias_correction_kl = True cannot be honoured with importance_sampling_level = 'sequence': the KL is "
            "weighed by each token's ratio here; give use_bias_correction_kl=False"
        )
    if args.loss_type == "bnpo" and args.gradient_accumulation_steps > 1:
        raise ConfigError(
            f"loss_type = 'bnpo' cannot be honoured with gradient_accumulation_steps = "
            f"{args.gradient_accumulation_steps}: it takes the mean over the tokens of each micro-batch, and here the "
            "loss does not depend on how a batch is cut; give loss_type='dapo', the mean over all tokens"
        )
    if args.loss_type == "cispo":
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        if high <= 1:
            raise ConfigError(
                f"epsilon_high = {high} cannot be honoured with loss_type = 'cispo', where it is the largest weight "
                "itself and must be above 1; the ScaleRL paper has epsilon_high=5.0"
            )
        settings |= {setting("epsilon"): 1.0, setting("epsilon_high"): high - 1}
    return settings


def _entropy(args: GRPOConfig, batch: Batch) -> dict[str, Any]:
    return {setting("entropy_target"): args.entropy_target} if args.use_adaptive_entropy else {}


def _reference(args: GRPOConfig, batch: Batch) -> dict[str, Any]:
    if not args.sync_ref_model:
        return {}
    every = args.ref_model_sync_steps
    if every % batch.updates:
        raise ConfigError(
            f"ref_model_sync_steps = {every} falls within a collected batch, which makes {batch.updates} optimizer "
            f"steps; give a multiple of {batch.updates}"
        )
    share = args.ref_model_mixup_alpha
    return {
        setting("ref_model_sync_steps"): every // batch.updates,
        setting("ref_model_mixup_alpha"): share if share < 1 else None,
    }


def _model(args: GRPOConfig, batch: Batch) -> dict[str, Any]:
    settings: dict[str, Any] = {
        setting("bf16"): {None: "auto", True: "bfloat16", False: "float32"}[args.bf16],
        setting("use_cpu"): "cpu" if args.use_cpu else "auto",
    }
    chosen = dict(args.model_init_kwargs or {})
    for name in ("dtype", "torch_dtype"):
        dtype = str(chosen.pop(name, "auto")).removeprefix("torch.")
        if dtype not in ("auto", "float32", "bfloat16", "None"):
            raise ConfigError(f"model_init_kwargs[{name!r}] = {dtype} cannot be honoured: expected bfloat16 or float32")
        if dtype == "bfloat16":
            settings[setting("bf16")] = dtype
    settings |= {setting("model_init_kwargs"): chosen.pop("revision")} if "revision" in chosen else {}
    for kwargs, name in ((chosen, "model_init_kwargs"), (dict(args.gradient_checkpointing_kwargs or {}), _RECOMPUTE)):
        rest = set(kwargs) - {"use_reentrant"} if name == _RECOMPUTE else set(kwargs)
        if rest:
            raise ConfigError(f"{name}[{min(rest)!r}] cannot be honoured: {ARGUMENTS[name].note}; leave it out")
    return settings


_RECOMPUTE = "gradient_checkpointing_kwargs"


def schedule_of(args: GRPOConfig, length: Length) -> dict[str, Any]:
    """The settings that depend on the length of the run, by dotted key.

    Raises:
        ConfigError: an unknown strategy.
    """
    warmup = args.warmup_steps or args.warmup_ratio
    steps = math.ceil(length.updates * warmup) if warmup < 1 else int(warmup)
    evaluating = _interval(args, length, "eval_strategy", args.eval_steps or args.logging_steps)
    return {
        setting("max_steps"): length.steps,
        setting("warmup_steps"): 0 if args.lr_scheduler_type == "constant" else steps,
        setting("eval_steps"): evaluating,
        setting("save_steps"): _interval(args, length, "save_strategy", args.save_steps),
        setting("save_total_limit"): args.save_total_limit or length.steps,
    }


def _interval(args: GRPOConfig, length: Length, strategy: str, updates: float) -> int:
    """Steps here between two evaluations or checkpoints; 0 = none in between."""
    intervals: dict[str, Callable[[], float]] = {
        "no": lambda: 0,
        "epoch": lambda: length.updates_per_epoch,
        "steps": lambda: length.updates * updates if updates < 1 else updates,
    }
    return math.ceil(_choice(args, strategy, intervals)() / batch_of(args).updates)


_NEUTRAL: tuple[Any, ...] = (None, False, 0, "none", {}, [])
"""Values of a PEFT setting that ask for nothing."""
_ABOUT = ("task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
_ABOUT += ("peft_version", "runtime_config", "loftq_config", "megatron_core")
"""Settings of PEFT that describe the adapter."""


def lora_of(adapter: Any) -> dict[str, Any]:
    """The settings of a PEFT configuration, by dotted key: of its attributes r, lora_alpha and target_modules.

    Raises:
        ConfigError: it is no LoRA, names no modules, or sets something else.
    """
    kind = _plain(getattr(adapter, "peft_type", "LORA"))
    if kind != "LORA" or not hasattr(adapter, "r"):
        raise ConfigError(f"peft_config is a {type(adapter).__name__}; expected a LoraConfig: LoRA is the only adapter")
    targets = adapter.target_modules
    if targets is None or (isinstance(targets, str) and targets != "all-linear"):
        raise ConfigError(
            f"peft_config.target_modules = {targets!r} cannot be honoured: the default of PEFT depends on the model, "
            'and patterns are not read; name the modules, e.g. ["q_proj", "v_proj"], or "all-linear"'
        )
    defaults = vars(type(adapter)())
    for name, value in vars(adapter).items():
        if name not in (*names.LORA, *_ABOUT) and value != defaults.get(name) and value not in _NEUTRAL:
            raise ConfigError(
                f"peft_config.{name} = {value!r} cannot be honoured: an adapter is plain LoRA without dropout; leave "
                "it out"
            )
    values = {"r": adapter.r, "lora_alpha": float(adapter.lora_alpha)}
    values["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return {names.LORA[name]: value for name, value in values.items()}
