"""The policy: a transformers causal language model, loaded safely and run along the path that is exact for it."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from coterie.batches.segments import Segment
from coterie.config.model import LoraConfig, ModelConfig
from coterie.errors import ModelError, install_command
from coterie.policy import attention
from coterie.policy.fidelity import EXACT, choose_path, in_float32, rope_switch
from coterie.policy.path import ModelRunner
from coterie.policy.pretrained import pretrained, refuse_unsafe

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
        name: what the user called it.
        path: how it is computed.
        notes: what the user should know about this model, one line each.

    Raises:
        ModelError: there is no path on which coterie's numbers are the model's own.
    """

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
        self.adapters = adapters if lora is None else _with_lora(self.model, lora, seed)
        self.decoder: Any = self.runner.decoder
        self.head = self.runner.head
        self.notes = _notes(self)

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
        """Last hidden states.

        Args:
            tokens: [B, T] int64.
            positions: [B, T] int64, position of each token in its own sequence.

        Returns:
            [B, T, D] in the model's dtype.
        """
        return self.runner.hidden(tokens, positions, layout)

    def middle(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Hidden states after half of the layers, [B, T, D]; the other half is not run.

        Args: as of `hidden`. A model without a list of decoder layers gives its last hidden states.
        """
        return self.runner.middle(tokens, positions, layout)

    @contextmanager
    def without_adapters(self) -> Generator[None]:
        """The model as it was before LoRA: the frozen reference for free."""
        if self.adapters is None:
            raise ModelError("without_adapters needs LoRA: set model.lora, or keep a separate reference model")
        with self.adapters.disable_adapter():
            yield

    def save(self, folder: Path) -> None:
        """Write safetensors that transformers (or PEFT, for adapters) opens as they are."""
        (self.adapters or self.model).save_pretrained(folder, safe_serialization=True)
        if self.adapters is None:
            _forget_attention(folder / "config.json")
        else:  # the base's end tokens, which a reader of the adapter alone would miss
            self.model.generation_config.save_pretrained(folder)


def _forget_attention(config: Path) -> None:
    """The saved model must open without coterie installed."""
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts.pop("_attn_implementation", None)
    config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load(config: ModelConfig, source: str | Path, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Policy:
    """Load a model, or a finished adapter with its base, from a local folder or by transformers id.

    Args:
        seed: of a new adapter's first weights.

    Raises:
        ModelError: pickle weights, code in the folder, weights missing, or an architecture without an exact path.
    """
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        if config.lora is not None:
            raise ModelError(
                f"{folder} is an adapter: a second one on top of it could not be saved on its own; train without "
                "model.lora from a merged model, or from the base model"
            )
        model, adapters = _adapted(folder, dtype, config)
        return Policy(model.to(device), name=config.name, adapters=adapters, longest=rope_switch(model.config))
    if folder.is_dir():
        refuse_unsafe(folder)
    model = _pretrained(str(source), dtype, config.revision).to(device)
    return Policy(model, name=config.name, lora=config.lora, seed=seed, longest=rope_switch(model.config))


def _pretrained(source: str, dtype: torch.dtype, revision: str | None) -> Any:
    model = pretrained(AutoModelForCausalLM, source, dtype, revision=revision, attn_implementation="eager")
    _make_savable(model)
    return model


def _make_savable(model: Any) -> None:
    """transformers loads generation settings that it later refuses to save, e.g. a temperature without do_sample."""
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def _adapted(folder: Path, dtype: torch.dtype, config: ModelConfig) -> tuple[Any, Any]:
    """The base model of a PEFT adapter folder with the adapter in place, as it was when it was trained."""
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is an adapter without a named base model or without *.safetensors; expected the folder that a "
            "LoRA run wrote"
        )
    if Path(base).is_dir():
        refuse_unsafe(Path(base))
    model = _pretrained(base, dtype, config.revision)
    return model, _peft().PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)


_FUSED = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Kinds of models whose fused kernels read the weight of `out_proj` past the module, so that PEFT refuses an adapter
there."""


def _with_lora(model: PreTrainedModel, lora: LoraConfig, seed: int) -> Any:
    peft = _peft()
    fused = lora.targets == "all-linear" and model.config.model_type in _FUSED
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        exclude_modules=["out_proj", "conv1d"] if fused else None,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    heads = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    if isinstance(lora.targets, list) and heads & set(lora.targets):
        raise ModelError(f"model.lora.targets = {lora.targets} names the head, which coterie trains only without LoRA")
    names = _linear_names(model)
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings, autocast_adapter_dtype=False).eval()
        except ValueError as error:
            raise ModelError(
                f"model.lora.targets = {lora.targets} does not fit this model: {str(error).splitlines()[0]}; use "
                f'"all-linear", or names of its linear layers: {names}'
            ) from error


def _linear_names(model: Any) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = {
        name.rpartition(".")[2] for name, module in model.named_modules() if module is model.get_output_embeddings()
    }
    return ", ".join(sorted(names - head))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"LoRA needs the package peft: {install_command('train')}") from error
    return peft


def _notes(policy: Policy) -> list[str]:
    notes, name = [], type(policy.model).__name__
    if policy.path.kind == "plain":
        sampled = "with its own cache" if policy.path.cached else "without a cache, the whole sequence for every token"
        notes.append(
            f"{name} runs through its own forward pass, and is sampled {sampled}: exact, but slower than packed rows, "
            f"where {policy.path.reason}"
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
    own = "eager" if runner.path.kind == "packed" else runner.path.attention
    error, tolerance = _error(model, runner, own), EXACT
    if model.dtype.itemsize < 4:
        tolerance = ROUNDED
        if not error < ROUNDED:
            with in_float32(model):
                error, tolerance = _error(model, runner, own), EXACT
    if not error < tolerance:
        raise ModelError(
            f"{type(model).__name__} with these weights computes something that a small model of the same architecture "
            f"does not (logits differ by {error:.3g} standard deviations, expected < {tolerance}); it is not supported"
        )
    return runner


def _error(model: Any, runner: ModelRunner, own: str) -> float:
    """Root mean square between the model's own logits and the runner's, in standard deviations."""
    length = 5
    tokens = torch.arange(1, length + 1, device=model.device)[None] % runner.head.weight.shape[0]
    positions = torch.arange(length, device=model.device)[None]
    layout = attention.PackedLayout([Segment(start=0, prompt=2, lengths=(3,))], model.device)
    with torch.no_grad():
        model.set_attn_implementation(own)
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        model.set_attn_implementation(runner.path.attention)
        got = runner.head(runner.hidden(tokens, positions, layout)).float()
    return float((expected - got).pow(2).mean().sqrt() / expected.std().clamp(min=1e-6))
