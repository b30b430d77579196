"""Decoding at static shapes, so that one step is one CUDA graph: a launch instead of hundreds.

Inputs live in static buffers; the number of rows and the attended length are rounded up to buckets, and every pair of
buckets is captured once. On a CPU the very same code runs without the capture.

Rows that only fill up a bucket write position 0 of their own, unused row of the pool and see nothing but it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from coterie.algo.sampling import sample
from coterie.engines.base import Sampling
from coterie.errors import EngineError
from coterie.policy.kv import DecodeLayout, KVPool
from coterie.policy.model import Policy

T = TypeVar("T")


_STEP = 64
"""Attended lengths are multiples of this, so that the rows of a mask stay aligned for the GPU's kernels."""


class Runner(Protocol):
    """Captures a function of static buffers for fast replay."""

    def capture(self, function: Callable[[], T]) -> Callable[[], T]: ...


class EagerRunner:
    """Runner without capture, for devices other than CUDA."""

    def capture(self, function: Callable[[], T]) -> Callable[[], T]:
        return function


class GraphRunner:
    """Runner of CUDA graphs that share one memory pool: a replay's output lasts until the next replay."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], T]) -> Callable[[], T]:
        """Run twice to warm up (lazy initialisation must not be captured), then record.

        The function may write, as long as a second run writes the same.
        """
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads of the program may allocate meanwhile
            with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
                out = function()

        def replay() -> T:
            graph.replay()
            return out

        return replay


def runner_for(device: torch.device) -> Runner:
    """CUDA graphs on CUDA, else plain calls."""
    return GraphRunner(device) if device.type == "cuda" else EagerRunner()


def row_bucket(count: int, slots: int) -> int:
    """Bucket of a number of rows: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, … at most the number of slots.

    >>> [row_bucket(n, 64) for n in (1, 5, 9, 33, 49, 64)]
    [1, 6, 12, 48, 64, 64]
    """
    power = 1 << (count - 1).bit_length()
    half = power * 3 // 4
    return min(half if power > 2 and count <= half else power, slots)


def length_bucket(length: int, capacity: int) -> int:
    """Bucket of a length: four an octave from 256 on (at most a quarter too long), multiples of 64 below.

    >>> [length_bucket(n, 4096) for n in (1, 64, 65, 300, 600, 1100)]
    [64, 64, 128, 320, 640, 1280]
    """
    step = max(_STEP, (1 << (length - 1).bit_length()) // 8)
    return min(-(-length // step) * step, capacity)


class StaticDecoder:
    """Decoder of one token for each of the rows 0..n-1 of a pool.

    The graphs hold the addresses of the weights and of the pool. Weights may change in place (as the optimizer changes
    them); a pool whose tensors were replaced is noticed, and its graphs are captured anew.

    Args:
        pool: read and written; its layers must exist, that is, a prompt was admitted.
        runner: None takes CUDA graphs on CUDA and plain calls elsewhere.
    """

    def __init__(self, policy: Policy, pool: KVPool, runner: Runner | None = None) -> None:
        device = policy.device
        self.policy = policy
        self.pool = pool
        self.runner = runner or runner_for(device)
        self.captured: dict[Hashable, Callable[[], Any]] = {}
        self._kv_tensors: list[Tensor] = []
        self._tokens = torch.zeros(pool.slots, dtype=torch.int64, device=device)
        self._positions = torch.zeros(pool.slots, dtype=torch.int64, device=device)
        self._draws = torch.zeros(pool.slots, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits after each row's newest token.

        Args:
            tokens: [n] the newest token of each row.
            positions: [n] where it goes in its sequence.

        Returns:
            [n, V], overwritten by the next call.
        """
        rows, length = self._load(tokens, positions)
        run = self._run((rows, length), lambda: self._logits(rows, length))
        return run()[: len(tokens)]

    @torch.inference_mode()
    def sample(
        self, tokens: Sequence[int], positions: Sequence[int], draws: Sequence[float], sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The step and the sampling of the next tokens in one.

        Args:
            draws: [n] uniform numbers in [0, 1).

        Returns:
            Tokens, their log-probabilities and entropies, each [n], as `algo.sampling.sample` gives them; overwritten
            by the next call.
        """
        rows, length = self._load(tokens, positions)
        self._draws[: len(draws)].copy_(torch.tensor(draws, dtype=torch.float64))
        self._draws[len(draws) : rows].zero_()
        settings = (sampling.temperature, sampling.top_k, sampling.top_p)

        def choose() -> tuple[Tensor, Tensor, Tensor]:
            return sample(self._logits(rows, length), self._draws[:rows], *settings)

        chosen, logprobs, entropies = self._run((rows, length, *settings), choose)()
        return chosen[: len(tokens)], logprobs[: len(tokens)], entropies[: len(tokens)]

    def _load(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[int, int]:
        """Fill the static buffers; returns the buckets of rows and attended length."""
        count, longest = len(tokens), max(positions)
        if count > self.pool.slots or longest >= self.pool.capacity:
            raise EngineError(
                f"asked to decode {count} rows up to position {longest}, but the pool has {self.pool.slots} slots of "
                f"{self.pool.capacity} tokens; reserve a larger one"
            )
        rows = row_bucket(count, self.pool.slots)
        for buffer, values in ((self._tokens, tokens), (self._positions, positions)):
            buffer[:count].copy_(torch.tensor(values, dtype=torch.int64))
            buffer[count:rows].zero_()
        return rows, length_bucket(longest + 1, self.pool.capacity)

    def _run(self, key: Hashable, function: Callable[[], Any]) -> Callable[[], Any]:
        kv_tensors = [*self.pool.keys.values(), *self.pool.values.values()]
        if len(kv_tensors) != len(self._kv_tensors) or any(
            a is not b for a, b in zip(kv_tensors, self._kv_tensors, strict=True)
        ):
            self.captured.clear()
            self._kv_tensors = kv_tensors
        if key not in self.captured:
            self.captured[key] = self.runner.capture(function)
        return self.captured[key]

    def _logits(self, rows: int, length: int) -> Tensor:
        positions = self._positions[:rows, None]
        layout = DecodeLayout(self.pool, positions, length)
        hidden = self.policy.hidden(self._tokens[:rows, None], positions, layout)
        return self.policy.head(hidden[:, 0])
