"""What is known of each training prompt before anyone tries it, as the estimator's features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coterie.algo.grouping.features import FeatureMap
from coterie.algo.grouping.state import State
from coterie.errors import ConfigError
from coterie.types import Prompt

Embed = Callable[[Sequence[Prompt]], np.ndarray]
"""[P] prompts → [P, D] what they mean."""

Key = Callable[[Prompt], str | float]

SAMPLE = 128
"""Training prompts on which the features are fitted."""


class PromptFeatures:
    """Features of prompts, computed once each and kept: what a prompt meant when it was first seen.

    Args:
        prompts: the training prompts.
        embed: None leaves the embedding out.
        key: the user's own scale: a text or a number of each prompt.
    """

    def __init__(
        self, prompts: Sequence[Prompt], embed: Embed | None, *, dimensions: int, seed: int, key: Key | None = None
    ) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.embed, self.key = embed, key
        self.dimensions, self.seed = dimensions, seed
        self.rows: dict[str, np.ndarray] = {}
        self.fresh: list[tuple[Prompt, np.ndarray]] = []
        """Embeddings that nobody has stored yet."""
        self._map: FeatureMap | None = None
        self._sampled: dict[str, np.ndarray] = {}  # embeddings of the sample whose prompts nobody has asked for yet

    @property
    def map(self) -> FeatureMap:
        """Fitted on the first use, with the policy as it is then: before the first step.

        Raises:
            ConfigError: the user's key fails, or gives neither texts nor numbers.
        """
        if self._map is None:
            names = list(self.prompts)[:: max(1, len(self.prompts) // SAMPLE)][:SAMPLE]
            known = None if self.key is None else self._keys(self.key, list(self.prompts))
            facts = self._facts(names)
            try:
                self._map = FeatureMap.fit(**facts, known_keys=known, dims=self.dimensions, seed=self.seed)
            except ValueError as error:
                raise ConfigError(f"[grouping]: {error}") from error
            self._sampled = dict(zip(names, facts.get("embeddings", ()), strict=False))
        return self._map

    def of(self, names: Sequence[str]) -> np.ndarray:
        """[n, F] one row per prompt id."""
        fresh = [name for name in dict.fromkeys(names) if name not in self.rows]
        if fresh:
            fitted, facts = self.map, self._facts(fresh)
            for name in fresh:
                self._sampled.pop(name, None)
            self.rows |= dict(zip(fresh, fitted.apply(**facts), strict=True))
            self.fresh += zip([self.prompts[name] for name in fresh], facts.get("embeddings", ()), strict=False)
        return np.stack([self.rows[name] for name in names])

    def _facts(self, names: Sequence[str]) -> dict[str, Any]:
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
        """[n, D]; those of the sample were embedded before."""
        known = dict(self._sampled)
        if unknown := [prompt for prompt in prompts if prompt.id not in known]:
            known |= zip([prompt.id for prompt in unknown], embed(unknown), strict=True)
        return np.stack([known[prompt.id] for prompt in prompts])

    def _keys(self, key: Key, names: Sequence[str]) -> list[Any]:
        """What the user's function says of each prompt: all texts or all numbers."""
        found = []
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
            found.append(value)
        return found

    def state(self) -> State:
        arrays, facts = self.map.state()
        rows = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, len(self.map.columns)))
        told = {"names": list(self.rows), "sampled": list(self._sampled)}
        sampled = {"sampled": np.stack(list(self._sampled.values()))} if self._sampled else {}
        return {**arrays, **sampled, "rows": rows}, {**facts, **told}

    def load(self, state: State) -> None:
        arrays, facts = state
        self.rows = dict(zip(facts["names"], arrays["rows"], strict=True))
        self._sampled = dict(zip(facts.get("sampled", ()), arrays.get("sampled", ()), strict=True))
        fitted = {key: value for key, value in arrays.items() if key not in ("rows", "sampled")}
        self._map = FeatureMap.load((fitted, facts))
