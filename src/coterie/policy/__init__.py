"""Model, attention, log-probs, optimizer and learner."""
