"""Prompt sources, chat templates, answer parsing, built-in models and datasets."""
