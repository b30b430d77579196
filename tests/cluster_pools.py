"""Pools of scripted engine services on any host, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from cluster_hosts import CONTEXT, VOCABULARY, script
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.hosts import Host
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.types import SampleKey, Turn

SAMPLING = Sampling(temperature=1.0, max_tokens=16)
Make = Callable[..., tuple[EnginePool, list[str]]]
"""Makes a pool, and the list of what it reports."""


def requests(version: int = 0, prompts: int = 4) -> list[Request]:
    """Three samples of each prompt."""
    return [
        Request(key=SampleKey(seed=1, version=version, prompt=str(prompt), sample=k), prompt_tokens=(5, prompt))
        for prompt in range(prompts)
        for k in range(3)
    ]


def expected(asked: list[Request]) -> list[Turn]:
    """The turns of an engine in this process."""
    engine = ScriptedEngine(script, vocabulary=VOCABULARY)
    engine.commit(asked[0].key.version)
    return engine.generate(asked, SAMPLING)


@contextmanager
def scripted_pools(host_of: Callable[[tuple[str, ...]], Host]) -> Generator[Make]:
    """Context that makes pools, and closes them at its end.

    Args:
        host_of: the host of services with these names.
    """
    pools: list[EnginePool] = []

    def pool(
        replicas: int = 1,
        *,
        restarts: int = 2,
        timeout_s: float = 60.0,
        target: str = "recited",
        sleeps: bool = False,
        **arguments: Any,
    ) -> Any:
        reports: list[str] = []
        limits: dict[str, Any] = {"restarts": restarts, "timeout_s": timeout_s, "sleeps": sleeps}
        engine = EnginePool(
            host_of(tuple(f"engine-{index}" for index in range(replicas))),
            ServiceOrder(target=f"cluster_hosts:{target}", arguments=arguments, **limits),
            lambda: {"weight": torch.zeros(3)},
            vocabulary=VOCABULARY,
            context=CONTEXT,
            replicas=replicas,
            report=reports.append,
        )
        pools.append(engine)
        return engine, reports

    yield pool
    for engine in pools:
        engine.close()
