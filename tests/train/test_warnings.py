"""Warnings when sampler and learner disagree in one step."""

from __future__ import annotations

import pytest
import torch

from coterie.train.warnings import disagreement


@pytest.mark.parametrize(
    ("kl", "dtype", "warns"),
    [
        (8e-14, torch.float32, False),
        (1e-6, torch.float32, False),
        (1.1e-6, torch.float32, True),
        (1.1e-6, torch.float64, True),
        (1e-4, torch.bfloat16, False),
        (1.1e-2, torch.bfloat16, True),
        (1.1e-2, torch.float16, True),
        (None, torch.float32, False),
    ],
)
def test_more_than_rounding_is_told(kl: float | None, dtype: torch.dtype, warns: bool) -> None:
    metrics = {} if kl is None else {"mismatch/kl": kl, "mismatch/kl_error": 4e-4, "staleness/max": 0.0}
    text = disagreement(metrics, dtype)
    assert (text is not None) is warns
    if text is not None:
        assert f"mismatch/kl = {kl:.2g} nats a token" in text
        assert str(dtype).removeprefix("torch.") in text


def test_rollouts_of_an_older_policy_are_expected_to_differ() -> None:
    assert disagreement({"mismatch/kl": 0.5, "staleness/max": 1.0}, torch.float32) is None


@pytest.mark.parametrize(("error", "warns"), [(0.07, False), (0.031, False), (0.029, True), (None, False)])
def test_one_token_alone_does_not_tell_in_half_precision(error: float | None, warns: bool) -> None:
    metrics = {"mismatch/kl": 0.07} | ({} if error is None else {"mismatch/kl_error": error})
    assert (disagreement(metrics, torch.bfloat16) is not None) is warns
    assert disagreement(metrics, torch.float32) is not None
