"""Environments: single-turn, retry, running_sum, and functions of your own."""
