"""Model configurations that transformers 4 and 5, and what builds on either, read alike.

transformers 5 keeps all of the rotary embedding in `rope_parameters`. transformers 4 does not know that key: it would
silently take its default base frequency, and compute other numbers. Training changes no architecture, so the source's
own file is kept where there is one, and the keys of the other version are added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_OF_PROCESS = ("_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "auto_map")
"""Keys that say how a model was loaded; with coterie's attention it would open nowhere else."""


def source_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """`config.json` of a model folder or of an id in the hub's cache; empty when there is none.

    Args:
        revision: pinned revision of an id.
    """
    path: Any = Path(source) / CONFIG
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(source, CONFIG, revision=revision)
        except HFValidationError:
            return {}
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def rewrite(folder: Path, source: Mapping[str, Any]) -> None:
    """Make the `config.json` that transformers 5 wrote into `folder` readable by transformers 4 too.

    Args:
        source: contents of the file that the model was loaded from; empty when unknown.
    """
    file = folder / CONFIG
    written = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(portable(written, source), indent=2) + "\n", encoding="utf-8")


def portable(written: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the keys of both versions.

    Args:
        written: as transformers 5 writes it.
        source: as the model's author wrote it. It is kept when it describes the same kind of model.
    """
    same = source.get("model_type") == written.get("model_type") and "quantization_config" not in source
    out = dict(source if same else written)
    out |= {key: written[key] for key in ("architectures", "dtype") if key in written}
    if "dtype" in out:
        out["torch_dtype"] = out["dtype"]  # its name until transformers 4.56
    for key in _OF_PROCESS:
        out.pop(key, None)
    return _with_old_rope(out)


def _with_old_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add `rope_theta`, `rope_scaling` and the like where only `rope_parameters` says them."""
    out = {
        key: _with_old_rope(value) if key.endswith("_config") and isinstance(value, Mapping) else value
        for key, value in config.items()
    }
    rope = out.get("rope_parameters")
    old = _old_rope(rope) if isinstance(rope, Mapping) else {}
    first = ("rope_theta", "partial_rotary_factor")  # transformers 5 prefers what `rope_parameters` says of these
    return out | {key: value for key, value in old.items() if key in first or out.get(key) is None}


def _old_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4 for one `rope_parameters`, which may have a table for each kind of layer."""
    full, sliding = rope, None
    if "full_attention" in rope or "sliding_attention" in rope:
        sliding = rope.get("sliding_attention")
        full = rope.get("full_attention") or sliding
    if not isinstance(full, Mapping):
        return {}
    old: dict[str, Any] = {key: full[key] for key in ("rope_theta", "partial_rotary_factor") if key in full}
    if isinstance(sliding, Mapping) and sliding.get("rope_theta", old.get("rope_theta")) != old.get("rope_theta"):
        old["rope_local_base_freq"] = sliding["rope_theta"]
    kind = full.get("rope_type", "default")
    if kind != "default":
        old["rope_scaling"] = {key: value for key, value in full.items() if key not in old}
        if kind == "longrope":  # Phi-3's class takes exactly three keys, and the length from beside them
            scaling = {"type": "longrope", "short_factor": full["short_factor"], "long_factor": full["long_factor"]}
            old["rope_scaling"] = scaling
            if "original_max_position_embeddings" in full:
                old["original_max_position_embeddings"] = full["original_max_position_embeddings"]
    return old
