"""Settings of an episode: the environment that it is played in, its engine, and where that lives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coterie.config.base import Section
from coterie.config.parts import ENGINES, ENVIRONMENTS, Named


class EnvironmentConfig(Section):
    """The environment of an episode: one completion, or several turns."""

    name: Annotated[str, Named(ENVIRONMENTS)] = "single_turn"
    """single_turn, the prompt and one answer; retry, another attempt after a wrong answer; running_sum, a sum asked one
    step at a time; dialogue, a user with a script; tools, which the model may call before it answers (docs/tools.md);
    program, which calls the model itself; trl, gymnasium, openenv and verifiers, of these libraries; or your own as
    `module:object`, a generator function or a class (docs/environments.md)."""
    max_turns: int = Field(default=8, ge=1)
    """Maximum number of turns of an episode; a longer one is truncated."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest episode in tokens, prompt and environment included. A turn is begun only if sampling.max_tokens, the
    limit of each turn, still fits."""
    delay: int = Field(default=1, ge=1)
    """Passes of the engine, about a token each, from the end of a turn to the next turn of its episode. An environment
    has that long before sampling waits for it; which turns share a pass never depends on how long it took."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of the environment's answer to a turn, seconds; an episode that misses it ends as env_error."""
    workers: int = Field(default=16, ge=1)
    """Most episodes whose environments answer at once, in threads; the built-in retry and running_sum need none."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment."""

    @model_validator(mode="after")
    def _used(self) -> EnvironmentConfig:
        if self.params and not self.talks:
            raise ValueError(f'name = "single_turn" takes no params, but params = {self.params}')
        return self

    @property
    def talks(self) -> bool:
        """True if there may be more than one turn."""
        return self.name != "single_turn"


class EngineConfig(Section):
    """Sampling engine."""

    name: Annotated[str, Named(ENGINES)] = "embedded"
    """`embedded` reads the learner's weights in place; `http` samples from a server, such as `coterie serve`
    (docs/serve.md); `vllm` samples with vLLM as a service (docs/scale.md); or your own as `module:function`
    (docs/extending.md)."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Decode batch size, as in vLLM: sequences decoded at once, with continuous batching."""
    replicas: int = Field(default=1, ge=1)
    """Engines that share the requests, each a service with a copy of the weights: needs cluster.host = "processes"
    or "ray" (docs/scale.md)."""
    lag: int = Field(default=0, ge=0)
    """Versions between the policy that samples a batch and the one that is updated by it; 1 samples the next batch
    while the learner updates (verl's one-step off-policy, prime-rl's max_async_level). 0: in turn (docs/scale.md)."""
    sleep_mode: bool = False
    """While the learner updates, engine services give back the memory of their weights and cache, which they read
    again before the next sampling (vLLM's enable_sleep_mode, level 2; verl's free_cache_engine): learner and engines
    share a machine or a GPU in turn (docs/scale.md). Needs cluster.host = "processes" or "ray", and lag = 0."""
    max_kept_tokens: int = Field(default=0, ge=0)
    """Most tokens of conversations between two turns that stay computed; 0 = as many as the decoded rows may hold."""
    draft: Literal["off", "history"] = "off"
    """`history` checks guesses from earlier attempts at a prompt, several in a pass: the same text (docs/speed.md). Of
    the engine `embedded`."""
    base_url: str = ""
    """Address of the server of `http`, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """Name of the model at that server; its first one when empty."""
    api_key_var: str = "COTERIE_API_KEY"
    """Environment variable that holds the server's key, as in prime-rl; the key itself is never written."""
    weights_folder: str = ""
    """Folder through which the server of `http` gets new weights: that of `coterie serve --weights-folder`. Empty: it
    keeps the weights that it has, which does for an evaluation, not for training."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds without a byte from the server of `http` after which a connection counts as lost."""
    retry_s: float = Field(default=300.0, gt=0)
    """Seconds in which a lost server of `http` must be back; requests are repeated until then, then the run ends."""

    python: str = ""
    """Interpreter of the services of `vllm` where vLLM is not installed beside coterie; e.g. vllm-venv/bin/python."""
    enable_lora: bool = False
    """`vllm` serves a LoRA adapter beside its base, and each update hands over the adapter alone (vLLM's enable_lora);
    false: the adapter is added to the base and the whole handed over."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine arguments by their names there, e.g. gpu_memory_utilization (0.3 here, beside the learner),
    enforce_eager or tensor_parallel_size."""

    @model_validator(mode="after")
    def _addressed(self) -> EngineConfig:
        if (self.name == "http") != bool(self.base_url):
            raise ValueError(
                f'base_url = {self.base_url!r} with name = {self.name!r}; expected name = "http" with the address of a '
                "server, and none else"
            )
        if self.name == "http" and self.draft != "off":
            raise ValueError(f'draft = "{self.draft}" is of the engine "embedded"; expected "off" for "http"')
        return self


class ClusterConfig(Section):
    """Where the parts of a run live."""

    host: Literal["local", "processes", "ray"] = "local"
    """`local` is one process for everything; with `processes` the engine samples in a child process of its own, which
    is replaced when it is lost, and with `ray` in a Ray actor; the numbers are the same (docs/scale.md)."""
    address: str = ""
    """Ray cluster to join with host = "ray": `auto` inside a job of Ray, or HOST:PORT of its head; empty: a Ray of the
    run's own on this machine, which listens on loopback alone."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Strategy of Ray's placement groups: services on as few nodes as they fit on, or on as many as there are."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for each engine service, as in Ray; an actor without any sees none. A fraction shares
    one."""
    learners: int = Field(default=1, ge=1)
    """Learner ranks, each a process with a part of the rows, whose gradients are added up: needs host = "processes" or
    "ray" (docs/scale.md)."""
    strategy: Literal["replicate", "fsdp"] = "replicate"
    """What each rank holds: with `replicate` whole weights and the whole optimizer, with `fsdp` a shard of every tensor
    (torch's FSDP2), and a whole layer only while it is computed. The numbers are the same up to rounding."""
    threads: int = Field(default=0, ge=0)
    """Compute threads of each engine service; 0 = those of the run, shared out among the services."""
    start_s: float = Field(default=600.0, gt=0)
    """Seconds until a service must be ready."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for one answer of a service, about a token of each sequence; then it counts as hung and is replaced."""
    restarts: int = Field(default=5, ge=0)
    """Services that may be lost while one policy version is sampled; one more ends the run."""

    @model_validator(mode="after")
    def _of_ray(self) -> ClusterConfig:
        for key in ("address", "placement", "num_gpus"):
            value = getattr(self, key)
            if self.host != "ray" and value != type(self).model_fields[key].default:
                raise ValueError(f'{key} = {value!r} is of Ray, and host = "{self.host}"; set host = "ray"')
        if self.address.startswith("ray://"):
            raise ValueError(
                f"address = {self.address!r} is of a Ray client; expected HOST:PORT of the head, or auto in a run that "
                "was submitted with `ray job submit`"
            )
        return self
