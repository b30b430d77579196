"""A model that is served: loaded once, behind a socket, until it is stopped."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from coterie.callbacks import Callback
from coterie.data.chat import Chat
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import ConfigError
from coterie.inference.conversation import loaded
from coterie.policy.model import Policy
from coterie.serve.engine_thread import EngineThread
from coterie.serve.prompt_tokens import Renderer
from coterie.web import origin
from coterie.web.local_server import LocalServer, listen, require

PORT = 8000
"""The first that is tried where none is asked for; vLLM's."""
TRIED = 20
"""Ports that are tried from there on."""
CONTEXT = 4096
"""Most tokens of a prompt and its completion, where nothing else is said and the model allows as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may ask for at most.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_num_seqs: int = 64
    """Sequences decoded at once, as in vLLM."""
    max_model_len: int | None = None
    """Tokens of a prompt and its completion, as in vLLM; None is the model's context, at most 4096."""
    max_queue: int = 1024
    """Completions that wait or are decoded at once."""
    max_kept_tokens: int = 16_384
    """Tokens of ended sequences whose keys and values are kept for prompts that begin alike."""
    max_body: int = 4 << 20
    """Bytes of a request."""
    timeout_s: float = 600.0
    """Of a request, from its arrival to its last token."""
    grace_s: float = 10.0
    """In which open requests may end after Ctrl-C."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value}; expected more than 0")


@dataclass(slots=True)
class Endpoint:
    """A server that listens, with a model loaded; `serve` answers until it is stopped, `start` does so in a thread.

    Args:
        target: a run, `RUN@STEP`, a model folder, an asset's name or a hub id.
        port: to listen on; None takes the first free one from 8000 on, 0 any free one.
        host: address to listen on. Any other than loopback needs an API key.
        api_key: that clients must send.
        name: by which clients ask for the model; the target when left out.
        dtype: number format, as `model.dtype`.
        weights_folder: from which clients may replace the weights (`POST /update_weights_from_disk`); None lets nobody.

    Raises:
        ConfigError: the packages of the extra `serve` are not installed, a limit is not positive or more than the
            model has, another host than loopback or a folder of weights is asked for without a key, or that folder is
            not there.
        RunError: the port is taken, or there is no such run.
        ModelError, AssetError: as `runs.models.resolve`, or the model cannot be loaded.
    """

    target: str
    port: int | None = None
    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    name: str = ""
    limits: Limits = field(default_factory=Limits)
    callback: Callback = field(default_factory=Callback, repr=False)
    dtype: str = "auto"
    weights_folder: Path | None = None
    max_model_len: int = field(init=False)
    _server: LocalServer = field(init=False, repr=False)
    _engine: EngineThread = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require("serve", "the server")
        local = origin.is_loopback(self.host)
        if not local and not self.api_key:
            raise ConfigError(
                f"host = {self.host}: other machines could use the model; give an API key (--api-key, or "
                "COTERIE_API_KEY), or listen on 127.0.0.1"
            )
        if self.weights_folder is not None and not self.api_key:
            raise ConfigError(
                f"weights_folder = {self.weights_folder}: every program of this machine could replace the weights; "
                "give an API key (--api-key, or COTERIE_API_KEY)"
            )
        self.name = self.name or self.target
        listener = listen(self.host, [self.port] if self.port is not None else [*range(PORT, PORT + TRIED), 0])
        try:
            self.port = listener.getsockname()[1]
            # In a thread that ends: GNU OpenMP keeps the threads of every team whose first thread lives, and once
            # they outnumber the processors, those of the engine no longer spin between two products.
            with ThreadPoolExecutor(max_workers=1) as loader:
                policy, talk, version = loader.submit(loaded, self.target, self.callback, self.dtype).result()
            self._load(policy, talk, version)
            self._server = self._serving(policy, talk, listener, local)
        except BaseException:
            listener.close()
            raise

    def _serving(self, policy: Policy, talk: Chat, listener: socket.socket, local: bool) -> LocalServer:
        from coterie.serve.application import Served, application
        from coterie.serve.weight_updates import WeightUpdates

        weights = None
        if self.weights_folder is not None:
            weights = WeightUpdates(folder=self.weights_folder, policy=policy, engine=self._engine)
        served = Served(
            name=self.name,
            talk=talk,
            renderer=Renderer(talk, vocabulary=self._engine.engine.vocabulary, max_model_len=self.max_model_len),
            engine=self._engine,
            weights=weights,
            max_body=self.limits.max_body,
            stopping=lambda: self._server.stopping,
        )
        app = application(served, api_key=self.api_key, loopback_port=self.port if local else None)
        settings = {"timeout_graceful_shutdown": max(1, round(self.limits.grace_s)), "backlog": 512}
        return LocalServer(app, listener, "coterie-serve", settings)

    def _load(self, policy: Policy, talk: Chat, version: int) -> None:
        asked = self.limits.max_model_len
        if asked is not None and asked > policy.context:
            raise ConfigError(f"max_model_len = {asked}, but the model's context is {policy.context}; lower it")
        self.max_model_len = asked or min(policy.context, CONTEXT)
        engine = EmbeddedEngine(
            policy,
            talk,
            max_num_seqs=self.limits.max_num_seqs,
            capacity=self.max_model_len,
            version=version,
            max_kept_tokens=self.limits.max_kept_tokens,
            prefix_caching=True,
        )
        self._engine = EngineThread(engine, timeout_s=self.limits.timeout_s, max_queue=self.limits.max_queue)

    @property
    def address(self) -> str:
        """Base address for clients, e.g. `http://127.0.0.1:8000/v1`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    def serve(self) -> None:
        """Answer until `stop` or Ctrl-C; open requests may end within the grace."""
        try:
            self._server.serve()
        finally:
            self._engine.stop()

    def start(self) -> Endpoint:
        """Answer from a thread of this process."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop answering, and free the port and the model's memory."""
        self._server.stop()
        self._engine.stop()

    def __enter__(self) -> Endpoint:
        return self if self._server.started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
