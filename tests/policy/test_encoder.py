"""A sentence encoder as transformers would have it: pooled, normalised, safely opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel, T5Config, T5ForConditionalGeneration

from coterie.errors import ModelError
from coterie.policy.embedding import load_encoder
from coterie.policy.model import pretrained
from tiny import tiny_tokenizer
from tiny_models import tiny_encoder

TEXTS = ["how many legs", "", "the answer is " * 60]
CPU = torch.device("cpu")


def test_it_is_the_normalised_mean_of_the_last_hidden_states(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    embeddings = load_encoder(str(folder), CPU).embed(TEXTS)
    model: Any = BertModel.from_pretrained(folder)
    model.eval()
    for text, row in zip(TEXTS, embeddings, strict=True):
        ids = torch.tensor([tiny_tokenizer()(text)["input_ids"][:32]])
        if not ids.numel():
            assert not row.any()
            continue
        mean = model(ids.long()).last_hidden_state[0].double().mean(0).detach().numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    assert embeddings.dtype == np.float64


def test_a_text_means_the_same_in_any_company(tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_encoder(tmp_path / "bert")), CPU)
    together = encoder.embed(TEXTS)
    assert together[:1].tobytes() == encoder.embed(TEXTS[:1]).tobytes()
    assert encoder.embed([]).shape == (0, 16)


def test_it_needs_no_pooling_layer_but_every_other_weight(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    file = folder / "model.safetensors"
    weights = load_file(file)
    expected = load_encoder(str(folder), CPU).embed(TEXTS)
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(bare, file, metadata={"format": "pt"})
    assert load_encoder(str(folder), CPU).embed(TEXTS).tobytes() == expected.tobytes()
    del bare["embeddings.LayerNorm.weight"]
    save_file(bare, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*embeddings\.LayerNorm\.weight"):
        load_encoder(str(folder), CPU)


def test_what_is_refused_of_models_is_refused_of_encoders(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="asks to run code from the model folder"):
        load_encoder(str(folder), CPU)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        load_encoder(str(folder), CPU)
    with pytest.raises(ModelError, match="cannot load the model 'no-such-encoder'"):
        load_encoder("no-such-encoder", CPU)


def test_a_model_that_cannot_embed_a_text_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = tiny_tokenizer()
    shape: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="expected an encoder with its tokenizer"):
        load_encoder(str(tmp_path / "t5"), CPU)
    with pytest.raises(ModelError, match="is an encoder-decoder model such as T5 or BART, not a causal language model"):
        pretrained(AutoModelForCausalLM, str(tmp_path / "t5"), torch.float32)
