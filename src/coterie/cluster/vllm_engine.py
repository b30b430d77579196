"""vLLM as an engine: what lives in a service whose interpreter has vLLM. Tokens in, tokens out; no file is written."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from coterie.cluster.engine_service import ServedEngine
from coterie.engines.base import Engine, Request, Sampling, check_idle, check_request
from coterie.errors import EngineError
from coterie.policy.shared_memory import SHARED, SharedWeights
from coterie.rng import seed_of
from coterie.types import StopReason, Turn

READER = "coterie.cluster.vllm_engine.WeightReader"
LORA = re.compile(r"\.lora_([AB])\.[^.]+\.weight$")
"""End of PEFT's names in a model, with the adapter's own name."""
BLOCK = 128
"""Tokens of a block of vLLM's cache on a CPU."""


@dataclass(slots=True)
class _Sampled:
    """A request that has not ended."""

    request: Request
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def turn(self, reason: StopReason) -> Turn:
        return Turn(
            prompt_tokens=self.request.prompt_tokens,
            tokens=tuple(self.tokens),
            sampler_logprobs=tuple(self.logprobs),
            temperature=self.sampling.temperature,
            stop_reason=reason,
            version=self.request.key.version,
        )


class VllmEngine(Engine):
    """Engine around vLLM's `LLMEngine`: a pass is one step of its scheduler.

    Args:
        llm_engine: with `logprobs_mode = "processed_logprobs"`, so that log-probs are those of the distribution that
            was sampled from.
        vocabulary: token ids are below this.
        context: most tokens of a prompt and its turn.
        stop_ids: tokens that end a turn.
        adapter: PEFT's settings of a LoRA adapter that is served beside its base, whose weights alone are in the shared
            memory; None where these are the whole model's.
    """

    def __init__(
        self,
        llm_engine: Any,
        *,
        vocabulary: int,
        context: int,
        stop_ids: Sequence[int],
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self._vllm: Any = importlib.import_module("vllm")
        self._kind: Any = importlib.import_module("vllm.sampling_params").RequestOutputKind
        self._llm = llm_engine
        self._vocabulary, self._context, self._stop_ids = vocabulary, context, list(stop_ids)
        self._open: dict[int, _Sampled] = {}
        self._version, self._submitted = 0, 0
        self._asleep = False
        self._adapter, self._loras = adapter, 0
        """Adapters that were read; the number of the last one is its id."""
        self._lora: Any = None
        """vLLM's request for it."""

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def version(self) -> int:
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def load(self, file: int, slots: Sequence[Mapping[str, Any]]) -> None:
        """Take the weights in the shared memory, in every worker; what is kept of prompts was computed by others."""
        path = f"/proc/{os.getpid()}/fd/{file}"  # workers are other processes where there are several
        if self._asleep:
            self._llm.wake_up(["weights"])
        if self._adapter is None:
            self._llm.collective_rpc("read_shared_weights", args=(path, list(slots)))
        else:
            self._swap(path, slots, self._adapter)
        if self._asleep:  # only now, so that old weights, new weights and the cache are never there at once
            self._llm.wake_up(["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()

    def _swap(self, path: str, slots: Sequence[Mapping[str, Any]], adapter: Mapping[str, Any]) -> None:
        """Serve the adapter in the shared memory in place of the last one. vLLM reads adapters from folders alone."""
        module: Any = importlib.import_module("vllm.lora.request")
        if self._lora is not None:
            self._llm.remove_lora(self._lora.lora_int_id)
        self._loras += 1
        with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder:
            write_adapter(Path(folder), path, slots, adapter)
            self._lora = module.LoRARequest(f"adapter-{self._loras}", self._loras, folder)
            self._llm.add_lora(self._lora)

    def sleep(self) -> None:
        """Discard weights and cache, which `load` brings back; the base of an adapter waits in the main memory."""
        self._llm.sleep(level=2 if self._adapter is None else 1)
        self._asleep = True

    def submit(self, request: Request, sampling: Sampling) -> int:
        check_request(request, sampling, version=self._version, context=self._context)
        self._submitted += 1
        prompt = {"prompt_token_ids": list(request.prompt_tokens)}
        parameters = self._parameters(request, sampling)
        self._llm.add_request(str(self._submitted), prompt, parameters, lora_request=self._lora)
        self._open[self._submitted] = _Sampled(request, sampling)
        return self._submitted

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        """vLLM's `SamplingParams` of a request; its stop tokens are ours, none of the model's own beside them."""
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=seed_of(request.key),
            logprobs=0,
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=self._kind.DELTA,
        )

    def step(self) -> list[tuple[int, Turn]]:
        if not self._open:
            return []
        ended = []
        for output in self._llm.step():
            number = int(output.request_id)
            sampled = self._open.get(number)
            if sampled is None:
                continue  # aborted in this very pass
            (completion,) = output.outputs
            sampled.tokens += completion.token_ids
            logprobs = completion.logprobs or ()
            for token, row in zip(completion.token_ids, logprobs, strict=True):
                sampled.logprobs.append(float(row[token].logprob))
            if output.finished:
                ended.append((number, self._whole(self._open.pop(number), completion)))
        return ended

    def _whole(self, sampled: _Sampled, completion: Any) -> Turn:
        reasons = {"stop": StopReason.STOP, "length": StopReason.LENGTH}
        if completion.finish_reason not in reasons:
            raise EngineError(f"vLLM ended a request with {completion.finish_reason!r}; expected stop or length")
        versions = {span.version for span in completion.weight_versions or ()}
        if versions - {str(self._version)}:
            raise EngineError(
                f"vLLM sampled a turn with weights of the versions {', '.join(sorted(versions))}, expected "
                f"{self._version} alone"
            )
        return sampled.turn(reasons[completion.finish_reason])

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        sampled = self._open.pop(request, None)
        if sampled is None:
            return None
        self._llm.abort_request([str(request)])
        return sampled.turn(reason)

    def sampled(self, request: int, start: int) -> tuple[list[int], list[float]]:
        sampled = self._open[request]
        return sampled.tokens[start:], sampled.logprobs[start:]

    def commit(self, version: int) -> None:
        check_idle(self, version)
        self._version = version
        self._llm.set_weight_version(str(version))

    def close(self) -> None:
        for number in list(self._open):
            self.abort(number)


class WeightReader:
    """Methods that vLLM adds to its workers (`worker_extension_cls`)."""

    model_runner: Any
    device: Any

    def read_shared_weights(self, path: str, slots: Sequence[Mapping[str, Any]]) -> None:
        """Load weights of transformers' names from shared memory, as if from a checkpoint.

        On a CPU vLLM 0.32 computes a tied head from a packed copy that a reload leaves as it was; it is packed anew.

        Args:
            path: of the memory, in the file system of processes.
            slots: as of `SharedWeights`.
        """
        shared = SharedWeights(os.open(path, os.O_RDWR), slots)
        try:
            copies = ((name, tensor.clone()) for name, tensor in shared.tensors().items())
            self.model_runner.reload_weights(weights_iterator=copies, is_checkpoint_format=True)
        finally:
            shared.close()
        for module in self.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


def write_adapter(folder: Path, path: str, slots: Sequence[Mapping[str, Any]], adapter: Mapping[str, Any]) -> None:
    """Write an adapter as PEFT would, from the shared memory at `path`.

    Args:
        slots: as of `SharedWeights`, with PEFT's names of the trained tensors in the model.
        adapter: PEFT's settings.
    """
    shared = SharedWeights(os.open(path, os.O_RDWR), slots)
    try:
        tensors = {
            LORA.sub(r".lora_\1.weight", f"base_model.model.{name}"): tensor.clone()
            for name, tensor in shared.tensors().items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
    finally:
        shared.close()
    (folder / "adapter_config.json").write_text(json.dumps(dict(adapter)), encoding="utf-8")


def served_vllm(
    arguments: Mapping[str, Any],
    *,
    vocabulary: int,
    stop_ids: Sequence[int],
    cache_bytes: int,
    weights: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
) -> ServedEngine:
    """vLLM in a service.

    Args:
        arguments: of vLLM's `EngineArgs`, by name.
        vocabulary: token ids are below this.
        stop_ids: tokens that end a turn.
        cache_bytes: of the keys and values of one token; decides the size of the cache on a CPU.
        weights: `file` and `slots` of the shared memory.
        adapter: see `VllmEngine`.
    """
    if arguments.get("tensor_parallel_size", 1) == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process: it dies whole, and leaves no shared memory
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise EngineError(
            f"the service's interpreter has no vLLM ({error}): install it there, or name another one in engine.python"
        ) from error
    options = {**on_cpu(arguments, cache_bytes), **arguments} if not torch.cuda.is_available() else dict(arguments)
    try:
        llm = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**options, worker_extension_cls=READER))
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise EngineError(
            f"vLLM does not start: {error}; engine.vllm holds what it was given beside the rest"
        ) from error
    sizes = {"vocabulary": vocabulary, "context": arguments["max_model_len"]}
    engine = VllmEngine(llm, **sizes, stop_ids=stop_ids, adapter=adapter)
    return ServedEngine(engine=engine, load=lambda: engine.load(weights["file"], weights["slots"]), rest=engine.sleep)


def on_cpu(arguments: Mapping[str, Any], cache_bytes: int) -> dict[str, Any]:
    """vLLM's arguments on a CPU, where the user gives no others: no compilation, a cache for the sequences that are
    decoded at once, and prompts in one piece, since one that is cut ends vLLM 0.32 where requests have seeds."""
    longest = arguments["max_model_len"]
    tokens = arguments["max_num_seqs"] * (-(-longest // BLOCK) + 1) * BLOCK
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, 2048),
        "kv_cache_memory_bytes": tokens * cache_bytes,
    }
