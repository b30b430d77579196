"""Servers for tests: a tiny model of float64 behind a socket, and one that recites slowly."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from coterie.data.chat import Chat
from coterie.engines.base import Engine, Request
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.scripted import ScriptedEngine
from coterie.serve.application import Served, application
from coterie.serve.engine_thread import EngineThread
from coterie.serve.prompt_tokens import Renderer
from coterie.serve.weight_updates import WeightUpdates
from coterie.types import StopReason, Turn
from coterie.web.local_server import LocalServer, listen
from tiny import tiny_tokenizer
from tiny_models import tiny_policy

CONTEXT = 96


def tiny_chat() -> Chat:
    return Chat(tiny_tokenizer())


def embedded(chat: Chat) -> EmbeddedEngine:
    size = len(chat.tokenizer)
    policy = tiny_policy("llama", dtype=torch.float64, vocab_size=size, bos_token_id=0, eos_token_id=2)
    return EmbeddedEngine(policy, chat, max_num_seqs=8, capacity=CONTEXT)


class Slow(ScriptedEngine):
    """Says one token a hundredth of a second, as many as are asked for."""

    def __init__(self, token: int) -> None:
        super().__init__(lambda request: [token] * 1000, vocabulary=400)
        self.aborted: list[int] = []

    def step(self) -> Any:
        time.sleep(0.01)
        return super().step()

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        self.aborted.append(request)
        return super().abort(request, reason)


class Client:
    """A server that answers from a thread, and how to ask it."""

    def __init__(self, engine: Engine, chat: Any, *, api_key: str | None = None, **limits: Any) -> None:
        settings = {key: limits.pop(key) for key in ("timeout_s", "max_queue") if key in limits}
        self.chat, self.engine, self.thread = chat, engine, EngineThread(engine, **settings)
        folder, policy = limits.pop("weights", (None, None))
        updates = folder and WeightUpdates(folder=folder, policy=policy, engine=self.thread)
        renderer = Renderer(chat, vocabulary=engine.vocabulary, max_model_len=limits.pop("max_model_len", CONTEXT))
        listener = listen("127.0.0.1", [limits.pop("port", 0)])
        self.port: int = listener.getsockname()[1]
        served = Served(
            name="tiny",
            talk=chat,
            renderer=renderer,
            engine=self.thread,
            weights=updates,
            stopping=lambda: self.server.stopping,
            **limits,
        )
        app = application(served, api_key=api_key, loopback_port=self.port)
        self.server = LocalServer(app, listener, "test", {"timeout_graceful_shutdown": 5, "backlog": 512})
        self.server.start()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body) if isinstance(body, dict) else body
        if data is not None:
            headers = {"content-type": "application/json"} | headers
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, data, names)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text, dict(response.headers)

    def post(self, path: str, status: Any = 200, **body: Any) -> Any:
        """The answer of an endpoint, e.g. `completions`."""
        answer = self.send("POST", f"/v1/{path}", body)
        assert answer[0] == status, answer
        return answer[1]

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that ends as it should."""
        lines = self.post(path, stream=True, **body).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    def stop(self) -> None:
        self.server.stop()
        self.thread.stop()


@contextmanager
def client(engine: Engine, chat: Any, **options: Any) -> Generator[Client]:
    served = Client(engine, chat, **options)
    try:
        yield served
    finally:
        served.stop()


def together(count: int, function: Any) -> Sequence[Any]:
    """What `function(k)` gives in `count` threads at once."""
    results: list[Any] = [None] * count

    def work(number: int) -> None:
        results[number] = function(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def script(chat: Chat, text: str) -> ScriptedEngine:
    """An engine that says a text and ends."""
    ids = [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], 2]

    def recite(request: Request) -> list[int]:
        return ids

    return ScriptedEngine(recite, vocabulary=len(chat.tokenizer))
