"""Inference engines: embedded (on the weights of the learner) and scripted (for tests)."""
