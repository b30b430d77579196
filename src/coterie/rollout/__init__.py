"""Prompt sampling, episodes, rollout collection and the replay buffer."""
