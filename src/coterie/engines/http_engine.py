"""Sampling from a server of completions in another process, on this machine or another.

Its schedule is that of the embedded engine: at most `max_num_seqs` requests are with the server, and a pass gives out
one token of each, however far ahead the server is. So which turns share a pass depends on tokens alone, as the contract
has it, and a turn that is cut is cut at the same token in every run.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from coterie.engines.base import Engine, Request, Sampling, check_idle
from coterie.engines.completion_client import STALE, CompletionClient, RefusedError, TokenStream
from coterie.errors import EngineError
from coterie.policy import shared_weights
from coterie.policy.model import Policy
from coterie.rng import seed_of
from coterie.types import StopReason, Turn

LOOK_S = 0.5
"""Between two looks at the deadline while nothing comes."""
LOSSES = 5
"""Times that the server may lose the weights of one version before the run ends."""


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request that has not ended."""

    request: Request
    sampling: Sampling
    deadline: float
    """By `time.monotonic()`; the caller's has passed by then."""
    stream: TokenStream | None = None
    passes: int = 0
    """Tokens that were given out."""

    @property
    def ready(self) -> bool:
        """Its next pass can be made."""
        stream = self.stream
        assert stream is not None
        return len(stream.tokens) > self.passes or stream.finish_reason is not None

    @property
    def whole(self) -> bool:
        stream = self.stream
        return stream is not None and stream.finish_reason is not None and self.passes >= len(stream.tokens)

    def turn(self, reason: StopReason | None = None) -> Turn:
        """What was given out so far."""
        stream, count = self.stream, self.passes
        stopped = stream is not None and stream.finish_reason == "stop"
        return Turn(
            prompt_tokens=self.request.prompt_tokens,
            tokens=() if stream is None else tuple(stream.tokens[:count]),
            sampler_logprobs=() if stream is None else tuple(stream.logprobs[:count]),
            temperature=self.sampling.temperature,
            stop_reason=reason or (StopReason.STOP if stopped else StopReason.LENGTH),
            version=self.request.key.version,
        )


class HttpEngine(Engine):
    """Engine that samples from `coterie serve`, or another server with vLLM's `return_token_ids`.

    The policy's weights are given to the server before the first request after each commit, as a file of
    `weights_folder`. An answer by other weights (the server was started anew, or another learner uses it) is thrown
    away, the weights are given again, and the request with them. Entropies are not in these APIs, so turns have none.

    Args:
        policy: whose weights are sampled from.
        model: name of the model at the server; empty takes the first that it names.
        max_num_seqs: requests that are with the server at once.
        weights_folder: that the server reads weights from, under the same path or another; None samples from the
            weights that the server has, and takes no other version than it names.
        longest: tokens of the longest sequence, 0 where it is not known.

    Raises:
        EngineError: the server cannot be reached, or its sequences are shorter.
    """

    def __init__(
        self,
        policy: Policy,
        client: CompletionClient,
        *,
        model: str = "",
        max_num_seqs: int = 64,
        weights_folder: Path | None = None,
        longest: int = 0,
    ) -> None:
        self._policy, self._client = policy, client
        self._slots, self._folder = max_num_seqs, weights_folder
        self._changed = threading.Condition()
        self._version, self._submitted, self._losses = 0, 0, 0
        self._fingerprint: str | None = None
        """Of the server's weights, once they are the policy's."""
        self._file: Path | None = None
        self._name = f"policy-{secrets.token_hex(4)}"
        self._waiting: deque[tuple[int, _Asked]] = deque()
        self._live: dict[int, _Asked] = {}
        try:
            self._card = client.card(model)
        except RefusedError as error:
            raise EngineError(
                f"the server {client.base_url} does not say which models it has ({error}); start it first, and give "
                f"its key in {client.api_key_var}"
            ) from error
        self._model = str(self._card["id"])
        self._room = int(self._card.get("max_model_len") or policy.context)
        if longest > self._room:
            raise EngineError(
                f"the server's sequences have at most {self._room} tokens, and the longest of this run {longest}; "
                f"start it with --max-model-len {longest}"
            )

    @property
    def vocabulary(self) -> int:
        return self._policy.head.weight.shape[0]

    @property
    def version(self) -> int:
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._waiting) + len(self._live)

    def commit(self, version: int) -> None:
        check_idle(self, version)
        self._version, self._fingerprint, self._losses = version, None, 0

    def close(self) -> None:
        self._drop_all()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = self._fingerprint = None

    def submit(self, request: Request, sampling: Sampling) -> int:
        length = len(request.prompt_tokens)
        if not length:
            raise EngineError(f"prompt {request.key.prompt!r} has no tokens")
        if length + sampling.max_tokens > self._room:
            raise EngineError(
                f"prompt {request.key.prompt!r} has {length} tokens, which with sampling.max_tokens = "
                f"{sampling.max_tokens} is more than the {self._room} of the server's sequences; lower either, or "
                "start it with a greater --max-model-len"
            )
        if request.key.version != self._version:
            raise EngineError(f"asked for policy version {request.key.version}, but the engine serves {self._version}")
        self._submitted += 1
        deadline = time.monotonic() + sampling.timeout_s
        self._waiting.append((self._submitted, _Asked(request=request, sampling=sampling, deadline=deadline)))
        return self._submitted

    def step(self) -> list[tuple[int, Turn]]:
        try:
            if self.unfinished and self._fingerprint is None:
                self._synchronise()
            while self._waiting and len(self._live) < self._slots:
                number, asked = self._waiting.popleft()
                asked.stream = self._stream(asked)
                self._live[number] = asked
                asked.stream.start()
            if not self._await_pass():
                return []
        except BaseException:
            self._drop_all()
            raise
        for asked in self._live.values():
            assert asked.stream is not None
            asked.passes = min(asked.passes + 1, len(asked.stream.tokens))
        ended = [(number, asked.turn()) for number, asked in self._live.items() if asked.whole]
        for number, _ in ended:
            del self._live[number]
        return ended

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        waiting = next((entry for entry in self._waiting if entry[0] == request), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            return waiting[1].turn(reason)
        asked = self._live.pop(request, None)
        if asked is None:
            return None
        assert asked.stream is not None
        asked.stream.close()
        return asked.turn(reason)

    def _drop_all(self) -> None:
        for asked in self._live.values():
            assert asked.stream is not None
            asked.stream.close()
        self._live.clear()
        self._waiting.clear()

    def _await_pass(self) -> bool:
        """Wait until each live request has its next token or its end; False where a deadline comes before.

        Raises:
            EngineError: a request failed.
        """
        while True:
            with self._changed:
                streams = [asked.stream for asked in self._live.values() if asked.stream is not None]
                problem = next((stream.problem for stream in streams if stream.problem is not None), None)
                if problem is not None:
                    raise problem
                stale = [stream for stream in streams if stream.stale]
                if not stale:
                    if all(asked.ready for asked in self._live.values()):
                        return True
                    self._changed.wait(LOOK_S)
            if stale:
                self._synchronise()
                for stream in stale:
                    stream.stale = False
            if min((asked.deadline for asked in self._live.values()), default=math.inf) < time.monotonic():
                return False

    def _stream(self, asked: _Asked) -> TokenStream:
        key, sampling = asked.request.key, asked.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(asked.request.prompt_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
            "stream": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        body |= {"sample_key": asdict(key)} if self._card.get("owned_by") == "coterie" else {"seed": seed_of(key)}

        def check(chunk: dict[str, Any]) -> None:
            prompt = (chunk.get("choices") or [{}])[0].get("prompt_token_ids")
            if prompt is not None and tuple(prompt) != asked.request.prompt_tokens:
                raise EngineError(
                    f"the server {self._client.base_url} answered another prompt than it was asked: it adds or drops "
                    "tokens; expected the token ids as they were sent"
                )
            version, weights = chunk.get("weight_version"), chunk.get("system_fingerprint")
            wrong = version not in (None, str(key.version)) or (self._fingerprint not in (None, "", weights))
            if wrong:
                raise RefusedError(STALE, f"the server has weight version {version}, or others of that name")

        return TokenStream(client=self._client, body=body, changed=self._changed, check=check)

    def _synchronise(self) -> None:
        """Have the server serve the policy's weights, or see that it does.

        Raises:
            EngineError: it does not.
        """
        if self._folder is None:
            served = self._client.persist(lambda: self._client.card(self._model)).get("weight_version")
            if served != str(self._version) and (served is not None or self._version):
                raise EngineError(
                    f"the server {self._client.base_url} has weight version {served}, and version {self._version} is "
                    "to be sampled; start it with that checkpoint, or with --weights-folder, and set "
                    "engine.weights_folder"
                )
            self._fingerprint = ""
            return
        self._losses += 1
        if self._losses > LOSSES:
            raise EngineError(
                f"the server {self._client.base_url} lost the weights of policy version {self._version} {LOSSES} "
                "times: it is started anew again and again, or another run gives it weights; use a server of its own "
                "for each"
            )
        body = {"model_path": self._written().name, "weight_version": str(self._version)}
        try:
            answer = self._client.persist(lambda: self._client.ask("/update_weights_from_disk", body))
        except EngineError as error:
            raise EngineError(
                f"the weights of policy version {self._version} did not reach the server: {error}. `coterie serve` "
                f"takes them when it is started with --weights-folder and a key; {self._folder} must be that folder"
            ) from error
        self._fingerprint = str(answer.get("system_fingerprint") or "")

    def _written(self) -> Path:
        """The file with the weights of this version."""
        assert self._folder is not None
        path = self._folder / f"{self._name}-{self._version}.safetensors"
        if path != self._file or self._losses == 1:
            try:
                shared_weights.write(self._policy, path)
            except (OSError, SafetensorError) as error:
                raise EngineError(
                    f"cannot write the weights to {path}: {error}; free some space, or name another folder in "
                    "engine.weights_folder that the server reads"
                ) from error
            if self._file is not None and self._file != path:
                with suppress(OSError):
                    self._file.unlink(missing_ok=True)
            self._file = path
        return path
