"""Objective, advantages, KL and sampling as pure functions of arrays and tensors."""
