"""How far the policy may move on a prompt's word: clip bounds that follow the evidence for its region."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.state import Floats


def trust_factors(variance: Floats, prior: Floats, trust: float) -> Floats:
    """[P] factors for the clip bounds of a step's prompts:

    f_p = (1 + trust)^(mean(u) - u_p),   u_p = variance_p / prior_p within 0 and 1

    u is what evidence has left of the uncertainty about the region's expected reward. Their geometric mean is 1, so the
    configured bounds stay the step's typical ones, and no factor leaves [1 / (1 + trust), 1 + trust].

    Args:
        variance: [P] of the region's expectation, from history alone.
        prior: [P] the same before any evidence, above 0.
        trust: 0 leaves every bound as it is.

    >>> trust_factors(np.array([0.1, 0.05, 0.0]), np.full(3, 0.1), 1.0).round(4).tolist()
    [0.7071, 1.0, 1.4142]
    """
    if trust < 0:
        raise ValueError(f"trust is {trust}; expected at least 0")
    left = np.clip(variance / prior, 0.0, 1.0)
    return (1.0 + trust) ** (left.mean() - left) if left.size else left
