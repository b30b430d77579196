"""Names of other trainers: each leads to a setting that exists, or to the reason why there is none."""

from __future__ import annotations

import pytest

from coterie.config.foreign import FOREIGN
from coterie.config.keys import kind_at, nearest, settings
from coterie.config.load import load
from coterie.errors import ConfigError

TRL = """
learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32
remove_unused_columns num_generations num_generations_eval max_completion_length ds3_gather_for_generation
shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation min_p generation_kwargs
chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode
vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size beta num_iterations epsilon
delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
importance_sampling_level reward_weights multi_objective_aggregation scale_rewards loss_type mask_truncated_completions
sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy
entropy_coef_min entropy_coef_max entropy_coef_delta max_tool_calling_iterations vllm_importance_sampling_correction
vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
off_policy_mask_threshold use_bias_correction_kl log_completions log_multimodal num_completions_to_print
log_unique_prompts log_completions_hub_repo use_transformers_continuous_batching
transformers_continuous_batching_config use_transformers_paged vllm_importance_sampling_cap
model_name_or_path model_revision attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules
lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit load_in_4bit
bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage dataset_name dataset_config dataset_train_split
dataset_test_split dataset_streaming
"""
"""Of TRL 1.16: GRPOConfig, ModelConfig, ScriptArguments; without those that have the same name here."""
TRAINER = """
output_dir per_device_train_batch_size num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs warmup_steps
optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps
average_tokens_across_devices label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32
gradient_checkpointing torch_compile use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
logging_nan_inf_filter log_level disable_tqdm report_to run_name project eval_strategy eval_steps eval_delay
per_device_eval_batch_size eval_on_start eval_accumulation_steps save_only_model save_strategy save_steps
save_on_each_node save_total_limit push_to_hub hub_model_id load_best_model_at_end metric_for_best_model
ignore_data_skip full_determinism data_seed use_cpu accelerator_config dataloader_num_workers deepspeed fsdp
do_train do_eval resume_from_checkpoint warmup_ratio
"""
VERL = """
data.train_batch_size data.train_files data.val_files data.prompt_key data.max_prompt_length data.max_response_length
data.shuffle
actor_rollout_ref.model.path actor_rollout_ref.model.lora_rank actor_rollout_ref.model.lora_alpha
actor_rollout_ref.model.enable_gradient_checkpointing actor_rollout_ref.actor.optim.lr
actor_rollout_ref.actor.ppo_mini_batch_size actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
actor_rollout_ref.actor.ppo_epochs actor_rollout_ref.actor.use_kl_loss actor_rollout_ref.actor.kl_loss_coef
actor_rollout_ref.actor.kl_loss_type actor_rollout_ref.actor.entropy_coeff actor_rollout_ref.actor.clip_ratio
actor_rollout_ref.actor.clip_ratio_low actor_rollout_ref.actor.clip_ratio_high actor_rollout_ref.actor.clip_ratio_c
actor_rollout_ref.actor.loss_agg_mode actor_rollout_ref.actor.grad_clip actor_rollout_ref.rollout.n
actor_rollout_ref.rollout.gpu_memory_utilization actor_rollout_ref.rollout.tensor_model_parallel_size
actor_rollout_ref.rollout.max_num_seqs actor_rollout_ref.rollout.val_kwargs.n algorithm.adv_estimator
algorithm.norm_adv_by_std_in_grpo algorithm.use_kl_in_reward algorithm.kl_ctrl.kl_coef algorithm.kl_ctrl.target_kl
custom_reward_function.path trainer.total_epochs trainer.total_training_steps trainer.save_freq trainer.test_freq
trainer.logger trainer.n_gpus_per_node trainer.nnodes trainer.project_name trainer.experiment_name
trainer.val_before_train trainer.resume_mode trainer.critic_warmup trainer.max_actor_ckpt_to_keep
"""
PRIME = "rollouts_per_example batch_size oversampling_factor ckpt.interval ckpt.keep_last eval.interval optim.max_norm"


def exists(key: str) -> bool:
    plain = key.replace(".0", ".*")
    return plain in settings() or any(other.startswith(f"{plain}.") for other in settings())


@pytest.mark.parametrize("name", FOREIGN)
def test_each_target_exists_and_each_reason_is_given(name: str) -> None:
    row = FOREIGN[name]
    assert exists(row.key) if row.key else row.note
    assert name not in settings(), "the name of a setting of ours needs no translation"


@pytest.mark.parametrize("name", [*TRL.split(), *TRAINER.split(), *VERL.split(), *PRIME.split()])
def test_names_of_other_trainers_lead_somewhere(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([f"--{name}=1"], env={})
    message = str(caught.value)
    assert f"unknown setting {name} " in message
    assert "; did you mean " in message or "; coterie has no such setting: " in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("per_device_train_batch_size", "did you mean collect.prompts_per_step?"),
        ("gradient_accumulation_steps", "did you mean optim.max_tokens_per_microbatch?"),
        ("num_iterations", "did you mean optim.epochs?"),
        ("importance_sampling_level", "did you mean objective.ratio?"),
        ("mask_truncated_completions", "did you mean objective.mask_truncated?"),
        ("lr_scheduler_type", "did you mean optim.schedule? (constant, linear or cosine)"),
        ("warmup_ratio", "did you mean optim.warmup? (a number of optimizer steps, not a share)"),
        ("num_train_epochs", "did you mean steps?"),
        ("report_to", "did you mean trackers?"),
        ("wandb", "no such setting: of a tracker's own settings"),
        ("use_vllm", 'did you mean engine.name? ("vllm", with cluster.host'),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", "did you mean engine.vllm?"),
        ("trainer.n_gpus_per_node", "did you mean cluster.learners?"),
        ("free_cache_engine", "did you mean engine.sleep_mode?"),
        ("lora_r", "did you mean model.lora.rank?"),
        ("lora_target_modules", "did you mean model.lora.targets?"),
        ("eval_strategy", "did you mean eval.every?"),
        ("scale_rewards", "did you mean advantage.scale?"),
        ("reward_weights", "did you mean rewards.functions.0.weight?"),
        ("train_batch_size", "did you mean collect.prompts_per_step?"),
        ("actor_rollout_ref.rollout.n", "did you mean collect.group_size?"),
        ("algorithm.kl_ctrl.kl_coef", "did you mean objective.kl_beta?"),
        ("critic.optim.lr", "did you mean critic.lr?"),
        ("entropy_coeff", "did you mean objective.entropy_bonus?"),
        ("optim.beta", "did you mean optim.beta"),
        ("objective.beta", "did you mean objective.kl_beta?"),
        ("sampling.temprature", "did you mean sampling.temperature?"),
    ],
)
def test_the_hint_is_the_right_one(name: str, hint: str) -> None:
    assert hint in nearest(name.split("."))


def test_a_setting_of_ours_is_never_translated() -> None:
    for key in settings():
        assert kind_at(key.replace("*", "0").split("."))
        assert key not in FOREIGN
