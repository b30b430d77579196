"""Environments: single-turn, retry, running_sum, dialogue, tools, and functions of your own."""
