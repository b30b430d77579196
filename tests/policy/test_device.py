"""Devices by name; no machine of the tests has all of them, so what is missing has to be said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import coterie
from coterie import machine
from coterie.algo import sampling
from coterie.errors import ConfigError
from coterie.policy import device as devices
from coterie.policy.device import device_named, dtype_named

PACKAGE = Path(coterie.__file__).parent
ABSENT = [
    name
    for name, there in (
        ("mps", torch.backends.mps.is_available()),
        ("xpu", torch.xpu.is_available()),
        ("cuda", torch.cuda.is_available()),
        ("hpu", False),
        ("privateuseone", False),
    )
    if not there
]


@pytest.mark.parametrize("name", [*ABSENT, "cuda:99"])
def test_a_device_that_is_not_here_is_an_error_with_a_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.device = '{name}', but torch cannot compute on it .*use auto, cpu"):
        device_named(name)


def test_what_is_no_device_at_all() -> None:
    with pytest.raises(ConfigError, match=r"'gpu' is not a device of torch; expected auto, cpu"):
        device_named("gpu")
    with pytest.raises(ConfigError, match=r"'meta' holds shapes and no numbers; expected auto, cpu"):
        device_named("meta")


def test_the_processor() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("auto").type in ("cpu", "cuda")


def test_number_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = torch.device("mps")  # a name; nothing is put there
    assert dtype_named("auto", mps) == torch.float32
    assert dtype_named("bfloat16", mps) == torch.bfloat16
    monkeypatch.setattr(devices, "has_float64", lambda kind: kind != "mps")
    with pytest.raises(ConfigError, match=r"model\.dtype = 'float64', which mps does not have; use float32"):
        dtype_named("float64", mps)
    assert dtype_named("float64", torch.device("cpu")) == torch.float64


def test_float64_is_asked_of_no_device_that_has_none() -> None:
    """MPS refuses float64: whatever may lie there is widened by `algo.precision`, which goes to the CPU for it."""
    assert sampling.has_float64("cpu")
    assert not sampling.has_float64(ABSENT[0]) or ABSENT[0] == "cuda"
    allowed = {"algo/sampling.py"}  # it moves to the CPU itself
    for folder in ("algo", "policy", "engines", "train"):
        for file in (PACKAGE / folder).rglob("*.py"):
            if str(file.relative_to(PACKAGE)) not in allowed:
                assert not re.search(r"\.double\(\)", file.read_text()), file


def test_the_machine_page_says_what_would_be_used() -> None:
    apple = machine.Gpu(name="Apple GPU", memory=machine.GIB, device="mps")
    text = "\n".join(machine.plan(machine.facts(), [apple], "1"))
    assert "device: cpu" in text
    assert "Apple GPU is used when you set model.device = 'mps'" in text
    cuda = machine.Gpu(name="Big", memory=machine.GIB)
    assert machine.plan(machine.facts(), [cuda], "1")[0].startswith("device: cuda:0, Big")
