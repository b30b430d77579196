"""LoRA adapters in PEFT's layout: creation, loading, and further training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from coterie.config.schema import LoraConfig
from coterie.errors import ModelError, install_command

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """True if a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's settings as PEFT wrote them."""
    file = folder / CONFIG
    try:
        peft_config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not valid JSON ({error}); expected an adapter that PEFT saved") from error
    if not isinstance(peft_config, dict):
        raise ModelError(f"{file} holds a {type(peft_config).__name__}, expected a table")
    return peft_config


def base_of(folder: Path) -> str:
    """Folder or id of the model that an adapter was trained on.

    A relative path is looked up from the adapter's folder, then from the current one.
    """
    named = read_config(folder).get("base_model_name_or_path")
    if not named or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is an adapter without a named base model or without *.safetensors; expected the folder that a "
            "LoRA run wrote"
        )
    for path in (folder / named, Path(named)):
        if path.is_dir():
            return str(path.resolve())
    if named.startswith((".", "/", "~")) or named.count("/") != 1:
        raise ModelError(
            f"the base model {named} of the adapter {folder} does not exist; write the folder or the hub id of the "
            f"same model as base_model_name_or_path into {folder / CONFIG}"
        )
    return str(named)


def name_base(folder: Path, base: str, revision: str | None = None) -> None:
    """Write the base model into a saved adapter: an absolute folder, or an id of the hub with its pinned revision."""
    peft_config = read_config(folder)
    local = Path(base).is_dir()
    peft_config["base_model_name_or_path"] = str(Path(base).resolve()) if local else base
    peft_config["revision"] = None if local else revision
    (folder / CONFIG).write_text(json.dumps(peft_config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_FUSED = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Kinds of models whose fused kernels read the weight of `out_proj` past the module, so that PEFT refuses an adapter
there."""


def new(model: Any, lora: LoraConfig, seed: int) -> Any:
    """A PEFT model with a fresh adapter, whose first weights follow `seed`."""
    library = peft()
    fused = lora.targets == "all-linear" and model.config.model_type in _FUSED
    settings = library.LoraConfig(
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
            return library.get_peft_model(model, settings, autocast_adapter_dtype=False).eval()
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


def attach(model: Any, folder: Path, lora: LoraConfig | None = None) -> Any:
    """A PEFT model with the adapter of `folder` in place.

    Args:
        lora: settings under which it goes on training; None leaves it frozen.
    """
    if lora is not None:
        check_settings(folder, lora)
    library = peft()
    options = {"autocast_adapter_dtype": False, "is_trainable": lora is not None}
    try:
        attached = library.PeftModel.from_pretrained(model, str(folder), **options).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"the adapter {folder} cannot be put on {type(model).__name__}: {reason}; expected a PEFT adapter of that "
            "very model"
        ) from error
    if lora is not None and lora.targets == "all-linear":
        bare = _bare_layers(attached)
        if bare:
            named = sorted(str(name) for name in read_config(folder).get("target_modules") or ())
            raise ModelError(
                f'model.lora.targets = "all-linear", but the adapter {folder} leaves {len(bare)} linear layers as they '
                f"are, e.g. {bare[0]}; set model.lora.targets = {json.dumps(named)} to train it further"
            )
    return attached


def peft_settings(attached: Any) -> dict[str, Any]:
    """What PEFT writes of an adapter that another program needs to apply it, JSON-able.

    Args:
        attached: as `new` and `attach` return it.
    """
    (settings,) = attached.peft_config.values()
    modules = settings.target_modules
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
        "bias": "none",
        "use_rslora": bool(settings.use_rslora),
    }


def check_settings(folder: Path, lora: LoraConfig) -> None:
    """Raise ModelError if the LoRA settings are not those of the adapter to be trained further."""
    peft_config = read_config(folder)
    kind = peft_config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ModelError(f"{folder} is a {kind} adapter; coterie trains LoRA adapters only")
    if peft_config.get("rank_pattern") or peft_config.get("alpha_pattern"):
        raise ModelError(
            f"{folder} has ranks or scales of its own for some layers, which coterie does not train further; merge it "
            f"first: coterie export {folder} --to merged FOLDER"
        )
    wrong = _differences(peft_config, lora)
    if wrong:
        settings = ", ".join(f"model.lora.{key} = {json.dumps(theirs)}" for key, _, theirs in wrong)
        ours = ", ".join(f"model.lora.{key} = {json.dumps(value)}" for key, value, _ in wrong)
        raise ModelError(
            f"the adapter {folder} was made with {settings}, and the settings say {ours}; set what the adapter has to "
            f"train it further, or merge it and train a new one: coterie export {folder} --to merged FOLDER"
        )


def _differences(peft_config: Mapping[str, Any], lora: LoraConfig) -> list[tuple[str, Any, Any]]:
    """(setting, its value, the adapter's value) where they differ."""
    pairs: list[tuple[str, Any, Any]] = [
        ("rank", lora.rank, peft_config.get("r")),
        ("alpha", lora.alpha, peft_config.get("lora_alpha")),
    ]
    if isinstance(lora.targets, list):
        theirs = peft_config.get("target_modules")
        modules = sorted(theirs) if isinstance(theirs, list) else theirs
        pairs.append(("targets", sorted(lora.targets), modules))
    return [(key, value, theirs) for key, value, theirs in pairs if value != theirs]


def _bare_layers(attached: Any) -> list[str]:
    """Linear layers, but for the head, that the adapter does not change."""
    base = attached.get_base_model()
    head = base.get_output_embeddings()
    adapted = [name for name, module in base.named_modules() if hasattr(module, "lora_A")]
    left_out = "out_proj" if base.config.model_type in _FUSED else None
    return [
        name
        for name, module in base.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and name.rpartition(".")[2] != left_out
        and not any(name == parent or name.startswith(f"{parent}.") for parent in adapted)
    ]


def peft() -> Any:
    """The module `peft`, or a ModelError that says how to install it."""
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"LoRA needs the package peft: {install_command('train')}") from error
    return peft
