"""Environments: single-turn, retry, running_sum, tools, and functions of your own."""
