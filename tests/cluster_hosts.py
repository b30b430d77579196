"""Engine services for tests: what they serve, and a host whose services are threads of this process."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cluster.engine_service import ServedEngine, serve
from coterie.cluster.frames import BrokenStreamError, Frames
from coterie.cluster.hosts import Host, LostError, ProcessHost, WeightMemory
from coterie.engines.base import Request
from coterie.engines.scripted import ScriptedEngine
from coterie.errors import EngineError
from coterie.rng import uniforms

if TYPE_CHECKING:  # a service that recites has no torch
    from coterie.cluster.engine_pool import EnginePool
    from coterie.policy.model import Policy

VOCABULARY, CONTEXT = 97, 256
VLLM = os.environ.get("COTERIE_VLLM", "")
"""Interpreter of an environment with vLLM; tests that need it are skipped without."""
RAY = bool(os.environ.get("COTERIE_RAY"))
"""Whether tests start Ray, which takes seconds and half a gigabyte."""


def alive(pid: int) -> bool:
    """It runs, and is no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def script(request: Request) -> list[int]:
    """As many tokens as the key's first draw says; each a function of the key alone."""
    draws = uniforms(request.key, 20)
    return [3 + int(90 * draw) for draw in draws[: 1 + int(19 * draws[0])]]


def recited(weights: Mapping[str, Any], **trouble: Any) -> ServedEngine:
    """A scripted engine, in a process without torch."""
    return ServedEngine(engine=Troubled(**trouble), load=lambda: None)


def diary(weights: Mapping[str, Any], file: str) -> ServedEngine:
    """A scripted engine that writes down when it is given weights, and when it gives them back."""

    def note(text: str) -> None:
        with open(file, "a") as lines:
            lines.write(f"{text}\n")

    engine = ScriptedEngine(script, vocabulary=VOCABULARY)
    return ServedEngine(engine=engine, load=lambda: note("load"), rest=lambda: note("rest"))


class Troubled(ScriptedEngine):
    """A scripted engine in trouble.

    Args:
        at: pass at which trouble comes.
        kind: of trouble: refuses, has a bug, dies, or hangs.
        once: a file that is made when it comes, and keeps it from coming again.
    """

    def __init__(self, at: int = 0, kind: str = "", once: str = "") -> None:
        super().__init__(script, vocabulary=VOCABULARY)
        self.at, self.kind, self.once, self.passes = at, kind, once, 0
        if kind == "start":
            raise EngineError("the model folder is gone")

    def step(self) -> Any:
        self.passes += 1
        if self.passes == self.at and self._first():
            print(f"{self.kind} at pass {self.passes}", flush=True)
            match self.kind:
                case "refuses":
                    raise EngineError("the model returned logits that are not finite")
                case "bug":
                    raise KeyError("layer 3")
                case "dies":
                    os._exit(3)
                case "hangs":
                    time.sleep(60)
        return super().step()

    def _first(self) -> bool:
        """The trouble has not come yet, to this or another service."""
        if not self.once:
            return True
        try:
            open(self.once, "x").close()
        except FileExistsError:
            return False
        return True


def computed(weights: Mapping[str, Any]) -> ServedEngine:
    """The embedded engine on a tiny policy of float64 whose weights are not those of the run, until it loads them."""
    import torch

    from coterie.engines.embedded import EmbeddedEngine
    from coterie.policy.shared_memory import SharedWeights
    from engines_for_tests import Codec
    from tiny_models import tiny_policy

    policy, shared = tiny_policy("llama", dtype=torch.float64, seed=1), SharedWeights(**weights)
    engine = EmbeddedEngine(policy, Codec(), max_num_seqs=4)
    return ServedEngine(engine=engine, load=lambda: shared.read_into(policy.parameters()))


@dataclass(kw_only=True)
class ThreadService:
    """A service in a thread of this process; it cannot be killed while it computes."""

    frames: Frames

    def send(self, message: Mapping[str, Any], seconds: float) -> None:
        try:
            self.frames.send(message, seconds)
        except BrokenStreamError as error:
            raise LostError(str(error)) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        try:
            return self.frames.receive(seconds)
        except BrokenStreamError as error:
            raise LostError(str(error)) from error

    def kill(self) -> None:
        self.frames.close()

    def close(self) -> None:
        self.frames.close()


class ThreadHost(Host):
    """Services in threads."""

    def start(self, name: str, order: Mapping[str, Any], memory: WeightMemory | None = None) -> ThreadService:
        ours, theirs = socket.socketpair()
        importlib.import_module(order["target"].partition(":")[0])

        def run() -> None:
            frames = Frames(theirs)
            with suppress(BrokenStreamError):
                serve(frames)
            frames.close()

        threading.Thread(target=run, daemon=True, name=name).start()
        service = ThreadService(frames=Frames(ours))
        service.send(order, 5.0)
        return service


def process_host(logs: Any = None) -> ProcessHost:
    """Child processes that find the modules of the tests."""
    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    return ProcessHost(logs=logs)


def vllm_pool() -> tuple[EnginePool, Policy, list[str]]:
    """vLLM on a tiny tied model, whose service starts for a minute; its policy, and what is told of lost services."""
    import torch

    from coterie.cluster.engine_pool import EnginePool, ServiceOrder
    from coterie.policy.shared_weights import weights_of
    from engines_for_tests import Codec
    from tiny_models import tiny_policy

    sizes = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    policy = tiny_policy("llama", dtype=torch.float32, tie_word_embeddings=True, **sizes)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(1.5)  # so that its distributions are far from uniform
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    policy.model.save_pretrained(folder)
    arguments = {
        "model": folder,
        "dtype": "float32",
        "max_model_len": CONTEXT,
        "max_num_seqs": 4,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    order = ServiceOrder(
        target="coterie.cluster.vllm_engine:served_vllm",
        arguments={
            "arguments": arguments,
            "vocabulary": VOCABULARY,
            "stop_ids": sorted(Codec.stop_ids),
            "cache_bytes": policy.cache_bytes(),
        },
    )
    reports: list[str] = []
    pool = EnginePool(
        ProcessHost(python=VLLM),
        order,
        lambda: weights_of(policy),
        vocabulary=VOCABULARY,
        context=CONTEXT,
        report=reports.append,
    )
    return pool, policy, reports
