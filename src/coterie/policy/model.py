"""The policy: a transformers causal language model, loaded safely and run along the path that is exact for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from coterie.batches.batch import Segment
from coterie.config.schema import LoraConfig, ModelConfig
from coterie.errors import ModelError
from coterie.policy import adapters as lora_adapters
from coterie.policy import attention, portable
from coterie.policy.fidelity import EXACT, choose_path, in_float32, rope_switch
from coterie.policy.path import ModelRunner
from coterie.policy.tensor_parts import local, whole_state

_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def pretrained(
    auto: Any,
    source: str,
    dtype: torch.dtype | str,
    *,
    revision: str | None = None,
    unused: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A model by transformers' auto class `auto`, from a local folder or by id: safetensors only, no remote code.

    Args:
        source: a folder has to be put through `refuse_unsafe` before.
        dtype: number format of the weights; "auto" is that of the files.
        revision: pinned revision of an id.
        unused: beginnings of the names of weights that may be missing, since nothing reads them.
        options: as `from_pretrained` takes them.

    Raises:
        ModelError: not there, pickled, damaged, of an unknown architecture, or without some of its weights.
    """
    transformers_logging.disable_progress_bar()
    if revision:
        options["revision"] = revision
    try:
        loaded: Any = auto.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        if auto.__name__ == "AutoModelForCausalLM" and _is_encoder_decoder(source, revision):
            raise ModelError(
                f"{source!r} is an encoder-decoder model such as T5 or BART, not a causal language model; expected a "
                "decoder-only one, such as Qwen, Llama or SmolLM"
            ) from error
        raise ModelError(
            f"cannot load the model {source!r}: {str(error).splitlines()[0]}; expected an asset name "
            "(`coterie assets ls`), a folder with config.json and *.safetensors, or a reachable transformers id"
        ) from error
    model, loading_info = loaded
    absent = sorted(
        str(name)
        for kind in ("missing_keys", "mismatched_keys")
        for name in loading_info.get(kind, ())
        if not str(name).startswith(tuple(unused))
    )
    if absent:
        raise ModelError(
            f"the weights of {source!r} lack {len(absent)} tensors that the model needs, e.g. {absent[0]}: there it "
            "would work with random numbers; fetch the model again"
        )
    return model


def _is_encoder_decoder(source: str, revision: str | None) -> bool:
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError):
        return False
    return bool(getattr(config, "is_encoder_decoder", False))


def make_savable(model: Any) -> None:
    """Repair generation settings that transformers loads but refuses to save, e.g. a temperature without do_sample."""
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def refuse_unsafe(folder: Path) -> None:
    """Raise ModelError on pickled weights and repository code, which can run anything, before they are read."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{folder} has no config.json: expected a transformers model folder")
    model_config = json.loads(config.read_text(encoding="utf-8"))
    if "auto_map" in model_config or model_config.get("trust_remote_code"):
        raise ModelError(
            f"{config} asks to run code from the model folder (auto_map): coterie never does; use a model whose "
            "architecture is part of transformers"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _UNSAFE)
        if pickled:
            raise ModelError(
                f"{folder} holds pickled weights ({', '.join(pickled)}), which can run code when opened; convert them "
                "to safetensors in a place you trust, e.g. `model.save_pretrained(folder, safe_serialization=True)`"
            )
        raise ModelError(f"{folder} has no *.safetensors: expected the weights of a transformers model")


ROUNDED = 0.1
"""Greatest root mean square difference of logits, in standard deviations, between two ways to compute the same in
formats with fewer digits than float32."""


class Policy:
    """A causal language model, packed or sequence by sequence, with log-probs that are the model's own.

    Args:
        longest: sequences never get longer than this many tokens; a model whose rotary embedding changes with the
            length of a sequence (longrope) needs it.

    Attributes:
        model: the transformers model itself, with adapters injected when LoRA is used; always in eval mode, since
            dropout would make the sampled and the trained policy differ.
        name: the user's name for it.
        source_config: the `config.json` that the model was loaded from; empty when it was made in memory.
        base: folder or id of the model below the adapter; empty when it was made in memory.
        revision: pinned revision of that id.
        start: of an adapter that goes on training, the weights that it began with, by name.
        path: forward path on which it is computed.
        notes: what the user should know about this model, one line each.
        whole: tensors by name → the same as whole tensors, gathered one by one as they are asked for; where this
            process has them whole, the very tensors.

    Raises:
        ModelError: there is no path on which coterie's numbers are the model's own.
    """

    source_config: Mapping[str, Any] = MappingProxyType({})
    base: str = ""
    revision: str | None = None
    start: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        lora: LoraConfig | None = None,
        adapters: Any = None,
        seed: int = 0,
        longest: int | None = None,
    ) -> None:
        attention.register()
        self.name = name
        self.model: Any = model.eval()
        self.path = choose_path(self.model, longest=longest)
        self.longest = longest
        self.runner = _checked(self.model, ModelRunner(self.model, self.path))
        self.adapters = adapters if lora is None else lora_adapters.new(self.model, lora, seed)
        self.decoder: Any = self.runner.decoder
        self.head = self.runner.head
        self.notes = _notes(self)
        self.whole: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def context(self) -> int:
        """Longest sequence, in tokens, that the model was made for or that it may be used for."""
        made_for = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
        return made_for if self.longest is None else min(made_for, self.longest)

    @property
    def head_size(self) -> int:
        """Numbers in one attention head; 0 of a model without attention."""
        shape = self.model.config.get_text_config()
        heads = getattr(shape, "num_attention_heads", None)
        return int(getattr(shape, "head_dim", None) or (shape.hidden_size // heads if heads else 0))

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers, as if every layer had attention."""
        shape = self.model.config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or getattr(shape, "num_attention_heads", None) or 0
        return 2 * shape.num_hidden_layers * heads * self.head_size * self.head.weight.element_size()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, each tensor once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def size(self) -> int:
        """Number of parameters, trained or not."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def hidden(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Last hidden states of a packed row or of rows.

        Args:
            tokens: [B, T] int64.
            positions: [B, T] int64, position of each token in its own sequence.

        Returns:
            [B, T, D] in the model's dtype.
        """
        return self.runner.hidden(tokens, positions, layout)

    def mid_layer_states(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Hidden states after half of the layers, [B, T, D]; the other half is not run.

        Args: see `hidden`. A model without a list of decoder layers gives its last hidden states.
        """
        return self.runner.mid_layer_states(tokens, positions, layout)

    @contextmanager
    def without_adapters(self) -> Generator[None]:
        """The model as training began: without a new adapter, or with the first weights of one that goes on training.
        The frozen reference at no cost, or at that of a second adapter."""
        if self.adapters is None:
            raise ModelError("without_adapters needs LoRA: set model.lora, or keep a separate reference model")
        if not self.start:
            with self.adapters.disable_adapter():
                yield
            return
        # Through `.data`, since autograd must not see a change that is undone: the pass may lie before a backward pass.
        weights = {name: local(parameter).data for name, parameter in self.parameters().items()}
        trained = {name: weight.clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(self.start[name])
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.copy_(trained[name])

    def require_trainable(self) -> None:
        """Raise ModelError if no parameter is trainable: an adapter loaded without `model.lora`."""
        if not self.parameters():
            raise ModelError(
                f"{self.name} is a LoRA adapter, and without model.lora there is nothing to train: set model.lora with "
                "the adapter's rank and alpha to train it further, or merge it into its base and train all weights: "
                "coterie export ADAPTER --to merged FOLDER"
            )

    def save(self, folder: Path) -> None:
        """Write safetensors that transformers (or PEFT, for adapters) opens as they are."""
        module = self.adapters or self.model
        state = whole_state(module, dict(self.model.named_parameters()), self.whole)
        module.save_pretrained(folder, safe_serialization=True, **state)
        if self.adapters is None:
            portable.rewrite(folder, self.source_config)
        else:  # the base's name and end tokens, which a reader of the adapter alone would miss
            if self.base:
                lora_adapters.name_base(folder, self.base, self.revision)
            self.model.generation_config.save_pretrained(folder)


def load(config: ModelConfig, source: str | Path, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Policy:
    """Load a model, or an adapter with its base, from a local folder or by transformers id.

    Args:
        config: with `lora`, an adapter's folder is trained further, and a model gets a new adapter.
        seed: of a new adapter's first weights.

    Raises:
        ModelError: pickle weights, code in the folder, weights missing, an architecture without an exact path, or an
            adapter of another shape than `config.lora`.
    """
    folder = Path(source)
    if lora_adapters.is_adapter(folder):
        return _adapted(config, folder, dtype, device)
    if folder.is_dir():
        refuse_unsafe(folder)
    model = _pretrained(str(source), dtype, config.revision).to(device)
    policy = Policy(model, name=config.name, lora=config.lora, seed=seed, longest=rope_switch(model.config))
    policy.source_config = portable.source_config(str(source), config.revision)
    of_hub = config.name.count("/") == 1 and not Path(config.name).exists()
    policy.base = config.name if of_hub else str(source)  # not the folder of the hub's cache
    policy.revision = config.revision
    return policy


def _adapted(config: ModelConfig, folder: Path, dtype: torch.dtype, device: torch.device) -> Policy:
    """The base model with the adapter in place, as it was when it was trained; with `lora` it is trained further."""
    base = lora_adapters.base_of(folder)
    if Path(base).is_dir():
        refuse_unsafe(Path(base))
    model = _pretrained(base, dtype, config.revision or lora_adapters.read_config(folder).get("revision"))
    adapters = lora_adapters.attach(model, folder, config.lora)
    policy = Policy(model.to(device), name=config.name, adapters=adapters, longest=rope_switch(model.config))
    policy.base, policy.revision = base, config.revision or lora_adapters.read_config(folder).get("revision")
    if config.lora is not None:
        policy.start = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    return policy


def _pretrained(source: str, dtype: torch.dtype, revision: str | None) -> Any:
    model = pretrained(AutoModelForCausalLM, source, dtype, revision=revision, attn_implementation="eager")
    make_savable(model)
    return model


def _notes(policy: Policy) -> list[str]:
    notes, name = [], type(policy.model).__name__
    if policy.path.kind == "plain":
        sampled = "with its own cache" if policy.path.cached else "without a cache, the whole sequence for every token"
        notes.append(
            f"{name} is computed through its own forward pass and sampled {sampled} (exact, slower): "
            f"{policy.path.reason}"
        )
    if policy.longest is not None:
        made_for = policy.model.config.get_text_config().max_position_embeddings
        notes.append(
            f"{name} changes its rotary embedding beyond {policy.longest} tokens (longrope): prompt and completion "
            f"together may have that many here, not the {made_for} of its config.json"
        )
    return notes


def _checked(model: Any, runner: ModelRunner) -> ModelRunner:
    """Compare the path with the model's own forward pass on a few tokens, with the real weights and data type.

    Rounding to few digits can grow through the layers to any size, so where such a model differs, it is asked again in
    float32 before it is refused.
    """
    implementation = "eager" if runner.path.kind == "packed" else runner.path.attention
    error, tolerance = _error(model, runner, implementation), EXACT
    if model.dtype.itemsize < 4:
        tolerance = ROUNDED
        if not error < ROUNDED:
            with in_float32(model):
                error, tolerance = _error(model, runner, implementation), EXACT
    if not error < tolerance:
        raise ModelError(
            f"{type(model).__name__} with these weights computes something that a small model of the same architecture "
            f"does not (logits differ by {error:.3g} standard deviations, expected < {tolerance}); it is not supported"
        )
    return runner


def _error(model: Any, runner: ModelRunner, implementation: str) -> float:
    """Root mean square between the model's own logits and the runner's, in standard deviations."""
    length = 5
    tokens = torch.arange(1, length + 1, device=model.device)[None] % runner.head.weight.shape[0]
    positions = torch.arange(length, device=model.device)[None]
    layout = attention.PackedLayout([Segment(start=0, prompt=2, lengths=(3,))], model.device)
    with torch.no_grad():
        model.set_attn_implementation(implementation)
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        model.set_attn_implementation(runner.path.attention)
        computed = runner.head(runner.hidden(tokens, positions, layout)).float()
    return float((expected - computed).pow(2).mean().sqrt() / expected.std().clamp(min=1e-6))
