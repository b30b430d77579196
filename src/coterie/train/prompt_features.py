"""What is known of each training prompt before anyone tries it, as the estimator's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coterie.algo.grouping.features import FeatureMap
from coterie.algo.grouping.state import State
from coterie.types import Prompt

Embed = Callable[[Sequence[Prompt]], np.ndarray]
"""[P] prompts → [P, D] what they mean."""

SAMPLE = 128
"""Training prompts on which the features are fitted."""


class PromptFeatures:
    """Features of prompts, computed once each and kept: what a prompt meant when it was first seen.

    Args:
        prompts: the training prompts.
        embed: None leaves the embedding out.
    """

    def __init__(self, prompts: Sequence[Prompt], embed: Embed | None, *, dimensions: int, seed: int) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.embed = embed
        self.dimensions, self.seed = dimensions, seed
        self.rows: dict[str, np.ndarray] = {}
        self._map: FeatureMap | None = None

    @property
    def map(self) -> FeatureMap:
        """Fitted on the first use, with the policy as it is then: before the first step."""
        if self._map is None:
            names = list(self.prompts)[:: max(1, len(self.prompts) // SAMPLE)][:SAMPLE]
            self._map = FeatureMap.fit(**self._facts(names), dims=self.dimensions, seed=self.seed)
        return self._map

    def of(self, names: Sequence[str]) -> np.ndarray:
        """[n, F] one row per prompt id."""
        fresh = [name for name in dict.fromkeys(names) if name not in self.rows]
        if fresh:
            found = self.map.apply(**self._facts(fresh))
            self.rows |= dict(zip(fresh, found, strict=True))
        return np.stack([self.rows[name] for name in names])

    def _facts(self, names: Sequence[str]) -> dict[str, Any]:
        prompts = [self.prompts[name] for name in names]
        facts: dict[str, Any] = {
            "texts": [prompt.messages[-1]["content"] for prompt in prompts],
            "tasks": [prompt.task for prompt in prompts],
        }
        if self.embed is not None:
            facts["embeddings"] = self.embed(prompts)
        return facts

    def state(self) -> State:
        arrays, facts = self.map.state()
        rows = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, len(self.map.columns)))
        return {**arrays, "rows": rows}, {**facts, "names": list(self.rows)}

    def load(self, state: State) -> None:
        arrays, facts = state
        rows = arrays["rows"]
        self.rows = dict(zip(facts["names"], rows, strict=True))
        self._map = FeatureMap.load(({key: value for key, value in arrays.items() if key != "rows"}, facts))
