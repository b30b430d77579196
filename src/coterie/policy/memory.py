"""Memory of the update by use, measured before the first step."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from coterie import machine
from coterie.algo.sampling import at_least_float32
from coterie.batches.batch import Batch
from coterie.machine import GIB
from coterie.policy.activations import release
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.tensor_parts import local


def reset_peak(device: torch.device) -> None:
    """Start a new high-water mark, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # else the mark stays that of the whole process: too high, never too low
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes at the high-water mark: of the process on a CPU, of torch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_resident()


def optimizer_bytes(learner: Learner) -> int:
    """Bytes of the optimizer's state beside the weights."""
    optimizers = [learner.optimizer] + ([learner.critic.optimizer] if learner.critic is not None else [])
    states = [item for optimizer in optimizers for item in optimizer.state().items()]
    return sum(t.numel() * t.element_size() for name, t in states if not name.startswith("weight/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Measurements of a pre-flight pass; all in bytes."""

    total: int
    """High-water mark of the pass with the sampling memory beside it: what the run will need."""
    weights: int
    optimizer: int
    gradient: int
    sampling: int
    activations: int
    """The rest of the pass: activations, temporary tensors."""
    tokens: int
    """Of the packed row that was tried."""
    limit: int | None
    """Maximum tokens of a row that fit, where that one did not."""

    def line(self) -> str:
        """The report as one line of text."""
        text = (
            f"{self.total / GIB:.1f} GiB at most: weights {self.weights / GIB:.2f}, optimizer "
            f"{self.optimizer / GIB:.2f}, gradient {self.gradient / GIB:.2f}, sampling {self.sampling / GIB:.2f}, "
            f"activations of {self.limit or self.tokens} tokens {self.activations / GIB:.2f}"
        )
        if self.limit is not None:
            text += f"; a row of {self.tokens} tokens did not fit, so rows are cut to {self.limit}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Estimate of what one learner rank with shards needs; all in bytes."""

    shards: int
    """Its part of weights, optimizer and gradient, and of the weights of a reference."""
    gathered: int
    """Whole weights that are there at once, and their gradient: of embedding, norm and head, and of one layer."""
    activations: int
    start: int
    """The whole weights, which are read before they are cut."""
    base: int
    """The interpreter with its libraries."""

    @property
    def total(self) -> int:
        """The most at once."""
        return self.base + max(self.start + self.shards, self.shards + self.gathered + self.activations)

    def line(self) -> str:
        """The estimate as a line of text."""
        return (
            f"{self.total / GIB:.2f} GiB: shards {self.shards / GIB:.2f}, gathered at once {self.gathered / GIB:.2f}, "
            f"activations {self.activations / GIB:.2f}, at the start the whole weights {self.start / GIB:.2f}"
        )


def rank_memory(usage: MemoryReport, policy: Policy, ranks: int, *, reference: bool) -> RankMemory:
    """Memory of one of so many ranks with shards, from the pass of a whole learner.

    Args:
        usage: of that pass, of `policy` with whole weights.
        reference: there is a frozen copy of the weights.
    """
    layers = [sum(p.numel() for p in layer.parameters()) for layer in getattr(policy.decoder, "layers", ())]
    root = policy.size() - sum(layers)
    trained = usage.gradient / max(1, usage.weights)
    together, width = root + max(layers, default=0), policy.dtype.itemsize
    state = usage.weights * (2 if reference else 1) + usage.optimizer + usage.gradient
    return RankMemory(
        shards=state // ranks,
        # The weights, and a copy of their gradient on its way to the shards; the gradient itself is in the activations.
        gathered=round(together * (width + trained * at_least_float32(policy.dtype).itemsize)),
        activations=usage.activations,
        start=usage.weights,
        base=max(
            0, usage.total - usage.sampling - usage.activations - usage.weights - usage.optimizer - usage.gradient
        ),
    )


def preflight(learner: Learner, batch: Batch, *, sampling: int) -> MemoryReport:
    """Run the largest batch forward and backward once, and drop the gradient: weights, optimizer and random streams
    stay as they are. Where it does not fit, the learner's later batches are cut at once.

    Args:
        batch: see `coterie.batches.pack.largest`.
        sampling: bytes that the engine has not reserved yet.

    Raises:
        DoesNotFitError: not even one rollout of it fits.
    """
    device = learner.policy.device
    release()
    reset_peak(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else machine.resident()
    grads = learner.gradient([batch])
    gradient = sum(grad.numel() * grad.element_size() for grad in grads.values())
    high = peak(device)
    del grads
    release()
    return MemoryReport(
        total=high + sampling,
        weights=sum(local(p).numel() * p.element_size() for p in learner.policy.model.parameters()),
        optimizer=optimizer_bytes(learner),
        gradient=gradient,
        sampling=sampling,
        activations=max(0, high - before - gradient),
        tokens=len(batch.tokens),
        limit=learner.fitting.limit,
    )
