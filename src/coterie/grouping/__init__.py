"""Group-aware GRPO: what a rollout should have earned, judged by its siblings, its region, its prompt's past, and all.

Pure NumPy in float64. `GroupAwareBaseline` (model.py) is the object to use; every other file holds one of its parts.
"""
