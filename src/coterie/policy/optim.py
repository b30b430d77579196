"""AdamW on full-precision master weights behind the compute copy.

At learning rates near 1e-6 a bfloat16 weight rounds most updates away, so the optimizer steps float32 masters and the
compute copy (which sampler and learner share) is their rounding. Gradients of all micro-batches are summed in float32.

The moments are in full precision (torch), or in 8 bits with a scale for each block of 256 (bitsandbytes).

The step works through one chunk of one tensor at a time, so that neither a whole float32 master of a bfloat16 weight
nor a second copy of a gradient ever exists, and frees each gradient as it goes.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from coterie.algo.sampling import at_least_float32
from coterie.config.optim import OptimConfig
from coterie.errors import CheckpointError, ConfigError, install_command
from coterie.policy.gradients import GradientSum, chunks, merge, split
from coterie.policy.tensor_parts import local

BLOCK = 256
"""Values that share one scale in the 8-bit state; fixed by bitsandbytes."""
SMALL = 4096
"""Tensors with fewer values keep full moments, as bitsandbytes does: norms and biases cost nothing and matter."""


class Moments(Protocol):
    """Optimizer state of named flat tensors."""

    kind: str

    def advance(self, name: str) -> None:
        """Count one step of this tensor, before its chunks are stepped."""
        ...

    def step(self, name: str, part: slice, master: Tensor, grad: Tensor, rate: float, decay: float) -> None:
        """Move `master` [n], the chunk `part` of the tensor, along `grad` [n]; both in master precision.

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

    def __init__(self, specs: Mapping[str, tuple[int, torch.dtype, torch.device]], config: OptimConfig) -> None:
        self.config = config
        self.exp_avg = {name: torch.zeros(n, dtype=t, device=d) for name, (n, t, d) in specs.items()}
        self.exp_avg_sq = {name: torch.zeros_like(moment) for name, moment in self.exp_avg.items()}
        # torch counts steps in float32, beside the moments
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=moment.device) for name, moment in self.exp_avg.items()
        }

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
        steps = {f"step/{name}": count.clone().reshape(1) for name, count in self.steps.items()}
        return steps | _named("exp_avg", self.exp_avg) | _named("exp_avg_sq", self.exp_avg_sq)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        _fill("step", self.steps, tensors)
        _fill("exp_avg", self.exp_avg, tensors)
        _fill("exp_avg_sq", self.exp_avg_sq, tensors)


class BlockMoments:
    """Moments in 8 bits a value and one float32 scale for each `BLOCK` (Dettmers et al. 2022)."""

    kind = "8bit"

    def __init__(self, specs: Mapping[str, tuple[int, torch.dtype, torch.device]], config: OptimConfig) -> None:
        if any(dtype != torch.float32 for _, dtype, _ in specs.values()):
            raise ConfigError('optim.moments = "8bit" needs model.dtype bfloat16 or float32; got float64')
        functional = _bitsandbytes()
        self.config = config
        large = {name: spec for name, spec in specs.items() if spec[0] >= SMALL}
        self.small = FullMoments({name: spec for name, spec in specs.items() if name not in large}, config)
        self.codes: dict[str, tuple[Tensor, Tensor]] = {}  # [n] uint8, of either moment
        self.scales: dict[str, tuple[Tensor, Tensor]] = {}  # [⌈n / BLOCK⌉] float32
        self.steps = {name: torch.zeros(()) for name in large}
        maps = functional.create_dynamic_map(signed=True), functional.create_dynamic_map(signed=False)
        self.maps = {device: tuple(code_map.to(device) for code_map in maps) for _, _, device in large.values()}
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
            "exp_avg_8bit": {name: pair[0] for name, pair in self.codes.items()},
            "exp_avg_sq_8bit": {name: pair[1] for name, pair in self.codes.items()},
            "exp_avg_scale": {name: pair[0] for name, pair in self.scales.items()},
            "exp_avg_sq_scale": {name: pair[1] for name, pair in self.scales.items()},
        }

    def state(self) -> dict[str, Tensor]:
        tensors = self.small.state()
        for part, moments in self._parts().items():
            tensors |= _named(part, {name: tensor.reshape(-1) for name, tensor in moments.items()})
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.small.load(tensors)
        for part, moments in self._parts().items():
            _fill(part, moments, tensors)


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """The `optim.moments` that wrote these tensors."""
    return BlockMoments.kind if any(name.startswith("exp_avg_8bit/") for name in tensors) else FullMoments.kind


def _two(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor, tensor.clone()


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _fill(part: str, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in targets.items():
        saved = tensors.get(f"{part}/{name}")
        if saved is None or saved.numel() != tensor.numel():
            stored = "nothing" if saved is None else f"{saved.numel()} values"
            raise CheckpointError(f"the checkpoint has {stored} for {part}/{name}, expected {tensor.numel()} values")
        tensor.copy_(saved.reshape(tensor.shape))


def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about 4-bit kernels that are not needed here
    try:
        functional: Any = importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(
            f'optim.moments = "8bit" needs the package bitsandbytes: {install_command("8bit")}, or use "float32"'
        ) from error
    finally:
        logger.setLevel(level)
    return functional


STATES: dict[str, type[FullMoments] | type[BlockMoments]] = {"float32": FullMoments, "8bit": BlockMoments}
"""Values of `optim.moments`."""


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Rate of optimizer step `step` (from 1) of `total`: linear warm-up, then constant, or down along a line or a
    cosine; see `OptimConfig.schedule`."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    left = min(1.0, max(0.0, (total - step + 1) / max(1, total - config.warmup)))
    share = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[config.schedule]
    return config.lr * share


class MasterAdamW:
    """AdamW over `parameters`, whose gradients it collects in `gradients`; of sharded ones over this process's part.

    Raises:
        ConfigError: `optim.moments` cannot be had for these parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.gradients = GradientSum(self.parameters)
        self.low = {
            name: torch.zeros(local(parameter).numel(), dtype=torch.int16, device=parameter.device)
            for name, parameter in self.parameters.items()
            if parameter.dtype == torch.bfloat16
        }
        self.decay = {
            name: config.weight_decay if parameter.ndim > 1 or config.decay_norms else 0.0
            for name, parameter in self.parameters.items()
        }
        specs = {name: (local(p).numel(), at_least_float32(p.dtype), p.device) for name, p in self.parameters.items()}
        self.moments: Moments = STATES[config.moments](specs, config)

    @property
    def master_weights(self) -> dict[str, Tensor]:
        """Name → master weights in the parameter's shape; new memory for bfloat16 weights."""
        return {
            name: merge(_flat(p), self.low[name]).view(local(p).shape) if name in self.low else local(p)
            for name, p in self.parameters.items()
        }

    def take_gradients(self) -> dict[str, Tensor]:
        """The summed gradient by name, in master precision; it is gone afterwards."""
        return self.gradients.take()

    @torch.no_grad()
    def step(self, rate: float, norm: float | None = None) -> float:
        """Clip and step at this learning rate; the gradient is cleared either way.

        Args:
            norm: of the gradient, where it is known already.

        Returns:
            The gradient norm before clipping. If it is not finite, the step was not taken.
        """
        norm = self.gradients.norm() if norm is None else norm
        if math.isfinite(norm):
            scale = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
            for name in list(self.gradients.sums):
                self._step(name, self.gradients.sums.pop(name), scale, rate)
        self.gradients.drop()
        return norm

    def _step(self, name: str, grad: Tensor, scale: float, rate: float) -> None:
        weights, flat = _flat(self.parameters[name]), grad.reshape(-1)
        low = self.low.get(name)
        self.moments.advance(name)
        for part in chunks(weights.numel(), weights.device):
            scaled_grad = flat[part].to(at_least_float32(flat.dtype)).mul_(scale)
            if low is None:
                self.moments.step(name, part, weights[part], scaled_grad, rate, self.decay[name])
            else:
                master = merge(weights[part], low[part])
                self.moments.step(name, part, master, scaled_grad, rate, self.decay[name])
                split(master, weights[part], low[part])

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as flat named tensors for safetensors."""
        return {
            **{f"weight/{name}": local(parameter) for name, parameter in self.parameters.items()},
            **{f"low/{name}": low for name, low in self.low.items()},
            **self.moments.state(),
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state()`."""
        if kind_of(tensors) != self.moments.kind:
            raise CheckpointError(
                f'the checkpoint was made with optim.moments = "{kind_of(tensors)}", the settings say '
                f'"{self.moments.kind}"; put optim.moments back, or start a new run'
            )
        for name, weight in ((name, local(parameter)) for name, parameter in self.parameters.items()):
            saved = tensors.get(f"weight/{name}")
            if saved is None or (saved.shape, saved.dtype) != (weight.shape, weight.dtype):
                stored = "nothing" if saved is None else f"{tuple(saved.shape)} {saved.dtype}"
                raise CheckpointError(
                    f"the checkpoint has {stored} for {name}, expected {tuple(weight.shape)} {weight.dtype}: it "
                    "is of another model, or of another version of coterie"
                )
            weight.copy_(saved)
            if name in self.low:
                self.low[name].copy_(tensors[f"low/{name}"])
        self.moments.load(tensors)


def _flat(parameter: Tensor) -> Tensor:
    """The parameter's own memory in this process as [n]."""
    return local(parameter).view(-1)
