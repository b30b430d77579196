"""Sweeps: many runs of one recipe, and their comparison."""
