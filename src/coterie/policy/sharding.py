"""Shards: each learner rank holds a part of every tensor, and the whole of a layer only while it is computed.

This is torch's FSDP2 (`fully_shard`; Zhao et al. 2023, PyTorch FSDP, arXiv:2304.11277). Every tensor is cut along its
first axis into parts of ⌈rows / ranks⌉ rows, of which rank r has the r-th; the last parts may be shorter, or empty. A
decoder layer is gathered before it is computed, forward and backward, and its gradient is added up into the shards.
Embedding, last norm and head are gathered for the whole pass. So every rank makes as many passes as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from coterie.algo.sampling import at_least_float32
from coterie.errors import CheckpointError, ConfigError, ModelError
from coterie.policy.attention import Layout
from coterie.policy.gradients import GradientSum, tensor_norm
from coterie.policy.model import Policy
from coterie.policy.path import ModelRunner
from coterie.policy.ranks import Ranks
from coterie.policy.tensor_parts import Cut, cuts_of, is_shard, local, whole_shape
from coterie.runs.state_files import require_short_header

BACKEND = "coterie_gloo"
"""Name under which torch is given the ranks' own process group."""
REMEDY = 'use cluster.strategy = "replicate"'


class ShardedRunner(ModelRunner):
    """Runs a model whose layers are shards: it is entered through its root and left at its end, as FSDP2 needs it.

    Attributes:
        accompanied: context in which the other ranks make one pass too, for passes that rank 0 alone asks for.
    """

    def __init__(self, runner: ModelRunner) -> None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        super().__init__(runner.model, runner.path)
        self.accompanied: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.model.packed_states = super().hidden
        register_fsdp_forward_method(self.model, "packed_states")

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self.model.packed_states(tokens, positions, layout)

    def mid_layer_states(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        states: list[Tensor] = []

        def keep(_layer: nn.Module, _given: Any, out: Any) -> None:
            states.append(out[0] if isinstance(out, tuple) else out)

        layers = self.decoder.layers
        hook = layers[max(0, len(layers) // 2 - 1)].register_forward_hook(keep)
        try:
            with self.accompanied():
                self.hidden(tokens, positions, layout)
        finally:
            hook.remove()
            self.settle()
        return states[0]

    def settle(self) -> None:
        self.model.reshard()


class Sharding:
    """The shards of one rank.

    Args:
        ranks: all that have a part. On the CPU they exchange layers by their own process group, on GPUs by NCCL.
        device: of the policy. On GPUs each rank of a machine takes the one of its number.

    Raises:
        ConfigError: torch's default process group is in use already.
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        if dist.is_initialized():
            raise ConfigError(
                "torch.distributed is in use in this process already, and FSDP2 needs its default process group; start "
                'the run without torchrun: cluster.host = "processes" starts the ranks'
            )
        self.ranks = ranks
        backend, store = "nccl", dist.PrefixStore("fsdp", ranks.store)
        if device.type == "cuda":
            torch.cuda.set_device(ranks.rank % torch.cuda.device_count())
        else:
            backend = BACKEND
            dist.Backend.register_backend(BACKEND, lambda *_: ranks.group, devices=["cpu"])
        dist.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=ranks.timeout_s),
        )
        self._open = True
        self.mesh = dist.device_mesh.init_device_mesh(device.type, (ranks.world,))

    def cut(self, policy: Policy) -> Policy:
        """Leave this rank its part of a policy's tensors; returns the policy.

        Raises:
            ModelError: FSDP2 cannot compute the model.
        """
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        layers = _layers(policy)
        # Gradients are added up in master precision, and rounded to the weight's format once.
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=at_least_float32(policy.dtype)),
        }
        for layer in layers:
            fully_shard(layer, **options)
        fully_shard(policy.model, **options)
        for module in policy.model.modules():
            if isinstance(module, FSDPModule):
                # Each token carries its share of one denominator: a sum, where FSDP2 would take the mean.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        policy.model.set_reduce_scatter_unused_params(True)
        policy.runner = ShardedRunner(policy.runner)
        if policy.start:
            policy.start = {name: local(parameter).clone() for name, parameter in policy.parameters().items()}
        return policy

    def norm(self, gradients: GradientSum) -> float:
        """The L2 norm of a gradient of which each rank has a part: the same float on every rank."""
        squares = 0.0
        for name, gradient in gradients.sums.items():
            if is_shard(gradients.parameters[name]) or self.ranks.rank == 0:  # what all have counts once
                squares += float(tensor_norm(gradient)) ** 2
        total = torch.tensor([squares], dtype=torch.float64)
        self.ranks.add(total)
        return math.sqrt(float(total)) if total >= 0 else math.nan

    def read(self, file: Path, parameters: Mapping[str, Tensor]) -> ShardFile:
        """This rank's part of a state file.

        Args:
            parameters: by the names that the file has them under.
        """
        return ShardFile(file, cuts_of(parameters, self.ranks.world), self.ranks.rank)

    def close(self) -> None:
        """Leave the process group."""
        if self._open:
            self._open = False
            dist.destroy_process_group()


def _layers(policy: Policy) -> nn.ModuleList:
    """The decoder's layers, each to be a group of shards.

    Raises:
        ModelError: there are none, or FSDP2 cannot compute them.
    """
    name, layers = type(policy.model).__name__, getattr(policy.decoder, "layers", None)
    if policy.path.kind != "packed" or policy.path.states != "decoder":
        reason = policy.path.reason or "its head is given more than the decoder's output"
        raise ModelError(f"{name} cannot be cut into shards: it runs through its own forward pass ({reason}); {REMEDY}")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ModelError(f"{name} cannot be cut into shards: its decoder has no list of layers; {REMEDY}")
    owners: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            if owners.setdefault(id(parameter), number) != number:
                raise ModelError(f"{name} cannot be cut into shards: its layers share weights; {REMEDY}")
    formats = sorted({str(parameter.dtype) for parameter in policy.model.parameters()})
    if len(formats) > 1:
        raise ModelError(f"{name} cannot be cut into shards: its weights have formats {', '.join(formats)}; {REMEDY}")
    return layers


class ShardFile(Mapping[str, Tensor]):
    """One rank's part of the tensors of a state file, read one by one.

    Args:
        cuts: by parameter; see `cuts_of`.
    """

    def __init__(self, file: Path, cuts: Mapping[str, Cut], rank: int) -> None:
        self.file, self.cuts, self.rank = file, cuts, rank
        with self._open() as handle:
            self._names = list(handle.keys())

    @contextmanager
    def _open(self) -> Generator[Any]:
        try:
            require_short_header(self.file)
            with safe_open(self.file, framework="pt") as handle:
                yield handle
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {self.file}: {error}") from error

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._names:
            raise KeyError(key)
        with self._open() as handle:
            saved, place = handle.get_slice(key), whole_shape(key, self.cuts)
            if place is None or tuple(saved.get_shape()) != place[1]:
                return handle.get_tensor(key)  # of another shape: its reader says so
            cut, shape = place
            first, last = cut.rows(self.rank) if shape == cut.shape else cut.values(self.rank)
            return saved[first:last] if first < last else saved[0:1][:0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
