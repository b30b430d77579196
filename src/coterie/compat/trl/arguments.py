"""The arguments of TRL 1.16's GRPOConfig and GRPOTrainer with TRL's defaults, and what each is here.

One row an argument. Its setting and note are those of `coterie.config.foreign`, unless they are written here: what is
said of a name in a TRL script goes further than the hint behind an unknown setting.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from coterie.config.foreign import FOREIGN, Foreign
from coterie.errors import ConfigError

ANY = "any value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of TRL."""

    default: Any
    """TRL's."""
    setting: str = ""
    """What it is translated to; empty where there is nothing to set."""
    note: str = ""
    """What is different about it, or why it is refused."""
    accepted: tuple[Any, ...] | str | None = None
    """The only values that are taken, `ANY` where each means the same here; None where it is translated."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that has no meaning here.

        Raises:
            ConfigError: names the argument, the reason and the remedy.
        """
        if isinstance(self.accepted, tuple) and not any(_same(value, other) for other in self.accepted):
            remedy = "leave it out" if self.default is None else f"leave it out, or give TRL's default {self.default!r}"
            raise ConfigError(f"{name} = {value!r} cannot be honoured: {self.note}; {remedy}")


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


_SETTINGS = {
    "delta": "objective.delta",
    "entropy_target": "objective.entropy_target",
    "gradient_checkpointing": "optim.gradient_checkpointing",
    "max_grad_norm": "optim.max_grad_norm",
    "optim": "optim.moments",
    "scale_rewards": "advantage.scale",
    "seed": "seed",
    "temperature": "sampling.temperature",
    "weight_decay": "optim.weight_decay",
}
"""Settings of the names that `FOREIGN` does not list, since a setting here ends in the same name."""

EXTRA = {
    "rollout_correction.kind": "none",
    "rewards.timeout_s": 600.0,
    "sampling.timeout_s": 86_400.0,
    "data.max_prompt_tokens": 1 << 20,
}
"""Settings without an argument in TRL, where TRL behaves otherwise than the defaults here: without vLLM it corrects no
mismatch, it waits for rewards and completions, and takes prompts of any length."""

KL_ESTIMATOR = "objective.kl_estimator"
LOSS = "objective.loss"
DEVICE = "model.device"
WHITEN = "advantage.whiten"
EVAL_TEMPERATURE = "eval.temperature"
HELDOUT = "data.heldout"
LORA = {"r": "model.lora.rank", "lora_alpha": "model.lora.alpha", "target_modules": "model.lora.targets"}
"""Settings that follow from a value of an argument, or from several arguments."""

SCALES = {"group": "group_std", "batch": "batch_std", "none": "none", True: "group_std", False: "none"}
"""`scale_rewards` → advantage.scale."""

LOSSES: dict[str, tuple[str, str]] = {
    "grpo": ("seq-mean-token-mean", "clip"),
    "dapo": ("token-mean", "clip"),
    "bnpo": ("token-mean", "clip"),
    "dr_grpo": ("seq-mean-token-sum-norm", "clip"),
    "luspo": ("seq-mean-token-sum", "clip"),
    "sapo": ("seq-mean-token-mean", "sapo"),
    "cispo": ("token-mean", "cispo"),
    "vespo": ("token-mean", "vespo"),
}
"""`loss_type` → objective.loss_agg_mode and objective.loss."""
LOSS_SETTINGS = ("objective.loss_agg_mode", LOSS)

OPTIMIZERS = {
    "adamw_torch": "float32",
    "adamw_torch_fused": "float32",
    "adamw_8bit": "8bit",
    "adamw_bnb_8bit": "8bit",
    "paged_adamw_8bit": "8bit",
}
"""`optim` → optim.moments."""


def _row(name: str, default: Any, note: str | None = None, setting: str | None = None) -> Argument:
    hint = FOREIGN.get(name, Foreign(_SETTINGS.get(name, "")))
    return Argument(
        default=default,
        setting=hint.key if setting is None else setting,
        note=hint.note if note is None else note,
    )


def _translated(**defaults: Any) -> dict[str, Argument]:
    """Arguments that a setting stands for; a default may come as (default, note) or (default, note, setting)."""
    return {
        name: _row(name, *(default if isinstance(default, tuple) else (default,))) for name, default in defaults.items()
    }


def _fixed(note: str = "", **defaults: Any) -> dict[str, Argument]:
    """Arguments of which only TRL's default is accepted.

    Args:
        note: the reason; that of `FOREIGN` when left out.
    """
    return {
        name: Argument(default=default, note=note or FOREIGN[name].note, accepted=(default,))
        for name, default in defaults.items()
    }


def _absent(note: str, *names: str) -> dict[str, Argument]:
    """Arguments that TRL leaves out by default, and that must be left out here."""
    return _fixed(note, **dict.fromkeys(names))


def _also(argument: Argument, *values: Any, note: str = "") -> Argument:
    """The same with further values that come to the same here."""
    assert isinstance(argument.accepted, tuple)
    return Argument(default=argument.default, note=note or argument.note, accepted=(*argument.accepted, *values))


def _satisfied(note: str, **defaults: Any) -> dict[str, Argument]:
    """Arguments of which every value comes to the same here."""
    return {name: Argument(default=default, note=note, accepted=ANY) for name, default in defaults.items()}


_BATCH_NOTE = "a generation batch is per_device_train_batch_size × steps_per_generation completions"
_DATALOADER = "data is prepared once, before the first step: there is no data loader"
_LINEAR = "`linear`, `constant` or `constant_with_warmup`; no other schedule is here"
_ENGINES = (
    'the trainer has an engine of its own; `settings={"engine.name": "vllm", "cluster.host": "processes"}` has vLLM '
    "sample, with engine.vllm for its arguments (docs/scale.md)"
)
_RANKS = (
    'the script is one process; `settings={"cluster.host": "processes", "cluster.learners": 2}` has several ranks, and '
    'cluster.strategy = "fsdp" shards (docs/scale.md)'
)
_TRACKERS = "metrics are in the run's folder; `settings` takes trackers (docs/trackers.md)"
_MEMORY = "memory is planned before the first step"
_ONCE = "the step's metrics are printed, logged and stored"

ARGUMENTS: dict[str, Argument] = {
    # the run
    **_translated(
        output_dir=(None, "the folder of the runs, `trainer_output` when left out; each `train()` makes a run in it"),
        run_name=(None, "the run's folder in `output_dir`; a numbered one when left out. Never overwritten"),
        seed=(42, "prompts and completions are drawn in another order than TRL's"),
    ),
    **_satisfied("TRL's trainer does not read it either", do_train=False, do_eval=False, do_predict=False),
    **_satisfied("a run repeats bit for bit on the same machine anyway", full_determinism=False),
    **_fixed("every draw derives from `seed`", data_seed=None),
    **_fixed(
        "`coterie.resume(trainer.run)` continues a run from its newest checkpoint",
        resume_from_checkpoint=None,
        restore_callback_states_from_checkpoint=False,
        ignore_data_skip=False,
    ),
    # the model
    **_translated(
        model_init_kwargs=(
            None,
            "`revision`, `dtype` and `torch_dtype` alone; the weights that are updated are float32, as TRL loads them",
            "model.revision",
        ),
        bf16=(None, "None: bfloat16 where the machine computes it; `True`: always; `False`: float32", "model.dtype"),
        use_cpu=(False, "", DEVICE),
        gradient_checkpointing=True,
        torch_compile=False,
    ),
    "gradient_checkpointing_kwargs": Argument(
        default=None, note="`use_reentrant` alone, which changes no number", setting="", accepted=None
    ),
    **_fixed(
        fp16=False,
        tf32=None,
        trust_remote_code=False,
        router_aux_loss_coef=None,
        cast_lm_head_to_fp32=False,
        use_liger_kernel=False,
        liger_kernel_config=None,
        use_cache=False,
        torch_empty_cache_steps=None,
    ),
    **_fixed("each layer is compiled with torch's defaults", torch_compile_backend=None, torch_compile_mode=None),
    **_satisfied("dropout is always off", disable_dropout=False),
    # data
    **_fixed(shuffle_dataset=True, remove_unused_columns=False, label_names=None, pad_to_multiple_of="auto"),
    **_fixed(
        _DATALOADER,
        dataloader_drop_last=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=True,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
        dataloader_multiprocessing_context=None,
        dataloader_in_order=True,
        train_sampling_strategy="random",
        length_column_name="length",
    ),
    # batches and steps
    **_translated(
        num_generations=8,
        max_completion_length=512,
        per_device_train_batch_size=(8, f"{_BATCH_NOTE}; over num_generations, it is the prompts a step"),
        gradient_accumulation_steps=(
            1,
            "also steps_per_generation, where neither that nor the next is set",
            FOREIGN["per_device_train_batch_size"].key,
        ),
        generation_batch_size=(None, _BATCH_NOTE),
        steps_per_generation=(None, "divided by gradient_accumulation_steps: optimizer steps a collected batch"),
        num_iterations=1,
        max_steps=(
            -1,
            "counts optimizer steps, of which a step here makes steps_per_generation / "
            "gradient_accumulation_steps × num_iterations",
        ),
        num_train_epochs=(3.0, "steps are counted from the length of train_dataset, as TRL counts them"),
    ),
    **_fixed("the generation batch must hold whole groups; TRL refuses it too", auto_find_batch_size=False),
    # sampling
    **_translated(temperature=(1.0, "")),
    **_fixed("the sampler must be the policy itself: training needs 1", top_p=1.0),
    **_fixed("the sampler must be the policy itself: training needs 0", top_k=0),
    **_fixed(min_p=None, repetition_penalty=1.0, generation_kwargs=None, chat_template_kwargs=None),
    **_fixed(
        _ENGINES,
        use_vllm=False,
        vllm_mode="colocate",
        vllm_model_impl="vllm",
        vllm_enable_sleep_mode=False,
        vllm_structured_outputs_regex=None,
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
        vllm_server_timeout=240.0,
        vllm_group_port=51216,
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=None,
        vllm_tensor_parallel_size=1,
    ),
    **_fixed(
        use_transformers_continuous_batching=False,
        transformers_continuous_batching_config=None,
        use_transformers_paged=False,
        cache_implementation=None,
        ds3_gather_for_generation=True,
    ),
    **_fixed(
        "it acts with vLLM alone; `settings` takes rollout_correction.kind",
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_cap=None,
    ),
    **_fixed(FOREIGN["max_tool_calling_iterations"].note, max_tool_calling_iterations=None),
    # optimizer
    **_translated(
        learning_rate=1e-6,
        lr_scheduler_type=("linear", _LINEAR),
        warmup_steps=(
            0,
            "optimizer steps, or a share of them below 1; the first step has the rate lr / warm-up, not 0",
        ),
        warmup_ratio=(0.0, "the name that transformers 4 had for such a share"),
        optim=(
            "adamw_torch_fused",
            "AdamW in float32 or 8 bits, by the names " + ", ".join(f"`{o}`" for o in OPTIMIZERS),
        ),
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=(1.0, "0 clips nothing"),
    ),
    **_fixed(lr_scheduler_kwargs=None, optim_args=None, optim_target_modules=None),
    **_fixed("the objective has no such term", label_smoothing_factor=0.0, neftune_noise_alpha=None),
    # objective
    **_translated(
        beta=(0.0, "above 0, the estimator is that of use_bias_correction_kl"),
        use_bias_correction_kl=(True, '`True` is "k3_unbiased", `False` "k3"; with the sequence ratio only `False`'),
        epsilon=0.2,
        epsilon_high=(None, "None is epsilon; with cispo, less 1: TRL's is the bound itself"),
        delta=(None, "above 1 + epsilon_high"),
        loss_type=(
            "dapo",
            "; ".join(f"`{name}` is {', '.join(map(repr, LOSSES[name]))}" for name in LOSSES).replace("'", '"')
            + ". The denominator of dapo is that of each optimizer step. `bnpo` with gradient_accumulation_steps = 1",
            "objective.loss_agg_mode",
        ),
        importance_sampling_level="token",
        sapo_temperature_neg=1.05,
        sapo_temperature_pos=1.0,
        scale_rewards=(
            "group",
            '"group" is "group_std", "batch" "batch_std"; 1e-6 is added to a deviation, in TRL 1e-4',
        ),
        multi_objective_aggregation=(
            "sum_then_normalize",
            '"normalize_then_sum" is true, with advantage.whiten = "samples"',
        ),
        mask_truncated_completions=(False, "truncated completions leave every denominator too"),
        top_entropy_quantile=(1.0, "of an optimizer step; in TRL of a micro-batch"),
        entropy_coef=0.0,
        use_adaptive_entropy=(False, "takes entropy_target", "objective.entropy_target"),
        entropy_target=(0.2, "only with use_adaptive_entropy"),
        off_policy_mask_threshold=None,
        sync_ref_model=(False, "needs beta above 0, and all weights trained"),
        ref_model_sync_steps=(512, "in optimizer steps; only with sync_ref_model"),
        ref_model_mixup_alpha=(0.6, "1 copies the policy; only with sync_ref_model"),
        reward_weights=(None, "one number for each function, 1 when left out"),
    ),
    **_fixed("an adaptive entropy bonus goes in steps of 0.005 between 0 and 1", entropy_coef_min=0.0),
    **_fixed("an adaptive entropy bonus goes in steps of 0.005 between 0 and 1", entropy_coef_max=1.0),
    **_fixed("an adaptive entropy bonus goes in steps of 0.005 between 0 and 1", entropy_coef_delta=0.005),
    **_fixed("the constants are those that are TRL's defaults", vespo_k_pos=2.0, vespo_lambda_pos=3.0),
    **_fixed("the constants are those that are TRL's defaults", vespo_k_neg=3.0, vespo_lambda_neg=2.0),
    # evaluation
    **_translated(
        num_generations_eval=(None, "None is num_generations"),
        eval_strategy=("no", "`no`, `steps` or `epoch`; other than `no`, step 0 and the last step are evaluated too"),
        eval_steps=(None, "in optimizer steps, or a share of them below 1; None is logging_steps"),
    ),
    **_satisfied("step 0 is evaluated whenever eval_strategy is not `no`", eval_on_start=False),
    **_fixed(
        "evaluation samples like training, up to engine.max_num_seqs sequences at once",
        per_device_eval_batch_size=8,
        eval_accumulation_steps=None,
        eval_delay=0,
        eval_do_concat_batches=True,
        eval_use_gather_object=False,
        bf16_full_eval=False,
        fp16_full_eval=False,
        prediction_loss_only=False,
        include_for_metrics=[],
        batch_eval_metrics=False,
    ),
    # checkpoints
    **_translated(
        save_strategy=("steps", "`no`, `steps` or `epoch`; the last step is always saved"),
        save_steps=(500, "in optimizer steps, or a share of them below 1"),
        save_total_limit=(None, "None keeps all"),
    ),
    **_fixed(save_only_model=False, enable_jit_checkpoint=False, load_best_model_at_end=False),
    **_fixed(metric_for_best_model=None, greater_is_better=None),
    # logs
    "logging_steps": Argument(default=10, note=f"of `state.log_history`; {_ONCE} anyway"),
    "logging_first_step": Argument(default=False, note=f"of `state.log_history`; {_ONCE} anyway"),
    "disable_tqdm": Argument(default=None, note="`True` prints nothing"),
    **_satisfied("every rollout is stored: `trainer.run.rollouts()`", log_completions=False),
    **_fixed(
        "every rollout is stored: `trainer.run.rollouts()`",
        log_multimodal=True,
        num_completions_to_print=None,
        log_unique_prompts=False,
        log_completions_hub_repo=None,
    ),
    **_fixed(
        f"{_ONCE} as they come",
        logging_strategy="steps",
        log_on_each_node=True,
        logging_nan_inf_filter=True,
        include_num_input_tokens_seen="no",
        log_level="passive",
        log_level_replica="warning",
        skip_memory_metrics=True,
        debug="",
    ),
    **_fixed(
        _TRACKERS,
        report_to="none",
        project="huggingface",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
    ),
    # the hub, several devices
    **_fixed(push_to_hub=False, hub_strategy="every_save", hub_always_push=False),
    **_absent("", "hub_token", "hub_private_repo", "hub_model_id", "hub_revision"),
    **_satisfied("the denominator is that of all ranks", average_tokens_across_devices=True),
    **_absent(
        _RANKS,
        *("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config", "ddp_backend"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
    ),
    **_fixed(_RANKS, local_rank=-1, ddp_timeout=1800, save_on_each_node=False),
}
"""Argument of GRPOConfig → what it is here, in the order of the page."""

ARGUMENTS["report_to"] = _also(ARGUMENTS["report_to"], None, [], ["none"])
ARGUMENTS["pad_to_multiple_of"] = _also(ARGUMENTS["pad_to_multiple_of"], None)
ARGUMENTS["generation_kwargs"] = _also(ARGUMENTS["generation_kwargs"], {})
ARGUMENTS["chat_template_kwargs"] = _also(ARGUMENTS["chat_template_kwargs"], {})
ARGUMENTS["lr_scheduler_kwargs"] = _also(ARGUMENTS["lr_scheduler_kwargs"], {})
ARGUMENTS["router_aux_loss_coef"] = _also(
    ARGUMENTS["router_aux_loss_coef"],
    0.0,
    note="routers get no auxiliary loss, also where TRL's None takes the model's own coefficient",
)

TRAINER: dict[str, Argument] = (
    _fixed(
        "only functions score completions here: there is no reward model to tokenize for",
        reward_processing_classes=None,
    )
    | _fixed("the optimizer is AdamW with the schedule of GRPOConfig", optimizers=(None, None))
    | _fixed(FOREIGN["load_in_4bit"].note, quantization_config=None)
    | _fixed(
        "tools are an environment, a generator function: `settings={'environment.name': 'module:function'}`",
        tools=None,
        environment_factory=None,
    )
    | _fixed("completions come from the policy itself, through the sampler", rollout_func=None)
)
"""Arguments of GRPOTrainer of which only the default is accepted."""


def setting(name: str) -> str:
    """The setting that an argument is translated to."""
    return ARGUMENTS[name].setting


def defaults() -> dict[str, Any]:
    """TRL's default of every argument."""
    return {name: copy.copy(argument.default) for name, argument in ARGUMENTS.items()}
