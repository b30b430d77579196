"""Stages beyond one training: rejection sampling, and pipelines of stages with one report."""
