"""Training loop, evaluation, stop rules."""
