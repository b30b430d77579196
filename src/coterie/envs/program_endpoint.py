"""The endpoint that a program of an episode calls: OpenAI's chat API on loopback, where each call is a turn.

A turn is shown, token for token, what the turn before was shown, what the model said, and what is new. So a call must
continue the one before: the same messages, the answer that it got, and new ones. Any other call is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any

from coterie.envs.base import EpisodeError, check_reward
from coterie.tools.openai_calls import read_calls, results_in_words, tools_in_words
from coterie.types import Message
from coterie.web.origin import NAMES, equal_secrets, new_secret

BODY = 8 << 20
"""Bytes of a request."""
MODEL = "policy"
"""Name of the model, whatever a program asks for."""
REFUSED = {"functions": "tools", "stop": "sampling.stop", "logit_bias": "nothing", "logprobs": "the run's records"}
"""Parameters that would change a turn, and what is there in their place."""
ROLES = ("system", "developer", "user", "assistant", "tool")


class CallError(Exception):
    """A call that is refused.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, kw_only=True, eq=False)
class ModelCall:
    """A call that waits for its completion."""

    messages: tuple[Message, ...]
    """Those that are new since the call before."""
    reply: Future[dict[str, Any]] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramExit:
    """The program has ended."""

    code: int


class Conversation:
    """The calls of one episode, one after the other. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.token = new_secret()
        self.events: SimpleQueue[ModelCall | ProgramExit] = SimpleQueue()
        """What the program does."""
        self.reward: float | None = None
        """That it gave over HTTP."""
        self._history: list[dict[str, Any]] = []
        """Messages so far, with the answers as they were given."""
        self._tools: Sequence[Any] | None = None
        self._open: ModelCall | None = None
        self._closed = False
        self._lock = threading.Lock()

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The assistant's message to a call; waits for it.

        Raises:
            CallError: the call is refused, or the episode is over.
        """
        messages = [_checked_message(message) for message in _messages_of(body)]
        tools = body.get("tools") or []
        _refuse_settings(body)
        with self._lock:
            if self._closed:
                raise CallError("the episode is over", 503)
            if self._open is not None:
                raise CallError("another call is open: the calls of an episode are turns, one after the other")
            if self._tools is not None and tools != self._tools:
                raise CallError("the tools are others than in the first call; an episode has the same from its start")
            new = self._continuing(messages)
            shown = _shown(new, tools if self._tools is None else [])
            self._tools, self._history = tools, messages
            self._open = call = ModelCall(messages=shown)
        self.events.put(call)
        return call.reply.result()

    def answer(self, text: str) -> None:
        """Give the open call what the model said."""
        with self._lock:
            call, self._open = self._open, None
            assert call is not None
            message = read_calls(text, [tool["function"]["name"] for tool in self._tools or ()]).message()
            self._history = [*self._history, message]
        call.reply.set_result(message)

    def earn(self, reward: Any) -> None:
        """Take the episode's reward; the last one counts.

        Raises:
            CallError: it is none.
        """
        try:
            self.reward = check_reward(reward)
        except EpisodeError as error:
            raise CallError(str(error)) from error

    def close(self) -> None:
        """Refuse all calls from now on, the open one among them."""
        with self._lock:
            self._closed, call, self._open = True, self._open, None
        if call is not None:
            call.reply.set_exception(CallError("the episode is over", 503))

    def _continuing(self, messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The messages beyond the conversation so far."""
        before = len(self._history)
        for place, (earlier, given) in enumerate(zip(self._history, messages, strict=False)):
            if _essence(earlier) != _essence(given):
                raise CallError(
                    f"message {place} is {given!r:.120}, and was {earlier!r:.120}: a call continues the conversation "
                    "of the one before, with the answer as it was; it may not shorten, change or branch it"
                )
        if len(messages) <= before:
            raise CallError(f"the call has {len(messages)} messages, and more than the {before} so far are expected")
        if any(message["role"] == "assistant" for message in messages[before:]) and before:
            raise CallError("the call holds an answer that the model did not give; only the opening may have some")
        return messages[before:]


class ProgramEndpoint:
    """A server on loopback for programs of episodes; each has a conversation and the token that opens it."""

    def __init__(self) -> None:
        self._conversations: dict[str, Conversation] = {}
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, name="programs", daemon=True).start()

    @property
    def address(self) -> str:
        """Base address, e.g. `http://127.0.0.1:43210/v1`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def hosts(self) -> set[str]:
        """Names that a request may ask by: a web page has others."""
        return {f"{name}:{self._server.server_address[1]}" for name in NAMES}

    def open(self) -> Conversation:
        """A new conversation."""
        conversation = Conversation()
        self._conversations[conversation.token] = conversation
        return conversation

    def close(self, conversation: Conversation) -> None:
        """End a conversation."""
        self._conversations.pop(conversation.token, None)
        conversation.close()

    def conversation_of(self, token: str) -> Conversation | None:
        """The conversation that a token opens."""
        return next((item for key, item in list(self._conversations.items()) if equal_secrets(token, key)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, endpoint: ProgramEndpoint) -> None:
        self.endpoint = endpoint
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 600

    @property
    def endpoint(self) -> ProgramEndpoint:
        assert isinstance(self.server, _Server)
        return self.server.endpoint

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            self._reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "coterie"}]})
        else:
            self._refuse(404, f"there is no {self.path!r:.80}")

    def do_POST(self) -> None:
        try:
            body = self._body()
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            conversation = self.endpoint.conversation_of(token.strip()) if scheme.lower() == "bearer" else None
            if self.headers.get("Host") not in self.endpoint.hosts or conversation is None:
                raise CallError("no episode has this key; programs get it as OPENAI_API_KEY", 401)
            if self.path == "/v1/chat/completions":
                self._complete(body, conversation.ask(body))
            elif self.path == "/v1/reward":
                conversation.earn(body.get("reward"))
                self._reply(200, {"reward": conversation.reward})
            else:
                raise CallError(f"there is no {self.path!r:.80}; POST /v1/chat/completions or /v1/reward", 404)
        except CallError as error:
            self._refuse(error.status, str(error))
        except OSError:  # the program hung up
            self.close_connection = True

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY:
            self.close_connection = True
            raise CallError(f"expected a Content-Length of at most {BODY}", 413)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise CallError(f"the body is no JSON: {error!s:.120}") from error
        if not isinstance(body, dict):
            raise CallError(f"the body is {body!r:.60}; expected a JSON object")
        return body

    def _complete(self, body: Mapping[str, Any], message: dict[str, Any]) -> None:
        reason = "tool_calls" if "tool_calls" in message else "stop"
        head = {"id": "chatcmpl-episode", "created": 0, "model": MODEL}
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if not body.get("stream"):
            choice |= {"message": message, "logprobs": None}
            return self._reply(200, head | {"object": "chat.completion", "choices": [choice]})
        calls = [call | {"index": place} for place, call in enumerate(message.get("tool_calls", ()))]
        delta = message | ({"tool_calls": calls} if calls else {})
        chunk = head | {"object": "chat.completion.chunk", "choices": [choice | {"delta": delta}]}
        data = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        return self._send(200, data, "text/event-stream")

    def _refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._reply(status, {"error": error})

    def _reply(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line a request."""


def _messages_of(body: Mapping[str, Any]) -> Sequence[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CallError(f"messages = {messages!r:.60}; expected a list of messages")
    tools = body.get("tools") or []
    named = isinstance(tools, list) and all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) and "name" in tool["function"]
        for tool in tools
    )
    if not named:
        raise CallError(f"tools = {tools!r:.60}; expected a list of {{type, function: {{name, …}}}}")
    return messages


def _checked_message(message: Any) -> dict[str, Any]:
    """A message with its content as one text."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise CallError(f"a message is {message!r:.80}; expected one with a role of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise CallError(f"content = {content!r:.80}; expected text, since the model reads nothing else")
        content = "".join(map(str, texts))
    if not isinstance(content, str | None) or (content is None and not message.get("tool_calls")):
        raise CallError(f"content = {content!r:.80}; expected text")
    return {**message, "content": content}


def _refuse_settings(body: Mapping[str, Any]) -> None:
    """Refuse what would change a turn and is not done; temperature, top_p, seed and limits are the run's own."""
    for name, instead in REFUSED.items():
        if body.get(name):
            raise CallError(f"{name} is not supported in an episode; there is {instead} in its place")
    if body.get("n") not in (None, 1):
        raise CallError(f"n = {body['n']!r:.20}; a call is one turn of the episode: expected 1")
    if (body.get("response_format") or {"type": "text"}) != {"type": "text"}:
        raise CallError("response_format is not supported; the model answers with text")
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise CallError(f"tool_choice = {body['tool_choice']!r:.60}; expected auto or none")


def _essence(message: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two messages must share to be the same: a program may drop ids, names and blanks at the ends."""
    calls = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, dict)]
    written = [(call.get("name"), call.get("arguments")) for call in calls if isinstance(call, dict)]
    return message["role"], (message.get("content") or "").strip(), written


def _shown(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> tuple[Message, ...]:
    """Messages as any chat template takes them: tools in the system message, their results as the user's words."""
    shown: list[Message] = []
    results: list[str] = []
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool":
            results.append(message["content"] or "")
            continue
        if results:
            shown.append(Message(role="user", content=results_in_words(results)))
            results = []
        if message is not None:
            role = "system" if message["role"] == "developer" else message["role"]
            shown.append(Message(role=role, content=message["content"] or ""))
    if tools:
        words = tools_in_words(tools)
        if shown and shown[0]["role"] == "system":
            shown[0] = Message(role="system", content=f"{shown[0]['content']}\n\n{words}")
        else:
            shown.insert(0, Message(role="system", content=words))
    return tuple(shown)
