"""Files of a run: metrics, rollouts, checkpoints."""
