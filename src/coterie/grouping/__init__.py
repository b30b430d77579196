"""Group-aware GRPO: baselines from a rollout's siblings, its prompt's history, its region and all prompts.

Pure NumPy in float64. `GroupAwareBaseline` (model.py) is the object to use; every other file holds one of its parts.
"""
