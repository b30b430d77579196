"""Prompt features: embedding directions, complexity, task and user key, as standardised columns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import log1p
from typing import Any, Literal
from zlib import crc32

import numpy as np

from coterie.data.complexity import COMPLEXITY, counts
from coterie.errors import ConfigError
from coterie.grouping.arrays import State
from coterie.phases import PHASES
from coterie.stats import Floats
from coterie.types import Prompt

Signal = Literal["semantic", "complexity", "task", "key"]


LIMIT = 4.0
"""Standardised features are clipped here: one absurd prompt must not steer the linear scale."""

MOST_KEYS = 64
"""Most levels of the user's key, the commonest texts; a prompt with another text is of none of them."""


def complexity(text: str, tools: int = 0) -> Floats:
    """[6] log-counts of a prompt text, see COMPLEXITY.

    Args:
        text: the prompt as the policy reads it; length in characters.
        tools: number of tools the prompt offers or needs.

    >>> complexity("What is 12 + 3?").round(2).tolist()
    [2.77, 1.39, 0.69, 1.1, 0.69, 0.0]
    """
    return np.array([log1p(count) for count in counts(text, tools).values()])


def is_level(name: str, signal: Signal) -> bool:
    """True for a column that marks the prompts of one text by the user's key."""
    return signal == "key" and name.startswith("key=")


@dataclass(frozen=True, slots=True)
class Column:
    """A feature: its name, the signal it belongs to, and its mean and standard deviation in plain units."""

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
    """Linear map of embeddings to few dimensions, fitted once so that coordinates keep their meaning."""

    centre: Floats
    """[E]"""
    matrix: Floats
    """[E, D], D at most 16 by default."""

    @classmethod
    def fit(cls, embeddings: Floats, *, dims: int = 16) -> Reduction:
        """Projection on the leading principal directions.

        Args:
            embeddings: [P, E] of the prompts at hand; prompts only, no rewards.
        """
        if embeddings.ndim != 2 or not len(embeddings) or not np.isfinite(embeddings).all():
            raise ValueError(f"embeddings have shape {embeddings.shape}; expected finite numbers [prompts, width]")
        centre, width = embeddings.mean(axis=0), embeddings.shape[1]
        dims = min(dims, width)
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
    """Map from a prompt to a row of standardised features. Fitted once; saved with the run."""

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
    ) -> FeatureMap:
        """Fit on the prompts at hand: [P] texts, [P] task names, [P] tool counts, [P, E] embeddings, and [P] values of
        the user's key, all texts or all numbers; `known_keys` are those of prompts that are not at hand too."""
        reduction = None if embeddings is None else Reduction.fit(embeddings, dims=dims)
        task_names = tuple(sorted(set(tasks))) if tasks is not None else ()
        levels = None if keys is None else _commonest(keys if known_keys is None else known_keys)
        bare = cls((), task_names if len(task_names) > 1 else (), reduction, levels)
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
        """[P, F] standardised rows, clipped to ±4. An unknown task sets no task column."""
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
            marks = [[float(value == key) for key in self.keys] if self.keys else [float(value)] for value in keys]
            parts.append(np.array(marks, dtype=np.float64))
        if self.reduction is not None and embeddings is not None:
            parts.append(self.reduction.apply(embeddings))
        return np.hstack(parts)

    def state(self) -> State:
        reduction = self.reduction
        arrays = {} if reduction is None else {"centre": reduction.centre, "matrix": reduction.matrix}
        keys = None if self.keys is None else list(self.keys)
        return arrays, {"columns": [asdict(column) for column in self.columns], "tasks": list(self.tasks), "keys": keys}

    @classmethod
    def load(cls, state: State) -> FeatureMap:
        arrays, json = state
        reduction = Reduction(arrays["centre"], arrays["matrix"]) if arrays else None
        columns = tuple(Column(**column) for column in json["columns"])
        keys = None if json["keys"] is None else tuple(json["keys"])
        return cls(columns, tuple(json["tasks"]), reduction, keys)


def _commonest(keys: Sequence[str] | Sequence[float]) -> tuple[str, ...]:
    """Levels of the key in alphabetical order; empty for numbers."""
    kinds = {isinstance(key, str) for key in keys}
    if len(kinds) > 1:
        raise ValueError("the key gives texts for some prompts and numbers for others; give one of both for all")
    if kinds != {True}:
        return ()
    counts = Counter(str(key) for key in keys)
    return tuple(sorted(sorted(counts, key=lambda key: (-counts[key], key))[:MOST_KEYS]))


Embed = Callable[[Sequence[Prompt]], np.ndarray]
"""[P] prompts → [P, D] embeddings."""

Key = Callable[[Prompt], str | float]

SAMPLE = 128
"""Training prompts on which the features are fitted."""


class PromptFeatures:
    """Feature rows of the training prompts, computed once each, when a prompt is first seen.

    Args:
        prompts: the training prompts.
        embed: None leaves the embedding out.
        key: the user's own scale: a text or a number of each prompt.
    """

    def __init__(
        self, prompts: Sequence[Prompt], embed: Embed | None, *, dimensions: int, key: Key | None = None
    ) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.embed, self.key = embed, key
        self.dimensions = dimensions
        self.rows: dict[str, np.ndarray] = {}
        self.fresh: list[tuple[Prompt, np.ndarray]] = []
        """Embeddings that are not stored yet."""
        self._map: FeatureMap | None = None
        self._sampled: dict[str, np.ndarray] = {}  # embeddings of sample prompts without a row yet

    @property
    def map(self) -> FeatureMap:
        """Feature map, fitted on first use with the policy as it is then: before the first step."""
        if self._map is None:
            names = list(self.prompts)[:: max(1, len(self.prompts) // SAMPLE)][:SAMPLE]
            known_keys = None if self.key is None else self._keys(self.key, list(self.prompts))
            facts = self._inputs(names)
            try:
                self._map = FeatureMap.fit(**facts, known_keys=known_keys, dims=self.dimensions)
            except ValueError as error:
                raise ConfigError(f"[grouping]: {error}") from error
            self._sampled = dict(zip(names, facts.get("embeddings", ()), strict=False))
        return self._map

    def of(self, names: Sequence[str]) -> np.ndarray:
        """[n, F] feature rows by prompt id."""
        fresh = [name for name in dict.fromkeys(names) if name not in self.rows]
        if fresh:
            fitted, facts = self.map, self._inputs(fresh)
            for name in fresh:
                self._sampled.pop(name, None)
            self.rows |= dict(zip(fresh, fitted.apply(**facts), strict=True))
            self.fresh += zip([self.prompts[name] for name in fresh], facts.get("embeddings", ()), strict=False)
        return np.stack([self.rows[name] for name in names])

    def _inputs(self, names: Sequence[str]) -> dict[str, Any]:
        prompts = [self.prompts[name] for name in names]
        facts: dict[str, Any] = {
            "texts": [prompt.messages[-1]["content"] for prompt in prompts],
            "tasks": [prompt.task for prompt in prompts],
        }
        if self.embed is not None:
            facts["embeddings"] = self._embedded(self.embed, prompts)
        if self.key is not None:
            facts["keys"] = self._keys(self.key, names)
        return facts

    def _embedded(self, embed: Embed, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, D] embeddings; those of the sample are taken from the fit."""
        embeddings = dict(self._sampled)
        if unknown := [prompt for prompt in prompts if prompt.id not in embeddings]:
            with PHASES.measure("embed"):
                embeddings |= zip([prompt.id for prompt in unknown], embed(unknown), strict=True)
        return np.stack([embeddings[prompt.id] for prompt in prompts])

    def _keys(self, key: Key, names: Sequence[str]) -> list[Any]:
        """Values of the user's key: all texts or all numbers."""
        values = []
        for name in names:
            try:
                value = key(self.prompts[name])
            except Exception as error:  # the user's own code
                raise ConfigError(f"grouping.key raised {type(error).__name__} for prompt {name!r}: {error}") from error
            number = isinstance(value, (int, float, np.number)) and math.isfinite(value)
            if not (isinstance(value, str) or number):
                raise ConfigError(
                    f"grouping.key gave {value!r} for prompt {name!r}; expected a text or a finite number"
                )
            values.append(value)
        return values

    def state(self) -> State:
        arrays, facts = self.map.state()
        rows = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, len(self.map.columns)))
        names = {"names": list(self.rows), "sampled": list(self._sampled)}
        sampled = {"sampled": np.stack(list(self._sampled.values()))} if self._sampled else {}
        return {**arrays, **sampled, "rows": rows}, {**facts, **names}

    def load(self, state: State) -> None:
        arrays, facts = state
        self.rows = dict(zip(facts["names"], arrays["rows"], strict=True))
        self._sampled = dict(zip(facts.get("sampled", ()), arrays.get("sampled", ()), strict=True))
        fitted = {key: value for key, value in arrays.items() if key not in ("rows", "sampled")}
        self._map = FeatureMap.load((fitted, facts))


WIDTH = 256
LONGEST = 8192
"""Characters read: a row must cost microseconds, whatever it holds."""

_WORD = re.compile(r"\w+|[^\w\s]")


def text_embedding(text: str, width: int = WIDTH) -> np.ndarray:
    """[width] hashed embedding of a text's words, float32 of length 1, or zeros for an empty text.

    Equal on every machine. Feature hashing with signs (Weinberger et al., 0902.2206) of words and of letter triples
    within words; a feature that occurs n times counts √n. Digits count as one letter, so that two sums of other numbers
    are alike.
    """
    counts: dict[str, int] = {}
    for word in _WORD.findall(re.sub(r"\d", "0", text[:LONGEST].lower())):
        padded = f" {word} "
        for gram in (padded, *(padded[k : k + 3] for k in range(len(padded) - 2))):
            counts[gram] = counts.get(gram, 0) + 1
    vector = np.zeros(width)
    for gram, count in counts.items():
        code = crc32(gram.encode("utf-8", "surrogatepass"))
        vector[code % width] += (1.0 if code & 0x8000_0000 else -1.0) * count**0.5
    norm = float(np.sqrt((vector * vector).sum()))
    return (vector / norm if norm else vector).astype(np.float32)
