"""Two gradients of the same loss, compared in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.peers.worker import PeerError


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far apart two files of named gradients are.

    Returns:
        `cosine` and `relative_error` (‖ours - theirs‖ / ‖theirs‖) over all parameters together, the `worst` parameter
        by relative error, both norms, and how many numbers were compared.

    Raises:
        PeerError: the files name different parameters or shapes, or a gradient is zero or not finite.
    """
    left, right = load_file(ours), load_file(theirs)
    odd = sorted(left.keys() ^ right.keys()) + sorted(k for k in left.keys() & right if left[k].shape != right[k].shape)
    if odd:
        raise PeerError(f"the two gradients are not of the same parameters; {len(odd)} differ, e.g. {odd[0]}")
    dot = square_left = square_right = square_error = 0.0
    worst, worst_error = "", -1.0
    for name in sorted(right):
        a, b = left[name].astype(np.float64).ravel(), right[name].astype(np.float64).ravel()
        error, norm = float(np.sum((a - b) ** 2)), float(np.sum(b**2))
        dot += float(a @ b)
        square_left, square_right, square_error = square_left + float(a @ a), square_right + norm, square_error + error
        if norm > 0 and math.sqrt(error / norm) > worst_error:
            worst, worst_error = name, math.sqrt(error / norm)
    product = square_left * square_right
    if not (math.isfinite(product) and product > 0):
        raise PeerError(f"a gradient is zero or not finite (squared norms {square_left:.3g} and {square_right:.3g})")
    return {
        "cosine": dot / math.sqrt(product),
        "relative_error": math.sqrt(square_error / square_right),
        "worst": {"parameter": worst, "relative_error": worst_error},
        "norms": [math.sqrt(square_left), math.sqrt(square_right)],
        "numbers": sum(gradient.size for gradient in right.values()),
    }
