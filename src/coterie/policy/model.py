"""The policy: a transformers causal language model, loaded safely and called through coterie's layouts."""

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
from coterie.errors import ModelError
from coterie.policy import attention
from coterie.policy.pretrained import pretrained, refuse_unsafe

EXACT, ROUNDED = 1e-3, 0.1
"""Greatest difference of logits, in standard deviations, between two ways to compute the same attention: in float32,
and in formats with fewer digits."""


class _Reached(Exception):  # noqa: N818 - it reports no error
    """A forward pass came as far as it should."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class Policy:
    """A causal language model whose attention follows a `Layout`.

    Attributes:
        model: the transformers model itself, with adapters injected when LoRA is used; always in eval mode, since
            dropout would make the sampled and the trained policy differ.
        name: what the user called it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        lora: LoraConfig | None = None,
        adapters: Any = None,
        seed: int = 0,
    ) -> None:
        attention.register()
        self.name = name
        self.model: Any = model.eval()
        _check_attention(self.model)
        self.model.set_attn_implementation(attention.NAME)
        self.adapters = adapters if lora is None else _with_lora(self.model, lora, seed)
        self.decoder: Any = self.model.get_decoder()
        self.head: nn.Linear = self.model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    @property
    def head_size(self) -> int:
        """Numbers in one attention head."""
        shape = self.model.config.get_text_config()
        return int(getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads)

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        shape = self.model.config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
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
        return self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, layout=layout).last_hidden_state

    def middle(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Hidden states after half of the layers, [B, T, D]; the other half is not run.

        Args: as of `hidden`. A model without a list of decoder layers gives its last hidden states.
        """
        layers = getattr(self.decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) < 2:
            return self.hidden(tokens, positions, layout)

        def stop(_layer: nn.Module, _given: Any, out: Any) -> None:
            raise _Reached(out[0] if isinstance(out, tuple) else out)

        hook = layers[len(layers) // 2 - 1].register_forward_hook(stop)
        try:
            return self.hidden(tokens, positions, layout)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()

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
        ModelError: pickle weights, code in the folder, weights missing, or an architecture without pluggable attention.
    """
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        if config.lora is not None:
            raise ModelError(
                f"{folder} is an adapter: a second one on top of it could not be saved on its own; train without "
                "model.lora from a merged model, or from the base model"
            )
        model, adapters = _adapted(folder, dtype, config)
        return Policy(model.to(device), name=config.name, adapters=adapters)
    if folder.is_dir():
        refuse_unsafe(folder)
    model = _pretrained(str(source), dtype, config.revision).to(device)
    return Policy(model, name=config.name, lora=config.lora, seed=seed)


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


def _with_lora(model: PreTrainedModel, lora: LoraConfig, seed: int) -> Any:
    peft = _peft()
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    heads = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    if isinstance(lora.targets, list) and heads & set(lora.targets):
        raise ModelError(f"model.lora.targets = {lora.targets} names the head, which coterie trains only without LoRA")
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings, autocast_adapter_dtype=False).eval()
        except ValueError as error:
            raise ModelError(
                f"model.lora.targets = {lora.targets} does not fit this model: {str(error).splitlines()[0]}; use "
                '"all-linear", or module names such as "q_proj"'
            ) from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs peft: install coterie with its `train` extra") from error
    return peft


def _check_attention(model: Any) -> None:
    """Compare coterie's attention with the model's own on a few tokens, so that no architecture is silently wrong.

    Rounding to few digits can grow through the layers to any size, so where such a model differs, it is asked again in
    float32 before it is refused.
    """
    error, tolerance = _attention_error(model), EXACT
    if model.dtype.itemsize < 4:
        tolerance = ROUNDED
        if not error < ROUNDED:
            with _in_float32(model):
                error, tolerance = _attention_error(model), EXACT
    if not error < tolerance:
        raise ModelError(
            f"{type(model).__name__} computes something beside plain attention and head (logits differ by {error:.3g} "
            f"standard deviations, expected < {tolerance}); it is not supported"
        )


def _attention_error(model: Any) -> float:
    """Root mean square between the logits with the model's own attention and with coterie's, in standard deviations."""
    config = model.config.get_text_config()
    length = 5
    tokens = torch.arange(1, length + 1, device=model.device)[None] % config.vocab_size
    positions = torch.arange(length, device=model.device)[None]
    layout = attention.PackedLayout([Segment(start=0, prompt=2, lengths=(3,))], model.device)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        try:
            model.set_attn_implementation(attention.NAME)
            states = model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False, layout=layout)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{type(model).__name__} does not take a pluggable attention ({error}); use a causal model of "
                "transformers that supports attention backends, such as Llama, Qwen, Gemma 3, Mistral or SmolLM"
            ) from error
        got = model.get_output_embeddings()(states.last_hidden_state).float()
    return float((expected - got).pow(2).mean().sqrt() / expected.std().clamp(min=1e-6))


@contextmanager
def _in_float32(model: nn.Module) -> Generator[None]:
    """Every rounded tensor as float32 for a while; the way there and back changes no bit."""
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()}
    rounded = [(one, one.dtype) for one in tensors.values() if one.dtype.itemsize < 4]
    for one, _ in rounded:
        one.data = one.data.float()
    try:
        yield
    finally:
        for one, dtype in rounded:
            one.data = one.data.to(dtype)
