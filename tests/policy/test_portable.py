"""A checkpoint's config.json is the same model for transformers 4 and 5.

That transformers 4.57.3 computes the same logits (difference 0.0) from every kind here was tried by hand; from what
transformers 5 writes alone it silently computed others for each rope that is not the default one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from coterie.config.schema import ModelConfig
from coterie.policy.model import load
from coterie.policy.portable import portable
from tiny_models import KINDS, tiny_model

DEFAULT = {"rope_type": "default"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0}
NESTED = {
    "full_attention": LINEAR | {"rope_theta": 1e6},
    "sliding_attention": DEFAULT | {"rope_theta": 5e3},
}


def saved(source: Path, target: Path) -> dict[str, Any]:
    config = ModelConfig(name=str(source))
    load(config, source, dtype=torch.float32, device=torch.device("cpu")).save(target)
    return json.loads((target / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "rope", "old"),
    [
        ("llama", DEFAULT | {"rope_theta": 500.0}, {"rope_theta": 500.0}),
        ("llama", LLAMA3 | {"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_scaling": LLAMA3}),
        ("qwen3", YARN | {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
        ("qwen2", LINEAR | {"rope_theta": 2e6}, {"rope_theta": 2e6, "rope_scaling": LINEAR}),
        ("gemma3", NESTED, {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR}),
    ],
    ids=["theta", "llama3", "yarn", "linear", "a table for each kind of layer"],
)
def test_the_rope_stands_under_both_names(kind: str, rope: dict[str, Any], old: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(kind, dtype=torch.float32, rope_parameters=rope)
    model.save_pretrained(tmp_path / "source")
    facts = saved(tmp_path / "source", tmp_path / "copy")
    assert {key: facts.get(key) for key in old} == old
    assert ("rope_scaling" in facts) == ("rope_scaling" in old)
    assert facts["dtype"] == facts["torch_dtype"] == "float32"
    again = AutoConfig.from_pretrained(tmp_path / "copy")
    assert again.rope_parameters == AutoConfig.from_pretrained(tmp_path / "source").rope_parameters


@pytest.mark.parametrize("kind", KINDS)
def test_read_again_it_is_the_same_configuration(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, dtype=torch.float32).save_pretrained(tmp_path / "source")
    facts = saved(tmp_path / "source", tmp_path / "copy")
    assert not facts.keys() & {"_attn_implementation", "auto_map", "_name_or_path"}
    before, after = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("source", "copy"))
    added = {"rope_theta", "rope_local_base_freq", "torch_dtype", "_name_or_path"}
    before.pop("_name_or_path")
    assert {key: value for key, value in after.items() if key not in added} == before


def test_a_file_of_an_older_version_is_kept(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.float32).save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    facts = json.loads(file.read_text())
    del facts["rope_parameters"], facts["dtype"]
    facts |= {"rope_theta": 300.0, "rope_scaling": None, "torch_dtype": "float32", "transformers_version": "4.40.0"}
    file.write_text(json.dumps(facts))
    assert saved(tmp_path / "source", tmp_path / "copy") == facts | {"dtype": "float32"}


def test_longrope_as_the_class_of_transformers_4_takes_it() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]}
    rope |= {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}
    facts = portable({"model_type": "phi3", "rope_parameters": rope, "partial_rotary_factor": 1.0}, {})
    assert facts["rope_scaling"] == {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    assert facts["original_max_position_embeddings"] == 16
    assert facts["partial_rotary_factor"] == 0.5  # what transformers 5 reads stands in rope_parameters


def test_the_file_of_another_kind_of_model_is_not_taken() -> None:
    """E.g. a text model out of one that also sees, or weights that were stored in fewer bits."""
    written = {"model_type": "qwen3", "dtype": "bfloat16"}
    assert portable(written, {"model_type": "qwen3_vl", "text_config": {}})["model_type"] == "qwen3"
    assert "quantization_config" not in portable(written, {"model_type": "qwen3", "quantization_config": {"bits": 4}})
