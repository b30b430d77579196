"""State of a part: arrays for what is large, JSON for the rest. Floats survive JSON exactly, so a resumed run continues
bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = tuple[dict[str, NDArray], dict[str, Any]]


def join(**parts: State) -> State:
    """States of named parts as one: arrays become `name/key`, JSON becomes one entry a part.

    >>> join(root=({"mean": np.zeros(2)}, {"n": 1}))
    ({'root/mean': array([0., 0.])}, {'root': {'n': 1}})
    """
    arrays = {f"{name}/{key}": array for name, (own, _) in parts.items() for key, array in own.items()}
    return arrays, {name: json for name, (_, json) in parts.items()}


def pick(state: State, name: str) -> State:
    """The named part of a joined state.

    Raises:
        ValueError: the state has no such part.
    """
    arrays, json = state
    if name not in json:
        raise ValueError(f"the state holds {sorted(json)}, not {name!r}; it was saved by another preset or version")
    start = f"{name}/"
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}, json[name]
