"""The two moments of AdamW: full precision (torch), or 8 bits in blocks of 256 (bitsandbytes)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from coterie.config.optim import OptimConfig
from coterie.errors import CheckpointError, ConfigError, install_command

BLOCK = 256
"""Values that share one scale in the 8-bit state; fixed by bitsandbytes."""
SMALL = 4096
"""Tensors with fewer values keep full moments, as bitsandbytes does: norms and biases cost nothing and matter."""


class Moments(Protocol):
    """Optimizer state of named flat tensors."""

    kind: str

    def advance(self, name: str) -> None:
        """Count one step of this tensor, before its pieces are stepped."""
        ...

    def step(self, name: str, part: slice, master: Tensor, grad: Tensor, rate: float, decay: float) -> None:
        """Move `master` [n], the piece `part` of the tensor, along `grad` [n]; both in master precision.

        Args:
            decay: decoupled weight decay of this tensor.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Named tensors for safetensors."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state()`, whose tensors are all there and of the right size."""
        ...


class FullMoments:
    """Moments in master precision."""

    kind = "float32"

    def __init__(self, masters: Mapping[str, tuple[int, torch.dtype, torch.device]], config: OptimConfig) -> None:
        self.config = config
        self.exp_avg = {name: torch.zeros(n, dtype=t, device=d) for name, (n, t, d) in masters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(held) for name, held in self.exp_avg.items()}
        # torch counts steps in float32, beside the moments
        self.steps = {name: torch.zeros((), device=held.device) for name, held in self.exp_avg.items()}

    def advance(self, name: str) -> None:
        self.steps[name] += 1

    def step(self, name: str, part: slice, master: Tensor, grad: Tensor, rate: float, decay: float) -> None:
        adamw(
            [master],
            [grad],
            [self.exp_avg[name][part]],
            [self.exp_avg_sq[name][part]],
            [],
            [self.steps[name] - 1],  # torch adds one to what it is given
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=rate,
            weight_decay=decay,
            eps=self.config.eps,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        steps = {f"step/{name}": held.clone().reshape(1) for name, held in self.steps.items()}
        return steps | _named("exp_avg", self.exp_avg) | _named("exp_avg_sq", self.exp_avg_sq)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        _fill("step", self.steps, tensors)
        _fill("exp_avg", self.exp_avg, tensors)
        _fill("exp_avg_sq", self.exp_avg_sq, tensors)


class BlockMoments:
    """Moments in 8 bits a value and one float32 scale for each `BLOCK` (Dettmers et al. 2022).

    Raises:
        ConfigError: bitsandbytes is not installed, or the master is float64.
    """

    kind = "8bit"

    def __init__(self, masters: Mapping[str, tuple[int, torch.dtype, torch.device]], config: OptimConfig) -> None:
        if any(dtype != torch.float32 for _, dtype, _ in masters.values()):
            raise ConfigError('optim.state = "8bit" needs model.dtype bfloat16 or float32; got float64')
        functional = _bitsandbytes()
        self.config = config
        large = {name: held for name, held in masters.items() if held[0] >= SMALL}
        self.small = FullMoments({name: held for name, held in masters.items() if name not in large}, config)
        self.codes: dict[str, tuple[Tensor, Tensor]] = {}  # [n] uint8, of either moment
        self.scales: dict[str, tuple[Tensor, Tensor]] = {}  # [⌈n / BLOCK⌉] float32
        self.steps = {name: torch.zeros(()) for name in large}
        maps = functional.create_dynamic_map(signed=True), functional.create_dynamic_map(signed=False)
        self.maps = {device: tuple(one.to(device) for one in maps) for _, _, device in large.values()}
        for name, (size, _, device) in large.items():
            blocks = -(-size // BLOCK)
            # Code 0 stands for no moment only where the scale is 0, which it is.
            self.codes[name] = _two(torch.zeros(size, dtype=torch.uint8, device=device))
            self.scales[name] = _two(torch.zeros(blocks, device=device))

    def advance(self, name: str) -> None:
        if name in self.steps:
            self.steps[name] += 1
        else:
            self.small.advance(name)

    def step(self, name: str, part: slice, master: Tensor, grad: Tensor, rate: float, decay: float) -> None:
        if name not in self.codes:
            self.small.step(name, part, master, grad, rate, decay)
            return
        config = self.config
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        (first, second), (scale, scale_sq) = self.codes[name], self.scales[name]
        map1, map2 = self.maps[master.device]
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
            "adam",  # its weight decay is decoupled
            grad,
            master,
            first[part],
            second[part],
            config.beta1,
            config.beta2,
            0.0,  # beta3 and alpha belong to another optimizer
            0.0,
            config.eps,
            int(self.steps[name]),
            rate,
            map1,
            map2,
            scale[blocks],
            scale_sq[blocks],
            decay,
            1.0,
            False,
        )

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {
            "step": self.steps,
            "exp_avg_8bit": {name: held[0] for name, held in self.codes.items()},
            "exp_avg_sq_8bit": {name: held[1] for name, held in self.codes.items()},
            "exp_avg_scale": {name: held[0] for name, held in self.scales.items()},
            "exp_avg_sq_scale": {name: held[1] for name, held in self.scales.items()},
        }

    def state(self) -> dict[str, Tensor]:
        found = self.small.state()
        for part, held in self._parts().items():
            found |= _named(part, {name: tensor.reshape(-1) for name, tensor in held.items()})
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.small.load(tensors)
        for part, held in self._parts().items():
            _fill(part, held, tensors)


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """Which `optim.state` wrote these tensors."""
    return BlockMoments.kind if any(name.startswith("exp_avg_8bit/") for name in tensors) else FullMoments.kind


def _two(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor, tensor.clone()


def _named(part: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in held.items()}


def _fill(part: str, held: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in held.items():
        saved = tensors.get(f"{part}/{name}")
        if saved is None or saved.numel() != tensor.numel():
            found = "nothing" if saved is None else f"{saved.numel()} values"
            raise CheckpointError(f"the checkpoint has {found} for {part}/{name}, expected {tensor.numel()} values")
        tensor.copy_(saved.reshape(tensor.shape))


def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about 4-bit kernels that are not needed here
    try:
        functional: Any = importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(
            f'optim.state = "8bit" needs the package bitsandbytes: {install_command("8bit")}, or use "float32"'
        ) from error
    finally:
        logger.setLevel(level)
    return functional
