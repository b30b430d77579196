"""Names of settings in TRL, verl and prime-rl, for the hint behind an unknown key. Never read as a setting.

One table: a name, or the end of a dotted one, → what it is here. TRL 1.16's GRPOConfig and ModelConfig, transformers'
TrainingArguments, verl's ppo_trainer.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Foreign:
    """The setting here for another trainer's name."""

    key: str = ""
    """A setting or table of settings; empty where there is none."""
    note: str = ""
    """Difference in meaning, or the reason why there is none; may be empty."""


_BATCH = (
    "a step trains on collect.prompts_per_step × collect.group_size rollouts, in optim.minibatches optimizer steps; "
    "micro-batches follow from optim.max_tokens_per_microbatch"
)
_VLLM = (
    'holds vLLM\'s engine arguments by their names there, with engine.name = "vllm" and cluster.host = "processes" or '
    '"ray" (docs/scale.md)'
)
_SERVER = 'of a server of completions, with engine.name = "http" (docs/serve.md)'
_SAMPLING = "the embedded engine batches continuously and reads the learner's weights in place; see engine.name"
_RANKS = 'processes of one device each, with cluster.host = "processes" or "ray" (docs/scale.md)'
_DEVICES = "cluster.learners and cluster.strategy say how ranks share a model; they have no such option"
_TRACKER = "of a tracker's own settings; `trackers` names them (docs/trackers.md)"
_HUB = "nothing is uploaded; a checkpoint's model folder opens in transformers"
_LOGGING = "every step is printed, logged and stored"
_LOADING = "data is prepared once, before the first step"
_QUANTISED = 'weights are trained in float32, bfloat16 or float64; optim.moments = "8bit" stores the moments in 8 bits'
_ADAPTER = "an adapter is plain LoRA without dropout: model.lora.rank, alpha and targets"
_ADAPTIVE = "adapts in steps of 0.005, without bounds of its own"
_TOOLS = 'with environment.name = "tools" (docs/tools.md)'
_SAMPLER = "a training sampler must be the policy itself, so there are only temperature and stop strings"
_TEMPLATE = "the tokenizer's own chat template is used; data.system sets the system message"
_RESUME = "`coterie resume RUN` continues from the newest checkpoint that verifies"
_EVAL = "eval.every says how often; step 0 and the last step are always evaluated"
_REWARD = "[[rewards.functions]] names functions, with name, weight and params"

FOREIGN: dict[str, Foreign] = {
    # settings of coterie that were removed
    "grouping.trust": Foreign(note="clip bounds by evidence were removed: no measurement or recipe used them"),
    "grouping.clock": Foreign(note="evidence fades by steps: time by the policy's movement was removed, as unmeasured"),
    # model and data
    "model_name_or_path": Foreign("model.name"),
    "model.path": Foreign("model.name"),
    "model_revision": Foreign("model.revision"),
    "torch_dtype": Foreign("model.dtype"),
    "bf16": Foreign("model.dtype", '"bfloat16"'),
    "fp16": Foreign("model.dtype", "bfloat16 or float32; there is no float16"),
    "tf32": Foreign(note="float32 is computed in float32"),
    "use_cpu": Foreign("model.device", '"cpu"'),
    "no_cuda": Foreign("model.device", '"cpu"'),
    "attn_implementation": Foreign("optim.attention", "of the update; the sampler has its own"),
    "enable_gradient_checkpointing": Foreign("optim.gradient_checkpointing"),
    "enable_activation_offload": Foreign("optim.activation_offload"),
    "torch_compile": Foreign("optim.compile_layers"),
    "use_torch_compile": Foreign("optim.compile_layers"),
    "use_peft": Foreign("model.lora", "the table's presence switches it on"),
    "lora_r": Foreign("model.lora.rank"),
    "lora_rank": Foreign("model.lora.rank"),
    "lora_alpha": Foreign("model.lora.alpha"),
    "lora_target_modules": Foreign("model.lora.targets"),
    "target_modules": Foreign("model.lora.targets"),
    "lora_target_parameters": Foreign("model.lora.targets", "names of modules"),
    "dataset_name": Foreign("data.train.0.name", 'with data.train.0.type = "hub"'),
    "dataset_config": Foreign("data.train.0.config"),
    "dataset_train_split": Foreign("data.train.0.split"),
    "dataset_test_split": Foreign("data.heldout.0.split"),
    "train_files": Foreign("data.train.0.path", 'with data.train.0.type = "file"'),
    "val_files": Foreign("data.heldout.0.path", 'with data.heldout.0.type = "file"'),
    "prompt_key": Foreign("data.train.0.prompt_column"),
    "dataset_text_field": Foreign("data.train.0.prompt_column"),
    "input_key": Foreign("data.train.0.prompt_column"),
    "question_column": Foreign("data.train.0.prompt_column"),
    "dataset_prompt_column": Foreign("data.train.0.prompt_column"),
    "answer_key": Foreign("data.train.0.answer_column"),
    "label_key": Foreign("data.train.0.answer_column"),
    "solution_column": Foreign("data.train.0.answer_column"),
    "ground_truth_column": Foreign("data.train.0.answer_column"),
    "dataset_solution_column": Foreign("data.train.0.answer_column"),
    "train_dataset": Foreign("data.train"),
    "eval_dataset": Foreign("data.heldout"),
    "max_prompt_length": Foreign("data.max_prompt_tokens", "longer prompts are dropped, never cut"),
    "prompt_length": Foreign("data.max_prompt_tokens", "longer prompts are dropped, never cut"),
    "filter_overlong_prompts": Foreign("data.max_prompt_tokens", "longer prompts are always dropped"),
    "data_seed": Foreign("seed", "every draw derives from it"),
    "full_determinism": Foreign("seed", "a run repeats bit for bit on the same machine and threads"),
    # sampling
    "num_generations": Foreign("collect.group_size"),
    "rollout.n": Foreign("collect.group_size"),
    "rollouts_per_example": Foreign("collect.group_size"),
    "n_samples_per_prompt": Foreign("collect.group_size"),
    "num_generations_eval": Foreign("eval.samples"),
    "val_kwargs.n": Foreign("eval.samples"),
    "val_kwargs.temperature": Foreign("eval.temperature"),
    "max_completion_length": Foreign("sampling.max_tokens"),
    "max_new_tokens": Foreign("sampling.max_tokens"),
    "max_response_length": Foreign("sampling.max_tokens"),
    "response_length": Foreign("sampling.max_tokens"),
    "oversampling_factor": Foreign("collect.oversample"),
    "over_sample_rate": Foreign("collect.oversample", "1 + the rate"),
    "max_assistant_turns": Foreign("environment.max_turns"),
    "max_tool_calling_iterations": Foreign("environment.max_turns", _TOOLS),
    # batches and steps
    "batch_size": Foreign("collect.prompts_per_step", "counted in prompts: a batch is prompts × group_size rollouts"),
    "train_batch_size": Foreign("collect.prompts_per_step", "counted in prompts, as in verl"),
    "gen_batch_size": Foreign("collect.prompts_per_step", "collect.oversample samples more"),
    "per_device_train_batch_size": Foreign("collect.prompts_per_step", _BATCH),
    "generation_batch_size": Foreign("collect.prompts_per_step", _BATCH),
    "gradient_accumulation_steps": Foreign("optim.max_tokens_per_microbatch", _BATCH),
    "steps_per_generation": Foreign("optim.minibatches", "optimizer steps per collected batch"),
    "ppo_mini_batch_size": Foreign("optim.minibatches", "a number of optimizer steps per batch, not a size"),
    "mini_batch_size": Foreign("optim.minibatches", "a number of optimizer steps per batch, not a size"),
    "micro_batch_size": Foreign("optim.max_tokens_per_microbatch", "in tokens"),
    "ppo_micro_batch_size": Foreign("optim.max_tokens_per_microbatch", "in tokens"),
    "ppo_micro_batch_size_per_gpu": Foreign("optim.max_tokens_per_microbatch", "in tokens"),
    "ppo_max_token_len_per_gpu": Foreign("optim.max_tokens_per_microbatch"),
    "seq_len": Foreign("optim.max_tokens_per_microbatch"),
    # engines and ranks
    "use_vllm": Foreign("engine.name", '"vllm", with cluster.host = "processes" or "ray" (docs/scale.md)'),
    "rollout.name": Foreign("engine.name", "embedded, vllm or http"),
    "rollout.mode": Foreign("engine.name", "turns of an episode are always sampled as they come"),
    "vllm_mode": Foreign("engine.name", '"vllm" is a service of the run, "http" a server'),
    "vllm_enable_sleep_mode": Foreign("engine.sleep_mode", "of engine services"),
    "free_cache_engine": Foreign("engine.sleep_mode", "of engine services"),
    "vllm_server_base_url": Foreign("engine.base_url", _SERVER),
    "vllm_server_host": Foreign("engine.base_url", _SERVER),
    "vllm_server_port": Foreign("engine.base_url", _SERVER),
    "vllm_server_timeout": Foreign("engine.timeout_s", _SERVER),
    "nnodes": Foreign("cluster.address", 'of a Ray cluster, with cluster.host = "ray"'),
    "n_gpus_per_node": Foreign("cluster.learners", _RANKS),
    "fsdp": Foreign("cluster.strategy", f'"fsdp" shares one set of weights out among cluster.learners, {_RANKS}'),
    "strategy": Foreign("cluster.strategy", f"of cluster.learners, {_RANKS}"),
    "fsdp_size": Foreign("cluster.learners", 'with cluster.strategy = "fsdp" every rank holds a shard'),
    "report_to": Foreign("trackers", "metrics go to metrics.sqlite in the run's folder in any case"),
    "logger": Foreign("trackers", "metrics go to metrics.sqlite in the run's folder in any case"),
    "max_async_level": Foreign("engine.lag", "a fixed number of steps, not a limit"),
    "num_iterations": Foreign("optim.epochs", "passes over a collected batch"),
    "ppo_epochs": Foreign("optim.epochs"),
    "max_steps": Foreign("steps"),
    "total_training_steps": Foreign("steps"),
    "num_train_epochs": Foreign(
        "steps", "count steps: prompts / collect.prompts_per_step of them are one pass over the data"
    ),
    "total_epochs": Foreign(
        "steps", "count steps: prompts / collect.prompts_per_step of them are one pass over the data"
    ),
    # optimizer
    "learning_rate": Foreign("optim.lr"),
    "lr": Foreign("optim.lr"),
    "lr_scheduler_type": Foreign("optim.schedule", "constant, linear or cosine"),
    "warmup_style": Foreign("optim.schedule", "constant, linear or cosine"),
    "warmup_steps": Foreign("optim.warmup", "optimizer steps"),
    "lr_warmup_steps": Foreign("optim.warmup", "optimizer steps"),
    "warmup_ratio": Foreign("optim.warmup", "a number of optimizer steps, not a share"),
    "lr_warmup_steps_ratio": Foreign("optim.warmup", "a number of optimizer steps, not a share"),
    "adam_beta1": Foreign("optim.beta1"),
    "betas1": Foreign("optim.beta1"),
    "adam_beta2": Foreign("optim.beta2"),
    "betas2": Foreign("optim.beta2"),
    "adam_epsilon": Foreign("optim.eps"),
    "grad_clip": Foreign("optim.max_grad_norm"),
    "max_norm": Foreign("optim.max_grad_norm"),
    "optimizer": Foreign("optim.moments", "AdamW, with moments in float32 or 8 bits"),
    # objective
    "loss_type": Foreign("algorithm", "or objective.loss_agg_mode alone"),
    "loss_mode": Foreign("algorithm", "or objective.loss alone"),
    "adv_estimator": Foreign("advantage.estimator", "a published method is an algorithm preset: algorithm"),
    "importance_sampling_level": Foreign("objective.ratio"),
    "epsilon": Foreign("objective.clip_low"),
    "epsilon_high": Foreign("objective.clip_high"),
    "cliprange": Foreign("objective.clip_low", "and objective.clip_high"),
    "clip_ratio": Foreign("objective.clip_low", "and objective.clip_high"),
    "clip_ratio_low": Foreign("objective.clip_low"),
    "clip_ratio_high": Foreign("objective.clip_high"),
    "clip_ratio_c": Foreign("objective.dual_clip"),
    "sapo_temperature_neg": Foreign("objective.sapo_tau_neg"),
    "sapo_temperature_pos": Foreign("objective.sapo_tau_pos"),
    "beta": Foreign("objective.kl_beta"),
    "kl_coef": Foreign("objective.kl_beta"),
    "kl_loss_coef": Foreign("objective.kl_beta"),
    "use_kl_loss": Foreign("objective.kl_beta", "above 0 switches the KL in the loss on"),
    "use_kl_in_reward": Foreign("objective.kl_in", '"reward"'),
    "kl_loss_type": Foreign("objective.kl_estimator", "low_var_kl is k3"),
    "kl_penalty": Foreign("objective.kl_estimator", "kl is k1"),
    "use_bias_correction_kl": Foreign("objective.kl_estimator", '"k3_unbiased"'),
    "target_kl": Foreign("objective.kl_target"),
    "horizon": Foreign("objective.kl_horizon"),
    "entropy_coef": Foreign("objective.entropy_bonus"),
    "entropy_coeff": Foreign("objective.entropy_bonus"),
    "use_adaptive_entropy": Foreign("objective.entropy_target", "setting it adapts the bonus"),
    "top_entropy_quantile": Foreign("objective.entropy_share"),
    "mask_truncated_completions": Foreign("objective.mask_truncated"),
    "off_policy_mask_threshold": Foreign("objective.off_policy_mask"),
    "filter_groups": Foreign(
        "collect.dynamic_sampling", "dynamic sampling; objective.drop_zero_variance changes the mean alone"
    ),
    "scale_rewards": Foreign("advantage.scale", '"group" is group_std, "batch" is batch_std, none is none'),
    "scale_advantage": Foreign("advantage.scale"),
    "norm_adv_by_std_in_grpo": Foreign("advantage.scale", '"group_std" or "none"'),
    "multi_objective_aggregation": Foreign("advantage.per_reward", "true is normalize_then_sum (GDPO)"),
    "vllm_importance_sampling_correction": Foreign("rollout_correction.kind"),
    "vllm_importance_sampling_mode": Foreign("rollout_correction.kind"),
    "vllm_importance_sampling_cap": Foreign("rollout_correction.high"),
    "vllm_importance_sampling_clip_max": Foreign("rollout_correction.high"),
    "vllm_importance_sampling_clip_min": Foreign("rollout_correction.low"),
    "tis_imp_ratio_cap": Foreign("rollout_correction.high"),
    "rollout_is": Foreign("rollout_correction.kind"),
    "rollout_is_threshold": Foreign("rollout_correction.high"),
    "sync_ref_model": Foreign("reference.sync_every", "above 0 renews the reference"),
    "ref_model_sync_steps": Foreign("reference.sync_every"),
    "ref_model_mixup_alpha": Foreign("reference.sync_ema"),
    # rewards
    "reward_funcs": Foreign("rewards.functions", _REWARD),
    "reward_weights": Foreign("rewards.functions.0.weight", "each part has its own"),
    "custom_reward_function": Foreign("rewards.functions", _REWARD),
    "custom_reward_function.path": Foreign("rewards.functions.0.name", "`module:function`"),
    "custom_reward_function.name": Foreign("rewards.functions.0.name", "`module:function`"),
    "reward_manager": Foreign("rewards.functions", _REWARD),
    # critic
    "cliprange_value": Foreign("critic.clip"),
    "critic_warmup": Foreign("critic.warmup"),
    "critic.optim.lr": Foreign("critic.lr"),
    "algorithm.gamma": Foreign("critic.gamma"),
    "algorithm.lam": Foreign("critic.lam"),
    "vf_coef": Foreign("critic.coefficient"),
    # evaluation, checkpoints, the run
    "eval_strategy": Foreign("eval.every", _EVAL),
    "evaluation_strategy": Foreign("eval.every", _EVAL),
    "eval_steps": Foreign("eval.every"),
    "test_freq": Foreign("eval.every"),
    "eval.interval": Foreign("eval.every"),
    "eval_on_start": Foreign("eval.every", _EVAL),
    "val_before_train": Foreign("eval.every", _EVAL),
    "do_eval": Foreign("data.heldout", "where there are held-out prompts, they are evaluated"),
    "eval.num_examples": Foreign("eval.limit"),
    "save_strategy": Foreign("checkpoint.every", "in steps"),
    "save_steps": Foreign("checkpoint.every"),
    "save_freq": Foreign("checkpoint.every"),
    "ckpt.interval": Foreign("checkpoint.every"),
    "save_total_limit": Foreign("checkpoint.keep"),
    "max_actor_ckpt_to_keep": Foreign("checkpoint.keep"),
    "keep_last": Foreign("checkpoint.keep"),
    "output_dir": Foreign("runs", "the folder that holds all runs; `name` is the run's own in it"),
    "default_local_dir": Foreign("runs", "the folder that holds all runs; `name` is the run's own in it"),
    "run_name": Foreign("name"),
    "experiment_name": Foreign("name"),
}
"""Name → what it is here."""


def _none(note: str, *names: str) -> None:
    FOREIGN.update({name: Foreign(note=note) for name in names})


_none(
    _TRACKER,
    *("wandb", "project", "project_name", "trackio_space_id", "trackio_bucket_id"),
    "trackio_static_space_id",
)
_none(
    _LOGGING,
    *("logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "log_level", "log_level_replica"),
    *("log_on_each_node", "logging_nan_inf_filter", "disable_tqdm", "include_num_input_tokens_seen"),
    *("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts", "log_val_generations"),
    *("log_completions_hub_repo", "rollout_data_dir", "validation_data_dir", "skip_memory_metrics", "debug"),
)
_none(
    _HUB,
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    "hub_revision",
)
FOREIGN.update(
    dict.fromkeys(
        (
            *("vllm_model_impl", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
            *("gpu_memory_utilization", "tensor_model_parallel_size", "enforce_eager", "max_model_len", "load_format"),
            *("max_num_batched_tokens", "enable_chunked_prefill"),
        ),
        Foreign("engine.vllm", _VLLM),
    )
)
_none(
    _SAMPLING,
    *("vllm_structured_outputs_regex", "vllm_group_port", "use_transformers_continuous_batching"),
    *("transformers_continuous_batching_config", "use_transformers_paged", "cache_implementation"),
    *("calculate_log_probs", "ds3_gather_for_generation"),
)
_none(
    _DEVICES,
    *("deepspeed", "fsdp_config", "parallelism_config", "accelerator_config", "local_rank", "ddp_backend"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_timeout"),
    *("average_tokens_across_devices", "save_on_each_node"),
    *("param_offload", "optimizer_offload", "ulysses_sequence_parallel_size", "balance_batch", "nccl_timeout"),
)
_none(
    _SAMPLER,
    *("min_p", "repetition_penalty", "generation_kwargs", "do_sample", "ignore_eos"),
)
_none(_TEMPLATE, "chat_template_kwargs", "apply_chat_template_kwargs", "custom_chat_template", "chat_template_path")
_none(
    _LOADING,
    *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("train_sampling_strategy", "length_column_name", "ignore_data_skip"),
)
_none("training prompts are shuffled anew for each pass, from `seed`", "shuffle_dataset", "data.shuffle", "shuffle")
_none("every column of the data reaches the reward functions", "remove_unused_columns", "label_names")
_none(
    _ADAPTER,
    *("lora_dropout", "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
)
_none(
    _QUANTISED,
    *("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)
_none(
    "models are loaded without code of their own",
    *("trust_remote_code", "external_lib"),
)
_none("a model is loaded as its folder says, in model.dtype", "model_init_kwargs", "override_config")
_none(
    f"objective.entropy_target {_ADAPTIVE}",
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"),
)
_none(
    'the constants of `algorithm = "vespo"` are those of TRL',
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
)
_none("log-probs are always computed from the logits in float32", "cast_lm_head_to_fp32")
_none("dropout is always off", "disable_dropout", "neftune_noise_alpha", "label_smoothing_factor")
_none("routers get no auxiliary loss", "router_aux_loss_coef")
_none("rows are packed without padding", "pad_to_multiple_of", "use_remove_padding", "use_dynamic_bsz")
_none(
    "log-probs are computed in chunks, without the full logits",
    *("use_liger_kernel", "liger_kernel_config", "use_liger", "use_fused_kernels"),
)
_none("the schedule is constant, linear or cosine", "lr_scheduler_kwargs", "min_lr_ratio", "num_cycles")
_none("the optimizer is AdamW", "optim_args", "optim_target_modules", "optim_type")
_none(_RESUME, "resume_from_checkpoint", "resume_mode", "resume_from_path", "restore_callback_states_from_checkpoint")
_none(_BATCH, "auto_find_batch_size", "log_prob_micro_batch_size", "log_prob_micro_batch_size_per_gpu")
_none(
    "memory is planned before the first step (`train --dry-run`)",
    *("torch_empty_cache_steps", "use_cache"),
)
_none("the last step's weights are the result; `[stop]` keeps the last good checkpoint", "load_best_model_at_end")
_none(
    "the last step's weights are the result; eval.reward names the measured reward part",
    *("metric_for_best_model", "greater_is_better"),
)
_none(
    "evaluation samples like training, up to engine.max_num_seqs sequences at once",
    *("per_device_eval_batch_size", "val_batch_size", "eval_accumulation_steps", "bf16_full_eval", "fp16_full_eval"),
    *("eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics", "batch_eval_metrics", "eval_delay"),
    *("prediction_loss_only",),
)
_none("`coterie train`, `eval` and `rollout` are commands", "do_train", "do_predict", "val_only")
_none("data sets are read whole", "dataset_streaming", "streaming")
_none("a checkpoint always holds what a resume needs", "save_only_model", "save_contents", "enable_jit_checkpoint")


def foreign(path: Sequence[str]) -> Foreign | None:
    """The setting here for another trainer's dotted name, by its longest known end; None for unknown names."""
    words = [part for part in path if not part.isdecimal()]
    ends = (".".join(words[start:]) for start in range(len(words)))
    return next((FOREIGN[end] for end in ends if end in FOREIGN), None)
