"""Settings of the model that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coterie.config.section import Section


class LoraConfig(Section):
    """Train a low-rank adapter (PEFT layout) instead of all weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Module names to adapt."""


class ModelConfig(Section):
    """Which model is trained."""

    name: str = "smollm2-135m"
    """An asset name (`coterie assets ls`), a local folder, or a transformers id."""
    revision: str | None = None
    """Pinned revision of a transformers id."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Number format of the compute copy; auto = bfloat16 where the machine computes it natively. Master weights are
    float32 (float64 under float64)."""
    device: str = "auto"
    """auto (the first CUDA device, else the CPU), cpu, cuda, cuda:N, mps, xpu, or another device of torch."""
    lora: LoraConfig | None = None
    """Set to train an adapter; leave out to train all weights."""
