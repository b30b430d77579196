"""Settings → engine services: where they live, what each builds, and who hears of a lost one."""

from __future__ import annotations

import torch

from coterie.build.reading import Inputs
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.hosts import Host, ProcessHost
from coterie.config.schema import RunConfig
from coterie.policy.model import Policy
from coterie.train.recorder import Recorder


def engine_services(
    config: RunConfig, inputs: Inputs, policy: Policy, longest: int, recorder: Recorder | None = None
) -> EnginePool:
    """The engine of the settings as services, each with a copy of the policy.

    Args:
        longest: tokens of the longest sequence, 0 where it is not known.
        recorder: of the run.
    """
    cluster, threads = config.cluster, service_threads(config)
    arguments = {
        "settings": config.model_dump(mode="json"),
        "source": inputs.source,
        "threads": threads,
        "longest": longest,
        "stop_ids": sorted(inputs.chat.stop_ids),
    }
    order = ServiceOrder(
        target="coterie.build.run:served_engine",
        arguments=arguments,
        start_s=cluster.start_s,
        timeout_s=cluster.timeout_s,
        restarts=cluster.restarts,
    )

    def report(text: str) -> None:
        if recorder is not None:
            recorder.note(None, "warning", text)

    return EnginePool(
        host_for(threads, recorder),
        order,
        policy.parameters,
        vocabulary=policy.head.weight.shape[0],
        context=policy.context,
        replicas=config.engine.replicas,
        report=report,
    )


def service_threads(config: RunConfig) -> int:
    """Compute threads of each engine service."""
    return config.cluster.threads or max(1, torch.get_num_threads() // config.engine.replicas)


def host_for(threads: int, recorder: Recorder | None) -> Host:
    """Where services live, with logs in the run's folder."""
    return ProcessHost(logs=None if recorder is None else recorder.run.logs, threads=threads)
