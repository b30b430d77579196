"""What the server refuses, how it says so, and what happens to requests that are not waited for."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.errors import EngineError
from served_models import Client, Slow, client, script, tiny_chat, together

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"messages": [{"role": "user", "content": "legs"}], "max_tokens": 4}


def called(arguments: str) -> dict[str, Any]:
    """An assistant's message with a call."""
    function = {"name": "add", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Client]:
    chat = tiny_chat()
    with client(script(chat, "the legs"), chat, max_body=20_000) as served:
        yield served


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        (CHAT, "{", 400, None, "is no JSON"),
        (CHAT, "[" * 5000, 400, None, "is no JSON"),
        (CHAT, b"\xff\xfe{}", 400, None, "is no JSON"),
        (CHAT, "[]", 400, None, "expected a JSON object"),
        (CHAT, {}, 400, "messages", "field required"),
        (CHAT, ASKED | {"messages": []}, 400, "messages", "at least 1 item"),
        (CHAT, ASKED | {"messages": "hi"}, 400, "messages", "valid list"),
        (CHAT, ASKED | {"messages": [{"role": "user"}]}, 400, "messages", "it has no content"),
        (CHAT, ASKED | {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages", "'system'"),
        (CHAT, ASKED | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "'text'"),
        (CHAT, ASKED | {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "surrogate"),
        (CHAT, ASKED | {"model": "gpt-9"}, 404, "model", "ask for 'tiny'"),
        (CHAT, ASKED | {"model": 7}, 400, "model", "valid string"),
        (CHAT, ASKED | {"temperature": "hot"}, 400, "temperature", "valid number"),
        (CHAT, ASKED | {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "temperature", "finite"),
        (CHAT, ASKED | {"temperature": 1e-320}, 400, "temperature", "expected 0, or at least 0.001"),
        (CHAT, ASKED | {"top_p": 0}, 400, "top_p", "greater than 0"),
        (CHAT, ASKED | {"n": 0}, 400, "n", "greater than or equal to 1"),
        (CHAT, ASKED | {"n": True}, 400, "n", "valid integer"),
        (CHAT, ASKED | {"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        (CHAT, ASKED | {"max_tokens": 5000}, 400, "max_tokens", r"lower max_tokens to \d+"),
        (CHAT, ASKED | {"messages": [{"role": "user", "content": "a" * 300}]}, 400, "messages", "shorten it"),
        (CHAT, ASKED | {"seed": 1 << 70}, 400, "seed", "less than"),
        (CHAT, ASKED | {"stop": ""}, 400, "stop", "at least 1 character"),
        (CHAT, ASKED | {"stop": "<|im_start|>"}, 400, "stop", "can never match"),
        (CHAT, ASKED | {"stop": "a\ud800"}, 400, "stop", "unicode"),
        (TEXT, {"prompt": "a\ud800"}, 400, "prompt", "surrogate"),
        (CHAT, {"messages": [called("[" * 5000)]}, 400, None, "nests too deep"),
        (CHAT, {"messages": [called("[]")]}, 400, "messages", "no JSON object"),
        (CHAT, ASKED | {"stop": ["a"] * 17}, 400, "stop", "at most 16 items"),
        (CHAT, ASKED | {"top_logprobs": 3, "logprobs": True}, 400, "top_logprobs", "each sampled token alone"),
        (CHAT, ASKED | {"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        (CHAT, ASKED | {"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        (CHAT, ASKED | {"tools": [{"type": "function"}]}, 400, "tools", "field required"),
        (CHAT, ASKED | {"tools": [{"type": "function", "function": {}}]}, 400, "tools", "a function has a name"),
        (CHAT, ASKED | {"tool_choice": "required"}, 400, "tool_choice", "'none' or 'auto'"),
        (CHAT, ASKED | {"stream_options": {}}, 400, "stream_options", "stream is not true"),
        (CHAT, ASKED | {"temprature": 1}, 400, "temprature", "no parameter of this endpoint"),
        (TEXT, {"prompt": ""}, 400, "prompt", "no tokens"),
        (TEXT, {"prompt": []}, 400, "prompt", "0 prompts"),
        (TEXT, {"prompt": [3, -1]}, 400, "prompt", "token -1 is none"),
        (TEXT, {"prompt": [3, 10**9]}, 400, "prompt", "token 1000000000 is none"),
        (TEXT, {"prompt": [3, 2.5]}, 400, "prompt", "prompt"),
        (TEXT, {"prompt": {"a": 1}}, 400, "prompt", "prompt"),
        (TEXT, {"prompt": "a", "logprobs": 2}, 400, "logprobs", "each sampled token alone"),
        (TEXT, {"prompt": "a", "echo": True, "stream": True}, 400, "echo", "not supported"),
        (TEXT, {"prompt": "a", "echo": True, "logprobs": 0}, 400, "echo", "not supported by this engine"),
        (TEXT, {"prompt": "a", "logprobs": 1}, 400, "logprobs", "or 1 at temperature 0"),
        (TEXT, {"prompt": "a", "logprobs": 2, "temperature": 0}, 400, "logprobs", "or 1 at temperature 0"),
        (TEXT, {"prompt": "a" * 30_000}, 413, None, "larger than the 20000 bytes"),
        ("/v1/embeddings", {"input": "a"}, 404, None, "there is no '/v1/embeddings'"),
    ],
)
def test_what_is_wrong_is_named(tiny: Client, path: str, body: Any, status: int, param: str, message: str) -> None:
    if isinstance(body, str) and "NaN" not in body:
        body = body.encode()
    answer = tiny.send("POST", path, body)
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert re.search(message, error["message"]), error


def test_methods_and_types_of_content(tiny: Client) -> None:
    status, body, headers = tiny.send("GET", CHAT)
    assert (status, headers["allow"]) == (405, "POST")
    assert body["error"]["type"] == "invalid_request_error"
    status, body, _ = tiny.send("POST", CHAT, json.dumps(ASKED), content_type="text/plain")
    assert status == 415
    assert tiny.send("GET", "/v1/models/other")[0] == 404


def test_pages_and_names_of_elsewhere_are_refused(tiny: Client) -> None:
    assert tiny.send("POST", CHAT, ASKED, origin="http://evil.example")[0] == 403
    assert tiny.send("POST", CHAT, ASKED, sec_fetch_site="cross-site")[0] == 403
    assert tiny.send("GET", "/health", host="evil.example")[0] == 421
    assert tiny.send("POST", CHAT, ASKED, origin=f"http://127.0.0.1:{tiny.port}")[0] == 200


def test_a_key_is_asked_for() -> None:
    chat = tiny_chat()
    with client(script(chat, "the legs"), chat, api_key="geheim") as served:
        for headers in ({}, {"authorization": "Bearer falsch"}, {"authorization": "geheim"}):
            status, body, _ = served.send("POST", CHAT, ASKED, **headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert served.send("POST", CHAT, ASKED, authorization="Bearer geheim")[0] == 200
        assert served.send("GET", "/health")[0] == 200


def opened(served: Client, **body: Any) -> http.client.HTTPConnection:
    """A connection on which a request was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("POST", CHAT, json.dumps(ASKED | body), {"content-type": "application/json"})
    return connection


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_ends_the_request(stream: bool) -> None:
    chat, engine = tiny_chat(), Slow(5)
    with client(engine, chat, max_model_len=5000) as served:
        connection = opened(served, max_tokens=900, stream=stream, n=2)
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        else:
            until(lambda: engine.unfinished == 2)
        assert isinstance(connection.sock, socket.socket) or stream
        connection.close()
        until(lambda: engine.unfinished == 0)
        assert engine.aborted == [1, 2]
        assert served.thread.waiting == 0
        assert served.post("chat/completions", **ASKED)["usage"]["completion_tokens"] == 4


def test_too_many_are_told_to_come_again() -> None:
    chat, engine = tiny_chat(), Slow(5)
    with client(engine, chat, max_queue=3) as served:
        answers = together(8, lambda number: served.send("POST", CHAT, ASKED | {"max_tokens": 40}))
        assert sorted({answer[0] for answer in answers}) == [200, 429]
        (refused, *_) = [answer for answer in answers if answer[0] == 429]
        assert refused[1]["error"]["type"] == "rate_limit_error"
        assert refused[2]["retry-after"] == "1"
        assert served.send("POST", CHAT, ASKED | {"n": 4})[0] == 429
        assert served.send("POST", CHAT, ASKED)[0] == 200


def test_what_takes_too_long_is_ended() -> None:
    chat, engine = tiny_chat(), Slow(5)
    with client(engine, chat, timeout_s=0.1) as served:
        body = served.post("chat/completions", 504, **ASKED | {"max_tokens": 60})
        assert "longer than the 0.1 s" in body["error"]["message"]
        text = served.post("chat/completions", **ASKED | {"max_tokens": 60, "stream": True})
        *_, last, done, rest = text.split("\n\n")
        assert "longer than" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert (done, rest) == ("data: [DONE]", "")
        assert engine.unfinished == 0


class Failing(ScriptedEngine):
    """Fails at its second pass, once."""

    passes = 0

    def step(self) -> Any:
        self.passes += 1
        if self.passes == 2:
            self._open.clear()
            raise EngineError("the model's logits are not finite")
        return super().step()

    def submit(self, request: Request, sampling: Sampling) -> int:
        return super().submit(request, sampling)


def test_a_failure_of_the_engine_is_told_and_the_next_request_answered() -> None:
    chat = tiny_chat()
    with client(Failing(lambda request: [5, 6, 7, 2], vocabulary=400), chat) as served:
        body = served.post("chat/completions", 500, **ASKED)
        assert "logits are not finite" in body["error"]["message"]
        assert served.post("chat/completions", **ASKED)["choices"][0]["finish_reason"] == "stop"
        assert served.send("GET", "/health")[0] == 200


def test_half_a_request_keeps_nobody(tiny: Client) -> None:
    with socket.create_connection(("127.0.0.1", tiny.port)) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        assert tiny.send("POST", CHAT, ASKED)[0] == 200
    with socket.create_connection(("127.0.0.1", tiny.port)) as noise:
        noise.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert noise.recv(100).startswith(b"HTTP/1.1 400")


def test_open_answers_end_when_the_server_stops() -> None:
    chat, engine = tiny_chat(), Slow(5)
    served = Client(engine, chat)
    connection = opened(served, max_tokens=30, stream=True)
    response = connection.getresponse()
    response.readline()
    served.stop()
    assert response.read().decode().endswith("data: [DONE]\n\n")
    connection.close()
    with pytest.raises(OSError, match=r"refused"):
        served.send("GET", "/health")


@pytest.mark.parametrize("declared", [True, False], ids=["with a length", "in chunks"])
def test_five_megabytes_are_refused_before_they_have_come(declared: bool) -> None:
    chat = tiny_chat()
    with client(script(chat, "the legs"), chat) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sender:
            length = "content-length: 5000000" if declared else "transfer-encoding: chunked"
            head = (
                f"POST {TEXT} HTTP/1.1\r\nhost: 127.0.0.1:{served.port}\r\ncontent-type: application/json\r\n{length}"
            )
            sender.sendall(head.encode() + b"\r\n\r\n")
            if not declared:
                for _ in range(42):  # 100 kB each: 4.2 MB, above the limit and short of the end
                    sender.sendall(b"186a0\r\n" + b"a" * 100_000 + b"\r\n")
            assert sender.recv(100).startswith(b"HTTP/1.1 413")
        largest = served.send("POST", TEXT, {"prompt": "a" * 4_000_000})
        assert (largest[0], largest[1]["error"]["code"]) == (400, "context_length_exceeded")
        assert served.send("POST", CHAT, ASKED)[0] == 200
