"""Prompt features, computed once each, also across a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.grouping import features as prompt_features
from coterie.grouping.features import PromptFeatures
from coterie.types import Prompt

NAMES = tuple("abcdefgh")


def prompt(name: str) -> Prompt:
    return Prompt(id=name, messages=({"role": "user", "content": f"What is 1{ord(name)}?"},), answer="1", task="sums")


class Policy:
    """Says what prompts mean, and otherwise after an update."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.shift = 0.0

    def __call__(self, prompts: Sequence[Prompt]) -> np.ndarray:
        self.asked += [prompt.id for prompt in prompts]
        return np.stack([np.cos(np.arange(1, 5) * ord(prompt.id)) + self.shift for prompt in prompts])


def features(policy: Policy) -> PromptFeatures:
    return PromptFeatures([prompt(name) for name in NAMES], policy, dimensions=2)


def test_no_prompt_is_embedded_twice(monkeypatch) -> None:
    monkeypatch.setattr(prompt_features, "SAMPLE", 4)
    policy = Policy()
    store = features(policy)
    assert store.of(["a", "b"]).shape[0] == 2
    assert policy.asked == ["a", "c", "e", "g", "b"], (
        "the sample on which the features are fitted, and who was asked for"
    )
    assert [prompt.id for prompt, _ in store.fresh] == ["a", "b"]
    store.of(NAMES)
    assert sorted(policy.asked) == list(NAMES)


def test_a_resumed_run_knows_of_the_sample_what_the_first_model_said(monkeypatch) -> None:
    monkeypatch.setattr(prompt_features, "SAMPLE", 4)
    policy = Policy()
    first_run = features(policy)
    first_run.of(["a", "b"])
    state = first_run.state()
    policy.shift = 1.0
    resumed = features(policy)
    resumed.load(state)
    assert np.array_equal(resumed.of(NAMES), first_run.of(NAMES))
    assert [prompt.id for prompt, _ in resumed.fresh] == list("cdefgh")
    arrays, facts = resumed.state()
    assert facts["sampled"] == []
    assert "sampled" not in arrays, "all of them were asked for"
    again = features(policy)
    again.load((arrays, facts))
    assert np.array_equal(again.of(NAMES), first_run.of(NAMES))
