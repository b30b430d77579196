"""Continuous batching on the learner's own weights: no second copy, no synchronisation.

Each distinct prompt is prefilled once and fanned out to its rollouts; finished rows leave at once and the next
request takes their place. A conversation keeps its keys and values between turns. The schedule depends on the requests
and the sampled tokens only (never on time), so a re-run repeats it. What a kernel's rounding owes to the number of rows
in a matrix product therefore repeats too.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from coterie.engines.attempt_history import AttemptHistory
from coterie.engines.base import Engine, Request, Sampling, TextCodec, check_idle, check_request
from coterie.engines.drafts import Drafts
from coterie.engines.kv_cache import KVCache
from coterie.engines.runner import Drawn, PackedRunner, PlainRunner
from coterie.engines.scheduler import Scheduler
from coterie.engines.sequence import SampledSequence
from coterie.errors import EngineError
from coterie.phases import PHASES
from coterie.policy.activations import is_out_of_memory
from coterie.policy.kernels import eager
from coterie.policy.model import Policy
from coterie.policy.prepack import prepacked
from coterie.types import StopReason, Turn


class EmbeddedEngine(Engine):
    """Engine that samples from `policy` in place.

    From the first request until nothing is open or kept, the linear layers use packed weights where that is faster;
    then the memory is freed for the update.

    Args:
        max_num_seqs: how many sequences are decoded at once.
        capacity: longest prompt + completion to reserve memory for; grown when a call needs more. Naming it from the
            start keeps the memory's layout, and so every last bit, the same in a resumed run.
        version: policy version served at the start.
        draft: guess tokens from what was said at the same prompt before, and check several in a pass; the text is the
            same. Models that are not packed, and CUDA graphs, go without.
        max_kept_tokens: most tokens of conversations that wait for their next turn; 0: as many as the live rows hold.
            Beyond that the oldest is computed anew when its turn comes.
        prefix_caching: keep what was computed of every sequence, for later prompts that begin alike, and what a call
            sets up beyond its end; for a server, whose calls come one by one. A packed model only.
    """

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        *,
        max_num_seqs: int = 64,
        capacity: int = 0,
        version: int = 0,
        max_kept_tokens: int = 0,
        prefix_caching: bool = False,
        draft: bool = False,
    ) -> None:
        self._policy, self._codec = policy, codec
        self._capacity = capacity
        self._version = version
        self._max_kept_tokens = max_kept_tokens
        self._plain = policy.path.kind == "plain"
        self._scheduler = Scheduler(max_num_seqs, alike=self._plain)
        self._cache = KVCache(max_num_seqs, max_kept_tokens, shared=prefix_caching and not self._plain)
        self._runner = PlainRunner(policy) if self._plain else PackedRunner(policy, self._cache)
        verifies = isinstance(self._runner, PackedRunner) and self._runner.verifies
        self.history = AttemptHistory() if draft and verifies else None
        """What drafts know of earlier steps; None without drafts. The trainer adds to it, and saves it."""
        self.drafts = None if self.history is None else Drafts(self.history, codec.stop_ids)
        self._open: dict[int, SampledSequence] = {}
        self._kept: dict[int, SampledSequence] = {}  # ended, and may continue
        self._submitted = 0
        self._session: ExitStack | None = None

    @property
    def policy(self) -> Policy:
        """Whose weights are read."""
        return self._policy

    @property
    def vocabulary(self) -> int:
        return self._policy.head.weight.shape[0]

    @property
    def version(self) -> int:
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def commit(self, version: int) -> None:
        check_idle(self, version)
        self._end_session()
        self._version = version

    def close(self) -> None:
        self._end_session()
        self._cache.clear(pool=True)
        if isinstance(self._runner, PackedRunner):
            self._runner.decoder = None

    def submit(self, request: Request, sampling: Sampling) -> int:
        check_request(request, sampling, version=self._version, context=self._policy.context)
        self._submitted += 1
        sequence = SampledSequence(id=self._submitted, request=request, sampling=sampling)
        self._open[sequence.id] = sequence
        self._scheduler.add(sequence)
        self._cache.expect(sequence)
        return sequence.id

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Turn]]:
        if not self._open:
            return []
        with self._guarded():
            self._begin_session()
            self._scheduler.drop_ended()
            ended = self._retire()  # rows that were aborted
            if fresh := self._scheduler.admit():
                with PHASES.measure("prefill"):
                    self._append(fresh, self._runner.prefill(fresh, len(self._scheduler.live) - len(fresh)))
                ended += self._retire()
            if live := self._scheduler.live:
                with PHASES.measure("decode"):
                    self._advance(live)
                ended += self._retire()
        turns = [(sequence.id, sequence.turn()) for sequence in ended if self._open.pop(sequence.id, None)]
        self._end_if_idle()
        return turns

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        kept = self._kept.pop(request, None)
        if kept is not None:
            self._cache.forget(kept)
        sequence = self._open.pop(request, None)
        if sequence is not None:
            sequence.reason = reason
            if sequence in self._scheduler.waiting:
                self._cache.dismiss(sequence)
        self._end_if_idle()
        return None if sequence is None else sequence.turn()

    def sampled(self, request: int, start: int) -> tuple[list[int], list[float]]:
        sequence = self._open[request]
        return sequence.tokens[start:], sequence.logprobs[start:]

    def _append(self, sequences: Sequence[SampledSequence], drawn: Drawn) -> None:
        for sequence, token, logprob, entropy in zip(sequences, *drawn, strict=True):
            sequence.append(token, logprob, entropy, self._codec)
            if self.drafts is not None:
                self.drafts.read(sequence)

    def _advance(self, live: Sequence[SampledSequence]) -> None:
        """One pass over the live rows, with their guesses where there are any."""
        guesses = [] if self.drafts is None else self.drafts.guesses(live)
        if self.drafts is None or not isinstance(self._runner, PackedRunner) or not any(g.tokens for g in guesses):
            self._append(live, self._runner.decode(live))
            return
        verified = self._runner.verify(live, [draft.tokens for draft in guesses])
        for sequence, draft, drawn in zip(live, guesses, verified, strict=True):
            before = len(sequence.tokens)
            for place, (token, logprob, entropy) in enumerate(zip(*drawn, strict=True)):
                sequence.append(token, logprob, entropy, self._codec)
                if sequence.reason is not None or draft.tokens[place : place + 1] != [token]:
                    break
            self.drafts.judge(draft, sequence.tokens[before:])
            self.drafts.read(sequence)

    def _retire(self) -> list[SampledSequence]:
        """Take ended sequences out of their rows; what may continue is kept."""
        live = self._scheduler.live
        if all(sequence.reason is None for sequence in live):
            return []
        if not self._plain:
            for row, sequence in enumerate(live):
                if sequence.reason is not None and self._cache.shared:
                    self._cache.keep(sequence, row)
                elif sequence.reason is not None and sequence.request.may_continue and sequence.id in self._open:
                    self._cache.keep(sequence, row)
                    self._kept[sequence.id] = sequence
        ended, order = self._scheduler.retire()
        self._runner.retire(order, self._scheduler.live)
        return ended

    def _begin_session(self) -> None:
        """Reserve memory for what waits, and pack the weights if that pays."""
        if self._session is not None:
            return
        waiting = list(self._scheduler.waiting)
        self._capacity = max(self._capacity, *(sequence.longest for sequence in waiting))
        self._cache.max_kept_tokens = self._max_kept_tokens or self._scheduler.slots * self._capacity
        self._session = ExitStack()
        self._session.enter_context(eager(self._policy))
        rows, tokens = self._rows, sum(sequence.sampling.max_tokens for sequence in waiting)
        if self._cache.shared:  # the session outlasts these
            rows = self._scheduler.slots
            tokens = rows * self._capacity
        packed = self._session.enter_context(prepacked(self._policy.model, rows=rows, tokens=tokens))
        self._session.callback(self._runner.close)
        self._runner.open(waiting, self._capacity, packed)

    @property
    def _rows(self) -> int:
        return min(self._scheduler.slots, len(self._scheduler.live) + len(self._scheduler.waiting))

    def _end_if_idle(self) -> None:
        if not self._open and not self._cache.resting:
            self._end_session()

    def _end_session(self) -> None:
        """Drop all that is open or kept, for the update needs the memory; graphs keep theirs."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self._open.clear()
        self._kept.clear()
        self._scheduler.waiting.clear()
        self._scheduler.live.clear()
        if self.drafts is not None:
            self.drafts.clear()
        self._cache.clear(pool=not isinstance(self._runner, PackedRunner) or self._runner.decoder is None)

    @contextmanager
    def _guarded(self) -> Generator[None]:
        """An error leaves nothing open; one for want of memory is told with its remedy."""
        rows = self._rows
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            self._end_session()
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"memory was refused while {rows} sequences of up to {self._capacity} tokens were sampled at once; "
                "lower engine.max_num_seqs or sampling.max_tokens, or use a smaller model"
            ) from error
        except BaseException:
            self._end_session()
            raise
