"""Settings → services of engine and learner: where they live, what each builds, and who hears of a lost one."""

from __future__ import annotations

import torch

from coterie.build.reading import Inputs
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.hosts import Host, ProcessHost
from coterie.cluster.learner_group import LearnerGroup
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
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
        target="coterie.build.served:served_engine",
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


def join_ranks(config: RunConfig, inputs: Inputs, learner: LearnerGroup, recorder: Recorder | None = None) -> None:
    """Start the learner's other ranks, each with a copy of the policy, and have it share rows with them.

    Raises:
        ConfigError: the run is on a GPU.
        LearnerError: a rank cannot be built.
    """
    if learner.policy.device.type != "cpu":
        raise ConfigError(
            f"cluster.learners = {config.cluster.learners} adds gradients in the CPU's memory, but the policy is on "
            f'{learner.policy.device}; set cluster.learners = 1, or model.device = "cpu"'
        )
    threads = rank_threads(config)
    host = host_for(threads, recorder)
    arguments = {
        "settings": config.model_dump(mode="json"),
        "source": inputs.source,
        "reference": inputs.reference,
        "threads": threads,
    }
    order = {"target": "coterie.build.served:served_learner", "arguments": arguments}
    members = [host.start(f"learner-{rank}", order) for rank in range(1, config.cluster.learners)]
    learner.join(members, start_s=config.cluster.start_s, timeout_s=config.cluster.timeout_s)


def rank_threads(config: RunConfig) -> int:
    """Compute threads of each learner rank but the first, which has the run's."""
    return config.cluster.threads or max(1, torch.get_num_threads() // config.cluster.learners)


def service_threads(config: RunConfig) -> int:
    """Compute threads of each engine service."""
    return config.cluster.threads or max(1, torch.get_num_threads() // config.engine.replicas)


def host_for(threads: int, recorder: Recorder | None) -> Host:
    """Where services live, with logs in the run's folder."""
    return ProcessHost(logs=None if recorder is None else recorder.run.logs, threads=threads)
