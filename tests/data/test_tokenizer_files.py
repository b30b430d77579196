"""Tokenizer files of a checkpoint: older versions of transformers have to open them too.

transformers 4.57.3 was given every folder of these tests by hand; what it refuses is reported in unsloth#8444 and
ms-swift#8352.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from coterie.data.chat import Chat, load_chat
from coterie.data.tokenizer_files import portable
from tiny import CHATML, SPECIALS, _core, tiny_tokenizer

NAMED = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "unk_token": "<|endoftext|>"}
TEXT = "user how many legs? 42\n the answer"


def own_class(make: Any, kind: Any) -> Any:
    """A tokenizer of a class that transformers has for one family of models."""
    facts = json.loads(_core(kind, SPECIALS).to_str())["model"]
    tokenizer = make(vocab=facts["vocab"], merges=[tuple(pair) for pair in facts["merges"]], **NAMED)
    tokenizer.chat_template = CHATML
    return tokenizer


def with_thoughts() -> Any:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    return tokenizer


def with_two_templates() -> Any:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML + " "}
    return tokenizer


MAKERS: dict[str, Callable[[], Any]] = {
    "byte": tiny_tokenizer,
    "byte fallback with a first token": lambda: tiny_tokenizer(kind="byte_fallback", bos="<|im_start|>", adds_bos=True),
    "words": lambda: tiny_tokenizer(kind="word"),
    "thoughts": with_thoughts,
    "two templates": with_two_templates,
    "qwen2": lambda: own_class(Qwen2Tokenizer, "byte_bpe"),
    "gpt2": lambda: own_class(GPT2Tokenizer, "byte_bpe"),
    "llama": lambda: own_class(LlamaTokenizer, "byte_fallback"),
    "gemma": lambda: own_class(GemmaTokenizer, "byte_fallback"),
}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "loaded"])
def test_what_is_written_holds_nothing_that_only_transformers_5_knows(name: str, loaded: bool, tmp_path: Path) -> None:
    tokenizer = MAKERS[name]()
    tokenizer.save_pretrained(tmp_path / "source")
    chat = load_chat(tmp_path / "source") if loaded else Chat(tokenizer)
    chat.save(tmp_path / "out")
    facts = config_of(tmp_path / "out")
    assert facts["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert facts["model_input_names"] == ["input_ids", "attention_mask"]
    assert not facts.keys() & {"backend", "is_local", "local_files_only", "extra_special_tokens"}
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_files_of_an_older_version_are_kept_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_tokenizer().save_pretrained(source)
    (source / "chat_template.jinja").unlink()
    facts = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": CHATML,
    }
    (source / "tokenizer_config.json").write_text(json.dumps(facts))
    (source / "tokenizer.model").write_bytes(b"for llama.cpp")
    (source / "model.safetensors").write_bytes(b"no part of the tokenizer")
    load_chat(source).save(tmp_path / "out")
    assert config_of(tmp_path / "out") == facts
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_source_that_vanished_meanwhile_is_no_loss(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    chat = load_chat(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").unlink()
    chat.save(tmp_path / "out")
    assert config_of(tmp_path / "out")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert load_chat(tmp_path / "out").tokenizer(TEXT)["input_ids"] == chat.tokenizer(TEXT)["input_ids"]


def test_a_class_of_a_family_is_kept_and_code_is_not_named() -> None:
    assert portable({"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["x", None]}}, "x") == {
        "tokenizer_class": "LlamaTokenizer"
    }


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    facts = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(facts))
    assert load_chat(tmp_path / "adapter").stop_ids == {2}
