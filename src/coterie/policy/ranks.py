"""Ranks: processes that each hold the whole policy, compute the gradient of a part of the rows, and add it up."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.algo.sampling import at_least_float32, widened
from coterie.policy.gradients import GradientSum
from coterie.policy.tensor_parts import is_shard

LOOPBACK = "127.0.0.1"
_SCHEME = "tcp://"
SAMPLE = 32
"""Values of each tensor that a digest of the weights reads."""


def weights_digest(parameters: Mapping[str, Tensor]) -> str:
    """Digest of a few values of each tensor: ranks whose weights differ have another one. Shards are left out, since
    ranks have different ones."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(name for name, parameter in parameters.items() if not is_shard(parameter)):
        flat = parameters[name].detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
        digest.update(widened(sample).numpy(force=True).tobytes())
    return digest.hexdigest()


class LostRankError(Exception):
    """A rank did not come to a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where ranks find each other, opened by one of them.

    Attributes:
        name: with which the others open it.
        store: of torch.
        address: at which this rank listens for the others.
    """

    name: str
    store: Any
    address: str = LOOPBACK

    @classmethod
    def file(cls, path: Path, world: int) -> Self:
        """A file, for ranks of one machine that listen on loopback; a new one for each group."""
        return cls(name=str(path), store=dist.FileStore(str(path), world))

    @classmethod
    def port(cls, address: str, world: int) -> Self:
        """A port of this machine at an address that the machines of the other ranks reach."""
        server = socket.create_server((address, 0))
        port = server.getsockname()[1]
        store = dist.TCPStore(
            address, port, world, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
        )
        return cls(name=f"{_SCHEME}{address}:{port}", store=store, address=address)

    @classmethod
    def named(cls, name: str, world: int, seconds: float) -> Self:
        """What another rank opened.

        Raises:
            RuntimeError, OSError: it cannot be reached in so many seconds.
        """
        if not name.startswith(_SCHEME):
            return cls.file(Path(name), world)
        host, _, port = name.removeprefix(_SCHEME).rpartition(":")
        store = dist.TCPStore(host, int(port), world, is_master=False, timeout=timedelta(seconds=seconds))
        with socket.create_connection((host, int(port)), timeout=seconds) as probe:
            return cls(name=name, store=store, address=probe.getsockname()[0])


class Ranks:
    """The process group of one rank; the constructor returns when all ranks are there.

    Sums are made by gloo, in the processors' memory. The group is one of its own beside torch's default group, which is
    the caller's.

    Args:
        rank: from 0; rank 0 is the run.
        world: number of ranks.
        store: that this rank opened, or the name of the one that another did.
        start_s: seconds until all ranks are there.
        timeout_s: seconds that a rank waits for the others in a sum.

    Raises:
        LostRankError: the others did not come.
    """

    def __init__(
        self, rank: int, world: int, store: Store | str, *, start_s: float = 600.0, timeout_s: float = 300.0
    ) -> None:
        self.rank, self.world, self.timeout_s = rank, world, timeout_s
        try:
            meeting = Store.named(store, world, start_s) if isinstance(store, str) else store
            meeting.store.set_timeout(timedelta(seconds=start_s))
            self.store = meeting.store
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            options._timeout = timedelta(seconds=timeout_s)
            options._devices = [gloo.create_device(hostname=meeting.address)]
            self.group: Any = gloo(meeting.store, rank, world, options)
        except (RuntimeError, OSError) as error:
            raise LostRankError(f"{world} learner ranks did not find each other: {error}") from error

    @torch.no_grad()
    def gather(self, gradients: GradientSum) -> None:
        """Replace a gradient by the sum over all ranks, in master precision: the same bits on every rank.

        Tensors are added one after the other in the order of their names, whatever order autograd had, since the norm
        must be the same float on every rank. A rank without rows adds zeros; a tensor that no rank has stays absent.
        Shards were added up in the backward pass.

        Raises:
            LostRankError: a rank is gone, or did not come in time.
        """
        with self.talking("the sum"):
            self._gather(gradients)

    @contextmanager
    def talking(self, what: str) -> Generator[None]:
        """Context in which an error of torch means that a rank is lost.

        Args:
            what: that is done meanwhile, for the message.

        Raises:
            LostRankError: a rank is gone, or did not come in time.
        """
        if self.group is None:
            raise LostRankError("the group of learner ranks is closed")
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(f"{what} over {self.world} learner ranks failed: {error}") from error

    def add(self, total: Tensor) -> None:
        """Replace a tensor by its sum over all ranks.

        Raises:
            LostRankError: a rank is gone, or did not come in time.
        """
        with self.talking("the sum"):
            self._reduce(total)

    def send(self, values: Tensor, rank: int) -> None:
        """Give a rank the values that it receives from this one; none are not sent.

        Raises:
            LostRankError: it is gone, or did not come in time.
        """
        if values.numel():
            with self.talking("a message"):
                self.group.send([values.cpu().contiguous()], rank, 0).wait()

    def receive(self, values: Tensor, rank: int) -> None:
        """Fill a contiguous tensor of the CPU with what a rank sends.

        Raises:
            LostRankError: it is gone, or did not come in time.
        """
        if values.numel():
            with self.talking("a message"):
                self.group.recv([values], rank, 0).wait()

    def _gather(self, gradients: GradientSum) -> None:
        names = sorted(name for name, parameter in gradients.parameters.items() if not is_shard(parameter))
        if not names:
            return
        device = next(iter(gradients.parameters.values())).device
        present = torch.tensor([name in gradients.sums for name in names], dtype=torch.uint8, device=device)
        self._reduce(present, dist.ReduceOp.MAX)
        for name in (name for name, somewhere in zip(names, present.tolist(), strict=True) if somewhere):
            parameter, part = gradients.parameters[name], gradients.sums.pop(name, None)
            exact = at_least_float32(parameter.dtype)
            total = torch.zeros_like(parameter, dtype=exact) if part is None else part.to(exact).contiguous()
            self._reduce(total)
            gradients.sums[name] = total

    def _reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = operation
        self.group.allreduce([tensor], options).wait()

    def close(self) -> None:
        """Leave the group; ranks that wait for this one get an error at once."""
        group, self.group = self.group, None
        if group is not None:
            group.abort()
