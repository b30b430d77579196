"""The files of a tokenizer, written so that transformers 4 and 5, vLLM and llama.cpp's converter open them.

transformers 5 writes a `tokenizer_config.json` that older versions refuse: classes of its own (`TokenizersBackend`),
`extra_special_tokens` as a list, and keys about the loading process. The source's own files are therefore copied where
they are at hand, and what is left of the new format is translated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG = "tokenizer_config.json"
FILES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
"""Names that tokenizers of causal language models use. A file of the tokenizer's own `vocab_files_names` counts too."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns of which one file has to be there: without a vocabulary, transformers 5 makes an empty tokenizer."""

_FAST = "PreTrainedTokenizerFast"
_GENERIC = {"TokenizersBackend": _FAST, "PythonBackend": "PreTrainedTokenizer"}
"""Classes of transformers 5 and what both versions call them."""

_LOADING = ("is_local", "local_files_only", "backend", "auto_map", "name_or_path", "_commit_hash")
"""Keys that say how a tokenizer was loaded, not what it is; `auto_map` names code that is not copied."""


def files_of(source: str, names: Mapping[str, str], revision: str | None = None) -> dict[str, Path]:
    """The tokenizer files of a model by name: in its folder, or in the local cache of the hub.

    Args:
        source: a folder, or a transformers id that has been loaded before.
        names: the tokenizer's `vocab_files_names`.
        revision: pinned revision of an id.
    """
    folder = Path(source)
    file_names = dict.fromkeys((*FILES, *names.values()))
    if folder.is_dir():
        templates = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja")]
        paths = {name: folder / name for name in (*file_names, *templates)}
        return {name: path for name, path in paths.items() if path.is_file()}
    from huggingface_hub import try_to_load_from_cache

    cached = {name: try_to_load_from_cache(source, name, revision=revision) for name in file_names}
    return {name: Path(path) for name, path in cached.items() if isinstance(path, str)}


def has_vocabulary(folder: Path) -> bool:
    """True if a model folder has a tokenizer."""
    return any(path.is_file() for pattern in _VOCABULARIES for path in folder.glob(pattern))


def save(tokenizer: Any, folder: Path, sources: Mapping[str, Path]) -> None:
    """Write a tokenizer and its chat template into `folder`.

    Args:
        sources: files that it was loaded from, by name. They are copied as they are, but for `tokenizer_config.json`,
            in which what only transformers 5 understands is translated. When some are gone, the tokenizer is written
            anew.
    """
    whole = {name: path for name, path in sources.items() if path.is_file()}
    if CONFIG in whole and len(whole) > 1 and len(whole) == len(sources):
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in whole.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
    else:
        tokenizer.save_pretrained(str(folder))
    config = folder / CONFIG
    facts = json.loads(config.read_text(encoding="utf-8"))
    translated = portable(facts, type(tokenizer).__name__, tokenizer.model_input_names)
    if translated != facts:
        config.write_text(json.dumps(translated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def portable(facts: Mapping[str, Any], loaded_as: str, inputs: Sequence[str] = ()) -> dict[str, Any]:
    """`tokenizer_config.json` without what only transformers 5 understands.

    Args:
        facts: the file's contents.
        loaded_as: name of the class that the tokenizer has in this process, for files that name none.
        inputs: names of what the tokenizer returns. The generic class of transformers 4 would add `token_type_ids`,
            which most causal models refuse.

    >>> portable({"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}, "TokenizersBackend")
    {'tokenizer_class': 'PreTrainedTokenizerFast'}
    >>> portable({"extra_special_tokens": ["<think>"]}, "Qwen2Tokenizer")
    {'additional_special_tokens': ['<think>'], 'tokenizer_class': 'Qwen2Tokenizer'}
    """
    out = {key: value for key, value in facts.items() if key not in _LOADING}
    extra = out.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 4 expects a table here and fails on a list
        del out["extra_special_tokens"]
        out["additional_special_tokens"] = list(dict.fromkeys([*out.get("additional_special_tokens", ()), *extra]))
    named = out.get("tokenizer_class") or loaded_as
    # Written by transformers 5, tokenizer.json is the whole pipeline; some classes of transformers 4 (Llama, Gemma)
    # would put a first token of their own before it.
    out["tokenizer_class"] = _FAST if facts.get("backend") == "tokenizers" else _GENERIC.get(named, named)
    if inputs and out["tokenizer_class"] == _FAST:
        out.setdefault("model_input_names", list(inputs))
    return out
