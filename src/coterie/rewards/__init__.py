"""Reward functions, and the worker processes that call them."""
