"""Names of the former version: hints for settings that a user writes, and the translation of stored runs.

A former name is never read as a setting, except in the `config.toml` that a former version stored beside a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEYS: dict[str, str] = {
    "objective.surrogate": "objective.loss",
    "objective.normalize": "objective.loss_agg_mode",
    "objective.kl_place": "objective.kl_in",
    "objective.soft_positive": "objective.sapo_tau_pos",
    "objective.soft_negative": "objective.sapo_tau_neg",
    "objective.ratio_cap": "objective.delta",
    "mismatch.correction": "rollout_correction.kind",
    "mismatch": "rollout_correction",
    "advantage.anchors": "advantage.gigpo_weight",
    "advantage.per_part": "advantage.per_reward",
    "grouping.per_part": "grouping.per_reward",
    "grouping.without": "grouping.ablate",
    "grouping.memory": "grouping.decay_steps",
    "grouping.prompt_memory": "grouping.prompt_decay_steps",
    "grouping.rewards": "grouping.reward_range",
    "grouping.uniform": "grouping.unbiased",
    "data.review": "data.rehearsal",
    "collect.prompts": "collect.prompts_per_step",
    "collect.refill": "collect.dynamic_sampling",
    "collect.refill_limit": "collect.dynamic_sampling_limit",
    "collect.engine": "engine.name",
    "collect.slots": "engine.max_num_seqs",
    "optim.token_budget": "optim.max_tokens_per_microbatch",
    "optim.state": "optim.moments",
    "optim.checkpointing": "optim.gradient_checkpointing",
    "optim.offload": "optim.activation_offload",
    "optim.roulette": "optim.subsample",
    "replay.staleness": "replay.max_age",
    "replay.low": "replay.min_ratio",
    "replay.high": "replay.max_ratio",
    "replay.uniform": "replay.unbiased",
    "sampling.deadline_s": "sampling.timeout_s",
    "rewards.deadline_s": "rewards.timeout_s",
    "rewards.parts": "rewards.functions",
    "eval.part": "eval.reward",
    "reference.every": "reference.sync_every",
    "reference.ema": "reference.sync_ema",
}
"""Former key of a setting or table of settings → present key."""

VALUES: dict[str, dict[str, str]] = {
    "objective.loss": {
        "min": "clip",
        "none": "unclipped",
        "detached": "cispo",
        "soft": "sapo",
        "geometric": "gmpo",
        "tv": "dppo_tv",
        "kl": "dppo_kl",
        "gamma": "vespo",
    },
    "objective.loss_agg_mode": {
        "sequence": "seq-mean-token-mean",
        "token": "token-mean",
        "constant": "seq-mean-token-sum-norm",
        "sequence_sum": "seq-mean-token-sum",
        "prompt": "prompt-mean",
    },
    "advantage.baseline": {"runner_up": "second_best"},
    "advantage.scale": {"beta": "bnpo"},
    "grouping.preset": {"heb": "empirical_bayes", "heb-stack": "mixture"},
    "grouping.weights": {"score_norm": "probability"},
}
"""Present key → former value → present value."""

REMOVED = ("grouping.trust", "grouping.clock")
"""Former keys without a present one: they are left out of the settings of a stored run."""

METRICS: dict[str, str] = {
    "groups/solved": "groups/all_correct",
    "groups/none": "groups/all_wrong",
    "copied/mean": "prompt_overlap/mean",
    "updates/skipped": "update/nonfinite",
    "refill/rounds": "dynamic_sampling/rounds",
    "refill/dropped": "dynamic_sampling/dropped",
    "refill/missing": "dynamic_sampling/missing",
    "roulette/kept": "subsample/kept",
    "roulette/power": "subsample/power",
}
"""Former name of a metric → present name; see `metric_name` for those of `grouping/`, which name an expert too."""

_GROUPING = {
    "power": "gradient_variance",
    "heb": "empirical_bayes",
    "heb-notree": "empirical_bayes_no_tree",
    "heb-nofeatures": "empirical_bayes_no_features",
}
"""Former last part of a metric of `grouping/` → present one."""
_FORMER_METRICS = {present: former for former, present in METRICS.items()}
_FORMER_GROUPING = {present: former for former, present in _GROUPING.items()}


def present_key(path: Sequence[str]) -> str | None:
    """The present dotted key of a former one, items of lists included; None for any other key."""
    for length in range(len(path), 0, -1):
        present = KEYS.get(".".join(path[:length]))
        if present is not None:
            return ".".join((present, *path[length:]))
    return None


def present_value(key: str, value: Any) -> Any:
    """The present value of a former one under its present key; any other value as it is."""
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def metric_name(name: str) -> str:
    """The present name of a metric."""
    family, _, last = name.rpartition("/")
    if name.startswith("grouping/") and last in _GROUPING:
        return f"{family}/{_GROUPING[last]}"
    return METRICS.get(name, name)


def former_metric_name(name: str) -> str:
    """The inverse of `metric_name`."""
    family, _, last = name.rpartition("/")
    if name.startswith("grouping/"):
        return f"{family}/{_FORMER_GROUPING.get(last, last)}"
    return _FORMER_METRICS.get(name, name)


def former_keys(table: Mapping[str, Any]) -> list[str]:
    """Former keys in a table of settings."""
    return [key for key in (*KEYS, *REMOVED) if _present(table, key.split("."))]


def translated(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stored run under their present names; those of a present run as they are."""
    settings: dict[str, Any] = {}
    for section, fields in table.items():
        if not isinstance(fields, Mapping) or not fields:
            settings.setdefault(KEYS.get(section, section), fields)
            continue
        for field, value in fields.items():
            if f"{section}.{field}" in REMOVED:
                continue
            key = present_key((section, field)) or f"{section}.{field}"
            name, _, below = key.partition(".")
            settings.setdefault(name, {})[below] = present_value(key, value)
    for rule in table.get("stop", {}).get("rules", ()):
        if rule.get("metric"):
            rule["metric"] = metric_name(rule["metric"])
    return settings


def _present(table: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True
