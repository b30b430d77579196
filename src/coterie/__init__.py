"""Post-train language models with Group Relative Policy Optimization (GRPO)."""

__version__ = "0.1.0"
