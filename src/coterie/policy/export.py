"""Export of a model as a new folder: merged weights, the adapter, or a GGUF file, with a model card.

The folder appears whole by one rename, and nothing is ever overwritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from coterie.data.chat import load_chat
from coterie.errors import ConfigError, ModelError, RunError
from coterie.policy import adapters, gguf_file, portable
from coterie.policy.model import make_savable, pretrained, refuse_unsafe
from coterie.runs import model_card, models
from coterie.runs.durable import LEFTOVER, describe, missing_room, publish_plain
from coterie.runs.models import ModelSource

Form = Literal["merged", "adapter", "gguf"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def export(
    target: str,
    destination: Path,
    *,
    form: Form = "merged",
    dtype: str = "auto",
    runs: Path = Path("runs"),
    note: Callable[[str], None] | None = None,
) -> Path:
    """Write a model folder that transformers (or PEFT, for an adapter; llama.cpp, for GGUF) opens as it is.

    Args:
        target: a run (its newest checkpoint), `RUN@STEP`, a checkpoint, a model or adapter folder, an asset or hub id.
        destination: the new folder; it must not exist.
        form: `merged` has all weights, an adapter's update added to its base; `adapter` the adapter alone;
            `gguf` all weights as one file for llama.cpp, which is opened again and compared.
        dtype: number format of merged weights; `auto` is that of the base, of a GGUF file float16, and such a file may
            be `q8_0`. The sum is taken in float32 at least and rounded once.
        note: told what is downloaded.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: nothing is called `target`, or an unknown form or dtype.
        ModelError: the target has no adapter, cannot be loaded, or is of a kind that no GGUF file is written for.
        RunError: the destination exists, or the disk refused.
    """
    _check_format(form, dtype)
    final = destination.expanduser().absolute()
    _require_free(final)
    source = models.resolve(target, runs)
    folder = models.locate(source, note=note)
    if form == "adapter" and not adapters.is_adapter(Path(folder)):
        raise ModelError(f"{target} has no adapter: it is a model with all its weights; use --to merged")
    draft = final.with_name(f"{LEFTOVER}{final.name}-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a killed process with this very number
        draft.mkdir()
        _fill(draft, folder, form, dtype, final.name)
        _add_card(draft, source, folder, form)
        publish_plain(draft, final)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own exception
        reason = describe(error, final.parent) if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot write {final}: {reason}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _check_format(form: str, dtype: str) -> None:
    dtypes = gguf_file.FORMATS if form == "gguf" else DTYPES
    if form not in ("merged", "adapter", "gguf") or (dtype != "auto" and dtype not in dtypes):
        raise ConfigError(
            f"--to {form} --dtype {dtype}: expected --to merged, adapter or gguf, and --dtype auto, {', '.join(dtypes)}"
        )
    if form == "adapter" and dtype != "auto":
        raise ConfigError("--dtype is for merged weights; an adapter keeps the format that it was trained in")


def _fill(draft: Path, folder: str, form: Form, dtype: str, name: str) -> None:
    """Write the model's files and, beside a model folder, its tokenizer."""
    if form == "gguf":
        _write_gguf(folder, draft, dtype, name)
        return
    if form == "adapter":
        _copy_adapter(Path(folder), draft)
    else:
        _write_weights(folder, draft, dtype)
    load_chat(folder).save(draft)


def _require_free(final: Path) -> None:
    if final.exists() or final.is_symlink():
        raise RunError(f"{final} exists, and an export never overwrites anything; name a new folder")


def _copy_adapter(folder: Path, draft: Path) -> None:
    """The adapter's own files, with its base under a name that holds in any folder."""
    adapters.read_config(folder)
    for path in sorted(folder.glob("*.safetensors")):
        shutil.copyfile(path, draft / path.name)
    for name in (adapters.CONFIG, "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, draft / name)
    adapters.name_base(draft, adapters.base_of(folder), adapters.read_config(folder).get("revision"))


def _write_weights(folder: str, draft: Path, dtype: str) -> None:
    """All weights of a model, with its adapter's update where it has one."""
    if adapters.is_adapter(Path(folder)):
        _merge(Path(folder), draft, dtype)
    else:
        _write_model(folder, draft, dtype)


def _merge(folder: Path, draft: Path, dtype: str) -> None:
    """Add the adapter's update to its base: W + alpha / rank · B A."""
    base = adapters.base_of(folder)
    if Path(base).is_dir():
        refuse_unsafe(Path(base))
    revision = adapters.read_config(folder).get("revision")
    config = portable.source_config(base, revision)
    target_dtype = DTYPES.get(dtype) or _dtype_of(config)
    wide = torch.float64 if target_dtype == torch.float64 else torch.float32
    model = pretrained(AutoModelForCausalLM, base, wide, revision=revision)
    config = config or portable.source_config(base, revision)  # of an id of the hub, once it is in the cache
    if dtype == "auto":
        target_dtype = _dtype_of(config)
    try:
        merged = adapters.attach(model, folder).merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"the adapter {folder} cannot be merged into {base}: {error}") from error
    _save(merged.to(target_dtype), draft, config)


def _write_model(folder: str, draft: Path, dtype: str) -> None:
    """A model without an adapter: its weights as they are, unless another number format is asked for."""
    if Path(folder).is_dir():
        refuse_unsafe(Path(folder))
    config = portable.source_config(folder)
    model = pretrained(AutoModelForCausalLM, folder, DTYPES.get(dtype, "auto"))
    _save(model, draft, config or portable.source_config(folder))


def _write_gguf(folder: str, draft: Path, dtype: str, name: str) -> None:
    """One GGUF file, by way of a model folder in the base's number format."""
    merged = draft / "merged"
    merged.mkdir()
    _write_weights(folder, merged, "float32" if adapters.is_adapter(Path(folder)) else "auto")
    load_chat(folder).save(merged)
    dtype = "float16" if dtype == "auto" else dtype
    gguf_file.write(merged, draft / f"{name}-{dtype}.gguf", dtype, name=name)
    shutil.rmtree(merged)


def _save(model: Any, draft: Path, config: dict[str, Any]) -> None:
    make_savable(model)
    need = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    shortage = missing_room(draft, need)
    if shortage is not None:
        raise RunError(f"there is no room for the model: {shortage}; free some space or export to another disk")
    model.save_pretrained(draft, safe_serialization=True)
    portable.rewrite(draft, config)


def _dtype_of(config: dict[str, Any]) -> torch.dtype:
    """The number format that a base model is stored in, by its config.json."""
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), torch.float32)


def _add_card(draft: Path, source: ModelSource, folder: str, form: Form) -> None:
    base = adapters.base_of(Path(folder)) if adapters.is_adapter(Path(folder)) else ""
    text, licence = model_card.write(source, base=base, form=form)
    (draft / "README.md").write_text(text, encoding="utf-8")
    if licence is not None:
        shutil.copyfile(licence, draft / "LICENSE")
