"""Opening a transformers model safely: safetensors only, none of the repository's own code, nothing made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from coterie.errors import ModelError

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
    """A model by transformers' auto class `auto`, from a local folder or by id.

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
    model, facts = loaded
    absent = sorted(
        str(name)
        for kind in ("missing_keys", "mismatched_keys")
        for name in facts.get(kind, ())
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
    """transformers loads generation settings that it later refuses to save, e.g. a temperature without do_sample."""
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def refuse_unsafe(folder: Path) -> None:
    """Pickled weights and repository code can run anything: refuse them before anything is read.

    Raises:
        ModelError: with the remedy.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{folder} has no config.json: expected a transformers model folder")
    facts = json.loads(config.read_text(encoding="utf-8"))
    if "auto_map" in facts or facts.get("trust_remote_code"):
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
