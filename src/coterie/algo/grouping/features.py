"""What of a prompt can be known before anyone tries it: its meaning, its complexity, its task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log1p
from typing import Literal

import numpy as np

from coterie.algo.grouping.state import Floats, State
from coterie.algo.streams import generator

Signal = Literal["semantic", "complexity", "task", "key"]

COMPLEXITY = ("log length", "log digits", "log operators", "log numbers", "log steps", "log tools")
"""Names of `complexity`'s features; logarithms are of 1 + count."""

LIMIT = 4.0
"""Standardised features are clipped here: one absurd prompt must not steer the linear scale."""

MOST_KEYS = 64
"""Texts of the user's key that make a level, the commonest; a prompt with another text is of none of them."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPERATOR = re.compile(r"[+*/=<>^%×÷≤≥]|(?<=[\w)\s])[-−](?=[\w(\s])")
_STEP = re.compile(r"[.?!;](?:\s|$)|\n|\bthen\b|\bafter\b|\bif\b", re.IGNORECASE)


def counts(text: str, tools: int = 0) -> dict[str, int]:
    """What `complexity` takes the logarithms of.

    >>> counts("What is 12 + 3?")
    {'length': 15, 'digits': 3, 'operators': 1, 'numbers': 2, 'steps': 1, 'tools': 0}
    """
    return {
        "length": len(text),
        "digits": sum(character.isdigit() for character in text),
        "operators": len(_OPERATOR.findall(text)),
        "numbers": len(_NUMBER.findall(text)),
        "steps": len(_STEP.findall(text)),
        "tools": tools,
    }


def complexity(text: str, tools: int = 0) -> Floats:
    """[6] complexity of a prompt text, see COMPLEXITY.

    Args:
        text: the prompt as the policy reads it; length in characters.
        tools: number of tools the prompt offers or needs.

    >>> complexity("What is 12 + 3?").round(2).tolist()
    [2.77, 1.39, 0.69, 1.1, 0.69, 0.0]
    """
    return np.array([log1p(count) for count in counts(text, tools).values()])


def is_level(name: str, signal: Signal) -> bool:
    """Whether a column marks the prompts of one text by the user's key."""
    return signal == "key" and name.startswith("key=")


@dataclass(frozen=True, slots=True)
class Column:
    """One feature: its name, the signal it belongs to, and how to get back from standardised to plain units."""

    name: str
    signal: Signal
    mean: float = 0.0
    std: float = 1.0

    @property
    def level(self) -> bool:
        """Marks the prompts of one text by the user's key: a group of its own beside the tree's."""
        return is_level(self.name, self.signal)


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """An embedding in few dimensions: a fixed linear map, fitted once so that coordinates mean the same for ever."""

    centre: Floats
    """[E]"""
    matrix: Floats
    """[E, D], D at most 16 by default."""

    @classmethod
    def fit(
        cls, embeddings: Floats, *, dims: int = 16, method: Literal["pca", "random"] = "pca", seed: int = 0
    ) -> Reduction:
        """By the leading principal directions, or by a random projection (Johnson-Lindenstrauss) drawn from the seed.

        Args:
            embeddings: [P, E] of the prompts at hand; prompts only, no rewards.
        """
        if embeddings.ndim != 2 or not len(embeddings) or not np.isfinite(embeddings).all():
            raise ValueError(f"embeddings have shape {embeddings.shape}; expected finite numbers [prompts, width]")
        centre, width = embeddings.mean(axis=0), embeddings.shape[1]
        dims = min(dims, width)
        if method == "random":
            return cls(centre, generator("embedding", seed, width).standard_normal((width, dims)) / np.sqrt(dims))
        centred = embeddings - centre
        # The [E, E] covariance is enough, however many prompts there are.
        values, vectors = np.linalg.eigh(centred.T @ centred)
        leading = vectors[:, np.argsort(-values, kind="stable")[:dims]]
        # A principal direction has no sign of its own; fix it, so that the same prompts give the same coordinates.
        leading = leading * np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(dims)])
        # In the order of a loaded one: BLAS rounds a product by how its factors lie in memory.
        return cls(centre, np.ascontiguousarray(leading))

    def apply(self, embeddings: Floats) -> Floats:
        """[P, D] from [P, E]."""
        return (embeddings - self.centre) @ self.matrix


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """From what is known of a prompt to one standardised row. Fitted once; saved with the run."""

    columns: tuple[Column, ...]
    tasks: tuple[str, ...]
    reduction: Reduction | None
    keys: tuple[str, ...] | None = None
    """Known texts of the user's key; empty where it gives numbers, None where there is no key."""

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
        tools: Sequence[int] | None = None,
        embeddings: Floats | None = None,
        keys: Sequence[str] | Sequence[float] | None = None,
        known_keys: Sequence[str] | None = None,
        dims: int = 16,
        method: Literal["pca", "random"] = "pca",
        seed: int = 0,
    ) -> FeatureMap:
        """Fit on the prompts at hand: [P] texts, [P] task names, [P] tool counts, [P, E] embeddings, and [P] what the
        user's key says, all texts or all numbers; `known_keys` are those of prompts that are not at hand too."""
        reduction = None if embeddings is None else Reduction.fit(embeddings, dims=dims, method=method, seed=seed)
        known = tuple(sorted(set(tasks))) if tasks is not None else ()
        levels = None if keys is None else _commonest(keys if known_keys is None else known_keys)
        bare = cls((), known if len(known) > 1 else (), reduction, levels)
        raw = bare._raw(texts, tasks, tools, embeddings, keys)
        width = 0 if reduction is None else reduction.matrix.shape[1]
        names: list[tuple[str, Signal]] = [(name, "complexity") for name in COMPLEXITY]
        names += [(f"task={name}", "task") for name in bare.tasks]
        names += [] if levels is None else [(f"key={name}", "key") for name in levels] or [("key", "key")]
        names += [(f"meaning {i + 1}", "semantic") for i in range(width)]
        mean, std = raw.mean(axis=0), raw.std(axis=0)
        level = [is_level(name, signal) for name, signal in names]
        mean[level], std[level] = 0.5, 0.5  # so that 1 and -1 mark it, however rare it is among the prompts at hand
        if width:
            # One scale for the whole embedding: distances between meanings must survive.
            std[-width:] = np.sqrt((std[-width:] ** 2).mean())
        std = np.where(std > 1e-9, std, 1.0)
        columns = tuple(
            Column(name, signal, float(m), float(s)) for (name, signal), m, s in zip(names, mean, std, strict=True)
        )
        return cls(columns, bare.tasks, reduction, levels)

    def apply(
        self,
        texts: Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
        tools: Sequence[int] | None = None,
        embeddings: Floats | None = None,
        keys: Sequence[str] | Sequence[float] | None = None,
    ) -> Floats:
        """[P, F] standardised rows, clipped to ±4. A task never seen is none of the known ones."""
        if (embeddings is None) != (self.reduction is None):
            raise ValueError("features were fitted with embeddings and applied without, or the reverse; pass the same")
        raw = self._raw(texts, tasks, tools, embeddings, keys)
        mean = np.array([column.mean for column in self.columns])
        std = np.array([column.std for column in self.columns])
        return np.clip((raw - mean) / std, -LIMIT, LIMIT)

    def _raw(
        self,
        texts: Sequence[str],
        tasks: Sequence[str] | None,
        tools: Sequence[int] | None,
        embeddings: Floats | None,
        keys: Sequence[str] | Sequence[float] | None,
    ) -> Floats:
        offered = [0] * len(texts) if tools is None else tools
        parts = [np.array([complexity(text, n) for text, n in zip(texts, offered, strict=True)])]
        if self.tasks:
            named = [""] * len(texts) if tasks is None else tasks
            parts.append(np.array([[float(name == task) for task in self.tasks] for name in named]))
        if self.keys is not None and keys is not None:
            marks = [[float(own == key) for key in self.keys] if self.keys else [float(own)] for own in keys]
            parts.append(np.array(marks, dtype=np.float64))
        if self.reduction is not None and embeddings is not None:
            parts.append(self.reduction.apply(embeddings))
        return np.hstack(parts)

    def state(self) -> State:
        own = self.reduction
        arrays = {} if own is None else {"centre": own.centre, "matrix": own.matrix}
        keys = None if self.keys is None else list(self.keys)
        return arrays, {"columns": [asdict(one) for one in self.columns], "tasks": list(self.tasks), "keys": keys}

    @classmethod
    def load(cls, state: State) -> FeatureMap:
        arrays, json = state
        reduction = Reduction(arrays["centre"], arrays["matrix"]) if arrays else None
        columns = tuple(Column(**column) for column in json["columns"])
        keys = None if json["keys"] is None else tuple(json["keys"])
        return cls(columns, tuple(json["tasks"]), reduction, keys)


def _commonest(keys: Sequence[str] | Sequence[float]) -> tuple[str, ...]:
    """The texts that make a level, in alphabetical order; none of numbers.

    Raises:
        ValueError: texts and numbers are mixed.
    """
    kinds = {isinstance(key, str) for key in keys}
    if len(kinds) > 1:
        raise ValueError("the key gives texts for some prompts and numbers for others; give one of both for all")
    if kinds != {True}:
        return ()
    counts = Counter(str(key) for key in keys)
    return tuple(sorted(sorted(counts, key=lambda key: (-counts[key], key))[:MOST_KEYS]))
