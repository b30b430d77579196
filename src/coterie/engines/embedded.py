"""Continuous batching on the learner's own weights: no second copy, no synchronisation.

Each distinct prompt is prefilled once and fanned out to its rollouts; finished rows leave at once and the next
request takes their place. The schedule depends on the requests and the sampled tokens only (never on time), so a
re-run repeats it. What a kernel's rounding owes to the number of rows in a matrix product therefore repeats too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from coterie.algo.sampling import sample
from coterie.batches.batch import pack_prompts, shared_head
from coterie.engines.base import Quorum, QuorumTracker, Request, Sampling, TextCodec
from coterie.engines.static import StaticDecoder
from coterie.errors import EngineError
from coterie.policy.activations import is_out_of_memory
from coterie.policy.attention import prepacked
from coterie.policy.kernels import eager
from coterie.policy.kv import DecodeLayout, KVPool, PrefillLayout, PromptKV, reserved
from coterie.policy.model import Policy
from coterie.policy.path import PlainDecoder
from coterie.rng import uniforms
from coterie.types import StopReason, Turn

_PREFILL_TOKENS = 4096
_STOP_TAIL = 32  # tokens decoded when looking for a stop string


@dataclass(slots=True, kw_only=True)
class _Row:
    """One request while it is being decoded."""

    index: int
    request: Request
    uniforms: np.ndarray  # [max_tokens]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: StopReason | None = None

    @property
    def position(self) -> int:
        """Position of the newest token in the sequence."""
        return len(self.request.prompt_tokens) + len(self.tokens) - 1


@dataclass(slots=True, kw_only=True)
class _Prefilled:
    kv: PromptKV
    logits: Tensor  # [V] after the prompt's last token


class EmbeddedEngine:
    """Engine that samples from `policy` in place.

    Args:
        max_num_seqs: how many sequences are decoded at once.
        capacity: longest prompt + completion to reserve memory for; grown when a call needs more. Naming it from the
            start keeps the memory's layout, and so every last bit, the same in a resumed run.
        version: policy version served at the start.
    """

    def __init__(
        self, policy: Policy, codec: TextCodec, *, max_num_seqs: int = 64, capacity: int = 0, version: int = 0
    ) -> None:
        self._policy = policy
        self._codec = codec
        self._max_num_seqs = max_num_seqs
        self._capacity = capacity
        self._version = version
        self._pool: KVPool | None = None
        self._decoder: StaticDecoder | None = None  # CUDA graphs, kept as long as the pool

    @property
    def vocabulary(self) -> int:
        return self._policy.head.weight.shape[0]

    @property
    def version(self) -> int:
        return self._version

    def commit(self, version: int) -> None:
        self._version = version

    def close(self) -> None:
        self._pool = self._decoder = None

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling, quorum: Quorum | None = None) -> list[Turn]:
        self._check(requests, sampling)
        rows = min(self._max_num_seqs, len(requests))
        try:
            session = self._session(requests, sampling, quorum)
            with (
                eager(self._policy),
                prepacked(self._policy.model, rows=rows, tokens=len(requests) * sampling.max_tokens),
            ):
                return session.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"memory was refused while {rows} sequences of up to {self._capacity} tokens were sampled at once; "
                "lower engine.max_num_seqs or sampling.max_tokens, or use a smaller model"
            ) from error
        finally:
            if self._decoder is None:
                self._pool = None  # the update needs the memory; graphs would be captured anew

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        for request in requests:
            length = len(request.prompt_tokens)
            if not length:
                raise EngineError(f"prompt {request.key.prompt!r} has no tokens")
            if length + sampling.max_tokens > self._policy.context:
                raise EngineError(
                    f"prompt {request.key.prompt!r} has {length} tokens, which with sampling.max_tokens = "
                    f"{sampling.max_tokens} is more than the model's context of {self._policy.context}; lower either"
                )
            if request.key.version != self._version:
                raise EngineError(
                    f"asked for policy version {request.key.version}, but the engine serves {self._version}"
                )

    def _session(self, requests: Sequence[Request], sampling: Sampling, quorum: Quorum | None) -> _Session:
        if self._policy.path.kind == "plain":
            return PlainSession(self._policy, self._codec, self._max_num_seqs, requests, sampling, quorum)
        pool = self._reserve(requests, sampling)
        return _Session(self._policy, self._codec, pool, requests, sampling, self._decoder, quorum)

    def _reserve(self, requests: Sequence[Request], sampling: Sampling) -> KVPool:
        longest = max((len(request.prompt_tokens) for request in requests), default=0) + sampling.max_tokens
        if self._pool is None or self._pool.capacity < longest:
            self.close()  # free the old memory first
            self._capacity = max(longest, self._capacity)
            self._pool = KVPool(self._max_num_seqs, reserved(self._capacity))
            if self._policy.device.type == "cuda":
                self._decoder = StaticDecoder(self._policy, self._pool)
        return self._pool


class _Session:
    """One `generate` call on the packed path: live rows, waiting requests, finished turns."""

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        pool: KVPool,
        requests: Sequence[Request],
        sampling: Sampling,
        decoder: StaticDecoder | None = None,
        quorum: Quorum | None = None,
    ) -> None:
        self.policy, self.codec, self.pool, self.sampling = policy, codec, pool, sampling
        self.decoder = decoder
        self.quorum_tracker = QuorumTracker(quorum, requests)
        self.waiting = list(enumerate(requests))[::-1]  # popped from the end
        self.remaining: dict[tuple[int, ...], int] = {}
        for request in requests:
            self.remaining[request.prompt_tokens] = self.remaining.get(request.prompt_tokens, 0) + 1
        self.head = shared_head(list(self.remaining))  # of all, so that each is cut where the learner will cut it
        self.prefilled: dict[tuple[int, ...], _Prefilled] = {}
        self.live: list[_Row] = []
        self.done: dict[int, Turn] = {}
        self.deadline = time.monotonic() + sampling.timeout_s

    def run(self) -> list[Turn]:
        total = len(self.waiting)
        while self.waiting or self.live:
            if self.sampling.progress is not None:
                self.sampling.progress(len(self.done), total)
            if self.quorum_tracker.reached:
                self._give_up(StopReason.ABANDONED)
                break
            if time.monotonic() > self.deadline:
                self._give_up(StopReason.DEADLINE)
                break
            if self.waiting and self.has_room:
                self._admit()
            if self.live:
                self._decode()
        return [self.done[index] for index in range(len(self.done))]

    @property
    def has_room(self) -> bool:
        """True if another request can be decoded beside the live rows."""
        return len(self.live) < self.pool.slots

    def _admit(self) -> None:
        """Fill the free slots in the order of the requests, and sample the first token of each."""
        fresh = []
        while self.waiting and len(self.live) + len(fresh) < self.pool.slots:
            index, request = self.waiting.pop()
            stream = uniforms(request.key, self.sampling.max_tokens)
            fresh.append(_Row(index=index, request=request, uniforms=stream))
        self._prefill([row.request.prompt_tokens for row in fresh])
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, row in enumerate(fresh, start=len(self.live)):
            slots.setdefault(row.request.prompt_tokens, []).append(slot)
        logits = torch.stack([self.prefilled[row.request.prompt_tokens].logits for row in fresh])
        for prompt, rows in slots.items():
            self.pool.admit(rows, self.prefilled[prompt].kv)
            self.remaining[prompt] -= len(rows)
            if not self.remaining[prompt]:
                del self.prefilled[prompt]
        self.live.extend(fresh)
        self._extend(fresh, logits)
        self._retire()

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> None:
        todo = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.prefilled]
        while todo:
            batch = [todo.pop(0)]
            while todo and sum(map(len, batch)) + len(todo[0]) <= _PREFILL_TOKENS:
                batch.append(todo.pop(0))
            device, packed = self.policy.device, pack_prompts(batch, self.head)
            layout = PrefillLayout(packed.segments, device)
            tokens, positions = (
                torch.from_numpy(array).to(device)[None] for array in (packed.tokens, packed.positions)
            )
            hidden = self.policy.hidden(tokens, positions, layout)
            ends = torch.tensor([segment.start + segment.prompt - 1 for segment in packed.segments], device=device)
            logits = self.policy.head(hidden[0, ends])
            for row, (prompt, kept) in enumerate(zip(batch, layout.kept, strict=True)):
                self.prefilled[prompt] = _Prefilled(kv=kept, logits=logits[row])

    def _decode(self) -> None:
        if self.decoder is not None:
            self._decode_graph(self.decoder)
            return
        device = self.policy.device
        positions = torch.tensor([row.position for row in self.live], device=device)
        layout = DecodeLayout(self.pool, positions, max(row.position for row in self.live) + 1)
        tokens = torch.tensor([row.tokens[-1] for row in self.live], device=device)
        hidden = self.policy.hidden(tokens[:, None], positions[:, None], layout)
        self._extend(self.live, self.policy.head(hidden[:, 0]))
        self._retire()

    def _decode_graph(self, decoder: StaticDecoder) -> None:
        draws = [row.uniforms[len(row.tokens)] for row in self.live]
        newest, positions = [row.tokens[-1] for row in self.live], [row.position for row in self.live]
        self._append(self.live, *decoder.sample(newest, positions, draws, self.sampling))
        self._retire()

    def _extend(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Sample one token a row and mark the rows that are finished."""
        limits = self.sampling
        draws = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64)
        self._append(rows, *sample(logits, draws, limits.temperature, limits.top_k, limits.top_p))

    def _append(self, rows: Sequence[_Row], tokens: Tensor, logprobs: Tensor) -> None:
        limits = self.sampling
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not logprob > float("-inf"):
                raise EngineError(
                    f"the model's logits for prompt {row.request.key.prompt!r} are not finite after {len(row.tokens)} "
                    "tokens: the weights are damaged or the learning rate is far too high"
                )
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self.codec.stop_ids or self._at_stop_string(row):
                row.reason = StopReason.STOP
            elif len(row.tokens) == limits.max_tokens:
                row.reason = StopReason.LENGTH

    def _at_stop_string(self, row: _Row) -> bool:
        if not self.sampling.stop:
            return False
        tail = self.codec.decode(row.tokens[-_STOP_TAIL:])
        last = self.codec.decode(row.tokens[-1:])
        # Only the part that the newest token touches: an earlier occurrence would have ended the row before.
        return any(stop in tail[-(len(last) + len(stop)) :] for stop in self.sampling.stop)

    def _retire(self) -> None:
        """Take finished rows out; the last live rows move into the holes, so that rows in use stay together."""
        finished = [slot for slot, row in enumerate(self.live) if row.reason is not None]
        if not finished:
            return
        for slot in finished:
            self._finish(self.live[slot])
        count = len(self.live) - len(finished)
        holes = [slot for slot in finished if slot < count]
        tail = [slot for slot in range(count, len(self.live)) if self.live[slot].reason is None]
        if holes:
            self.pool.move(tail, holes, max(self.live[slot].position for slot in tail) + 1)
        for source, target in zip(tail, holes, strict=True):
            self.live[target] = self.live[source]
        del self.live[count:]

    def _finish(self, row: _Row) -> None:
        self.done[row.index] = Turn(
            prompt_tokens=row.request.prompt_tokens,
            tokens=tuple(row.tokens),
            sampler_logprobs=tuple(row.logprobs),
            temperature=self.sampling.temperature,
            stop_reason=row.reason or StopReason.LENGTH,
            version=row.request.key.version,
        )
        self.quorum_tracker.finished(row.request)

    def _give_up(self, reason: StopReason) -> None:
        """Truncate unfinished rows at their present token."""
        waiting = [_Row(index=index, request=request, uniforms=np.empty(0)) for index, request in self.waiting]
        for row in (*self.live, *waiting):
            row.reason = reason
            self._finish(row)


class PlainSession(_Session):
    """One `generate` call through the model's own forward pass and cache, where the packed path is not exact.

    Rows that are decoded together have prompts of equal length, so that nothing is padded: layers that carry a state
    along the sequence would take padding for text. Each distinct prompt is computed once for all its rollouts.

    Args:
        slots: how many sequences are decoded at once.
    """

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        slots: int,
        requests: Sequence[Request],
        sampling: Sampling,
        quorum: Quorum | None = None,
    ) -> None:
        super().__init__(policy, codec, KVPool(slots, 0), requests, sampling, None, quorum)
        self.rows = PlainDecoder(policy.runner)

    @property
    def has_room(self) -> bool:
        return not self.live

    def _admit(self) -> None:
        """Fill the slots with the first request that waits and others with as long a prompt; sample a token of each."""
        length = len(self.waiting[-1][1].prompt_tokens)
        alike = [pair for pair in reversed(self.waiting) if len(pair[1].prompt_tokens) == length]
        chosen = dict(alike[: self.pool.slots])
        self.waiting = [pair for pair in self.waiting if pair[0] not in chosen]
        self.live = [
            _Row(index=index, request=request, uniforms=uniforms(request.key, self.sampling.max_tokens))
            for index, request in chosen.items()
        ]
        prompts = {request.prompt_tokens: None for request in chosen.values()}
        number = {prompt: row for row, prompt in enumerate(prompts)}
        device = self.policy.device
        copies = torch.tensor([number[row.request.prompt_tokens] for row in self.live], device=device)
        self.rows = PlainDecoder(self.policy.runner)
        logits = self.rows.prefill(torch.tensor(list(prompts), device=device))
        self.rows.select(copies)
        self._extend(self.live, logits[copies])
        self._retire()

    def _decode(self) -> None:
        newest = torch.tensor([row.tokens[-1] for row in self.live], device=self.policy.device)
        self._extend(self.live, self.rows.step(newest))
        self._retire()

    def _retire(self) -> None:
        """Take finished rows out, and with them what the cache keeps of them."""
        staying = [slot for slot, row in enumerate(self.live) if row.reason is None]
        if len(staying) == len(self.live):
            return
        for row in self.live:
            if row.reason is not None:
                self._finish(row)
        if staying:
            self.rows.select(torch.tensor(staying, device=self.policy.device))
        self.live = [self.live[slot] for slot in staying]
