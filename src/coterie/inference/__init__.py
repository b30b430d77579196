"""Inference with a model without a run of its own: evaluation, sampling, chat, and comparison with a base."""
