"""Addresses of the server, and the gate before them: who may ask, how much, and what a refusal looks like."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coterie.serve.engine_thread import EngineCall, EngineThread, Piece
from coterie.serve.parameters import ChatParameters, CompletionParameters, Detokenization, parsed
from coterie.serve.prompt_scores import PromptScores, policy_of, prompt_scores
from coterie.serve.prompt_tokens import Renderer, requests_of, wants_logprobs
from coterie.serve.refusals import RefusalError
from coterie.serve.replies import Chunks, Form, Tokenizer, whole
from coterie.serve.weight_updates import WeightParameters, WeightUpdates
from coterie.types import Turn
from coterie.web import origin

BODY_SECONDS = 30.0
"""In which a request's body must have come."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model and what clients may ask of it."""

    name: str
    """Under which clients ask for it."""
    talk: Tokenizer
    renderer: Renderer
    engine: EngineThread
    weights: WeightUpdates | None = None
    """None where clients may not change them."""
    max_body: int = 4 << 20
    """Bytes of a request."""
    stopping: Callable[[], bool] = lambda: False
    """True once the server is asked to stop."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def version(self) -> int:
        """Policy version of the weights."""
        return self.engine.engine.version


def application(served: Served, *, api_key: str | None, loopback_port: int | None) -> Starlette:
    """The ASGI application.

    Args:
        api_key: that clients send; None lets everybody ask.
        loopback_port: of a server on loopback alone, whose names are checked; None elsewhere.
    """
    routes = [
        Route("/health", partial(health, served)),
        Route("/v1/models", partial(models, served)),
        Route("/v1/models/{name:path}", partial(models, served)),
        Route("/v1/chat/completions", Completions(served, ChatParameters), methods=["POST"]),
        Route("/detokenize", partial(detokenize, served), methods=["POST"]),
        Route("/v1/completions", Completions(served, CompletionParameters), methods=["POST"]),
    ]
    if served.weights is not None:
        routes.append(Route("/update_weights_from_disk", partial(update_weights, served), methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, api_key=api_key, loopback_port=loopback_port)],
        exception_handlers={RefusalError: _refused, HTTPException: _refused_by_routing, Exception: _failed},
    )


class Gate:
    """ASGI middleware that lets through who may ask."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, loopback_port: int | None) -> None:
        self.app, self.api_key, self.loopback_port = app, api_key, loopback_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        await (self.app if refusal is None else _answer(refusal))(scope, receive, send)

    def refusal(self, scope: Scope) -> RefusalError | None:
        """The answer to a request that is not let through."""
        headers = Headers(scope=scope)
        port = self.loopback_port
        if port is not None and origin.is_rebound(headers, port):
            return RefusalError(421, f"this is no address of the server; use http://127.0.0.1:{port}")
        if port is not None and (origin.is_foreign(headers, port) or origin.is_from_another_site(headers)):
            return RefusalError(403, "a page of another origin asked")
        open_to_all = self.api_key is None or scope["path"] == "/health"
        if not open_to_all and not origin.equal_secrets(origin.bearer(headers), self.api_key or ""):
            return RefusalError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )
        return None


async def health(served: Served, request: Request) -> Response:
    """200 while the engine runs."""
    if not served.engine.alive or served.stopping():
        return _answer(
            RefusalError(503, "the engine has ended" if not served.engine.alive else "the server is stopping")
        )
    return JSONResponse({"status": "ok", "model": served.name, "waiting": served.engine.waiting})


async def models(served: Served, request: Request) -> Response:
    """The model; by its name, or in a list."""
    name = request.path_params.get("name")
    if name is not None and name != served.name:
        raise _unknown(name, served)
    card = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "coterie",
        "max_model_len": served.renderer.max_model_len,
        "weight_version": str(served.version),
        "system_fingerprint": served.engine.fingerprint,
    }
    return JSONResponse(card if name is not None else {"object": "list", "data": [card]})


async def update_weights(served: Served, request: Request) -> Response:
    """SGLang's: serve the weights of a file from now on."""
    assert served.weights is not None
    call = parsed(WeightParameters, await _json_of(request, served.max_body))
    version = await served.weights.update(call.model_path, call.weight_version)
    fingerprint = served.engine.fingerprint
    answer = {"success": True, "message": f"weight version {version} is served", "num_paused_requests": 0}
    return JSONResponse(answer | {"weight_version": str(version), "system_fingerprint": fingerprint})


async def detokenize(served: Served, request: Request) -> Response:
    """vLLM's: the text of some tokens, special ones included."""
    call = parsed(Detokenization, await _json_of(request, served.max_body))
    if call.model is not None and call.model != served.name:
        raise _unknown(call.model, served)
    text = await run_in_threadpool(served.renderer.text_of, call.tokens)
    return JSONResponse({"prompt": text})


class Completions:
    """An endpoint that samples: `/v1/chat/completions` or `/v1/completions`, as its parameters say."""

    def __init__(self, served: Served, kind: type[ChatParameters] | type[CompletionParameters]) -> None:
        self.served, self.kind = served, kind
        self.__name__ = kind.__name__  # what Starlette calls a route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self.answer(request)
        except ClientDisconnect:
            return
        except RefusalError as refusal:
            response = _answer(refusal)
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """The answer, once it has begun.

        Raises:
            RefusalError: the request is refused, or its sampling failed.
            ClientDisconnect: its client is gone.
        """
        served = self.served
        if served.stopping():
            raise RefusalError(503, "the server is stopping; ask again when it is back")
        call = parsed(self.kind, await _json_of(request, served.max_body))
        if call.model is not None and call.model != served.name:
            raise _unknown(call.model, served)
        prompts = await run_in_threadpool(served.renderer.prompts, call)
        sampling = served.renderer.sampling(call, max(map(len, prompts)))
        requests = requests_of(call, prompts, served.version)
        echo, listed = getattr(call, "echo", False), getattr(call, "prompt_logprobs", None) is not None
        scores = [await self.scored(call, prompt) for prompt in prompts] if echo or listed else ()
        form = Form(
            chat=self.kind is ChatParameters,
            model=served.name,
            prompts=prompts,
            n=call.n,
            stop=call.stop,
            version=requests[0].key.version,
            fingerprint=served.engine.fingerprint,
            logprobs=wants_logprobs(call),
            top=bool(getattr(call, "top_logprobs", call.logprobs)),
            echoed=scores if echo else (),
            scored=scores if listed else (),
            token_ids=call.return_token_ids,
            tools=[tool.name for tool in call.tools] if isinstance(call, ChatParameters) else (),
            usage=call.stream_options is not None and call.stream_options.include_usage,
        )
        pieces = _pieces(served.engine, served.engine.submit(requests, sampling, stream=call.stream), request)
        if call.stream:
            return await _stream(pieces, Chunks(form, served.talk))
        turns: dict[int, Turn] = {}
        async for piece in pieces:
            if piece.turn is not None:
                turns[piece.index] = piece.turn
        return JSONResponse(whole(form, served.talk, [turns[index] for index in range(len(requests))]))

    async def scored(self, call: CompletionParameters, prompt: Sequence[int]) -> PromptScores | None:
        """Scores of a prompt that is echoed or scored; None where no log-probs are asked for.

        Raises:
            RefusalError: the engine cannot score.
        """
        policy = policy_of(self.served.engine.engine)
        if call.logprobs is None and call.prompt_logprobs is None:
            return None
        if policy is None:
            what, param = ("echo with logprobs", "echo") if call.echo else ("prompt_logprobs", "prompt_logprobs")
            raise RefusalError(400, f"{what} is not supported by this engine; leave it out", param=param)
        return await self.served.engine.between_passes(lambda: prompt_scores(policy, prompt))


async def _pieces(engine: EngineThread, call: EngineCall, request: Request) -> AsyncGenerator[Piece]:
    """The pieces of a call until it is whole. Its client is watched: who hangs up ends it.

    Raises:
        RefusalError: sampling failed.
        ClientDisconnect: the client is gone.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        call.pieces.put_nowait(RefusalError(499, "the client hung up"))

    watcher = asyncio.create_task(watch())
    open_completions = len(call.requests)
    try:
        while open_completions:
            piece = await call.pieces.get()
            if isinstance(piece, RefusalError):
                raise ClientDisconnect if piece.status == 499 else piece
            open_completions -= piece.turn is not None
            yield piece
    finally:
        watcher.cancel()
        engine.cancel(call)


async def _stream(pieces: AsyncGenerator[Piece], chunks: Chunks) -> Response:
    """A stream of chunks; what fails before the first is an answer of its own.

    Raises:
        RefusalError, ClientDisconnect: as `_pieces`, before the first chunk.
    """
    first = await anext(pieces)

    async def events() -> AsyncIterator[str]:
        try:
            yield _event(chunks.of(first))
            async for piece in pieces:
                yield _event(chunks.of(piece))
            yield _event(chunks.last())
        except RefusalError as refusal:
            yield _event(refusal.record())
        except ClientDisconnect:
            return
        finally:
            await pieces.aclose()
        yield "data: [DONE]\n\n"

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _event(record: dict[str, Any] | None) -> str:
    return "" if record is None else f"data: {json.dumps(record, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _json_of(request: Request, most: int) -> Any:
    """The body of a request.

    Raises:
        RefusalError: it is no JSON, too large, or too slow.
        ClientDisconnect: its client is gone.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusalError(415, f"content-type is {kind!r:.60}; expected application/json")
    too_large = RefusalError(413, f"the body is larger than the {most} bytes that a request may have; shorten it")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RefusalError(408, f"the body did not come within {BODY_SECONDS:g} s; send it at once") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"the body is no JSON: {error!s:.200}") from None


def _unknown(name: str, served: Served) -> RefusalError:
    message = f"the model {name!r:.200} is not served here; ask for {served.name!r}"
    return RefusalError(404, message, param="model", code="model_not_found")


def _answer(refusal: RefusalError) -> Response:
    return JSONResponse(refusal.record(), status_code=refusal.status, headers=refusal.headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return _answer(error)


async def _refused_by_routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.url.path!r:.200}", 405: f"{request.method} is not allowed here"}
    answer = _answer(RefusalError(error.status_code, message.get(error.status_code, error.detail)))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(RefusalError(500, "the server failed; its standard error says how"))
