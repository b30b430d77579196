"""Output of settings: as TOML with sources, as JSON, as JSON schema and as help."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, TextIO

from coterie.config.keys import MISSING, Setting, bare, is_section, kind_at, leaves, nullable, settings, tag_of
from coterie.config.layers import Loaded
from coterie.config.paths import PATHS
from coterie.config.schema import RunConfig
from coterie.config.toml import inline, quoted


def print_config(loaded: Loaded, file: TextIO | None = None) -> None:
    """Write every setting as `key = value  # source`: TOML that loads to the same configuration."""
    print("\n".join(_config_lines(loaded)), file=file or sys.stdout)


def config_json(loaded: Loaded) -> dict[str, Any]:
    """Settings and sources as JSON-able data: `{"config": {...}, "provenance": {"optim.lr": "--optim.lr", ...}}`."""
    return {"config": loaded.config.model_dump(mode="json"), "provenance": dict(loaded.provenance)}


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors."""
    return RunConfig.model_json_schema()


def _config_lines(loaded: Loaded) -> Iterator[str]:
    yield from _table_lines(loaded.config.model_dump(), (), loaded.provenance)


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...], provenance: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: plain values first, then tables and lists of tables, as TOML requires."""
    below: list[tuple[str, Any]] = []
    for key, value in table.items():
        tables = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        if tables or (is_section(bare(kind_at((*path, key)))) and value is not None):
            below.append((key, value))
        else:
            text, origin = f"{quoted(key)} = {inline(value)}", _origin((*path, key), provenance)
            # A relative default starts at the current directory; written down, it would start at the file.
            unwritten = value is None or (origin == "default" and ".".join((*path, key)) in PATHS)
            yield _aligned(f"# {text}" if unwritten else text, origin)
    for key, value in below:
        header = ".".join(part for part in (*path, key) if not part.isdecimal())
        items = [(str(index), item) for index, item in enumerate(value)] if isinstance(value, list) else [("", value)]
        for index, item in items:
            yield ""
            yield f"[[{header}]]" if index else f"[{header}]"
            yield from _table_lines(item, (*path, key, index) if index else (*path, key), provenance)


def _origin(path: tuple[str, ...], provenance: Mapping[str, str]) -> str:
    """Source of a leaf; of a free table (`params`), all sources of its keys."""
    key = ".".join(path)
    sources = [source for name, source in provenance.items() if name == key or name.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(sources)) or "default"


def _aligned(text: str, source: str) -> str:
    return f"{text:<40}  # {source}"


# Help on settings for the command line: the common ones, or all.

GRAMMAR = """\
Settings come from files, the environment and flags; later wins, files and flags from left to right:
  @ FILE.toml          a file (a folder stands for its config.toml); --config FILE.toml is the same
  COTERIE_OPTIM__LR    an environment variable; a double underscore is the dot
  --optim.lr 1e-5      a flag; --optim.lr=1e-5 and optim.lr=1e-5 are the same
  --objective.mask-truncated, --no-objective.mask-truncated      true or false
  --data.train.0.size 50                one item of a list (from 0)
  --sampling.stop '["\\n\\n"]'            lists and tables as JSON; none unsets a value
"""

TRAINING: Mapping[str, str] = MappingProxyType(
    {
        "model.name": "built-in model, folder or Hugging Face id",
        "model.lora.rank": "train a LoRA adapter of this rank instead of all weights",
        "data.train.*.path": "prompts to train on, with data.train.0.type file",
        "data.heldout.*.path": "prompts to evaluate on, with data.heldout.0.type file",
        "data.train.*.prompt_column": "name of the prompt's column, where it is another",
        "rewards.functions.*.name": "task, number, exact, math, format … or module:function",
        "algorithm": "algorithm preset (coterie algo ls)",
        "steps": "training steps",
        "collect.prompts_per_step": "prompts per step",
        "collect.group_size": "completions per prompt (num_generations)",
        "sampling.max_tokens": "maximum completion length",
        "sampling.temperature": "sampling temperature",
        "optim.lr": "learning rate; try 2e-5, with LoRA 1e-4",
        "objective.kl_beta": "weight of the KL to the reference model",
        "eval.every": "steps between evaluations; 0: before and after training",
        "name": "run name, a folder under --runs",
        "seed": "random seed",
    }
)
"""Common settings of training, with a short description."""
MEASURING: Mapping[str, str] = MappingProxyType(
    {
        "model.name": "built-in model, folder or Hugging Face id",
        "model.device": "auto, cpu, cuda …",
        "data.heldout.*.path": "prompts to evaluate on, with data.heldout.0.type file",
        "data.train.*.path": "prompts to train on, with data.train.0.type file",
        "data.system": "system message before every prompt",
        "rewards.functions.*.name": "task, number, exact, math, format … or module:function",
        "sampling.max_tokens": "maximum completion length",
        "sampling.temperature": "sampling temperature of rollouts",
        "eval.samples": "completions per evaluation prompt",
        "eval.k": "k of pass@k",
        "eval.temperature": "sampling temperature of evaluation",
        "eval.limit": "evaluate only the first prompts of each source",
        "seed": "random seed",
    }
)
"""The same for verbs that do not train."""
SHORT = {"eval": MEASURING, "rollout": MEASURING, "drift": MEASURING, "validate": MEASURING}


def short_help(verb: str) -> str:
    """Short help on settings: their grammar, and the common ones of this command, a line each."""
    lines = [
        "Settings, from files and flags (later wins):",
        "  @ FILE.toml          a file, e.g. @ recipes/demo/config.toml",
        "  --optim.lr 1e-5      a flag; optim.lr=1e-5 is the same; lists and tables as JSON",
        "",
        "Common settings:",
    ]
    for key, meaning in SHORT.get(verb, TRAINING).items():
        setting = settings()[key]
        off = any(nullable(kind_at(key.split(".")[:depth])) for depth in range(1, key.count(".") + 1))
        plain = off or setting.default in (MISSING, None, "")
        default = "" if plain else f"; default {inline(setting.default)}"
        lines.append(f"  {_flag(setting, '0'):<27} {meaning}{default}")
    return "\n".join([*lines, "", "--help-all shows every setting with its type, bounds, default and meaning."])


def help_for_settings(width: int = 100) -> str:
    """Help on every setting, grouped by table: key, type and bounds, default, meaning."""
    lines = [GRAMMAR]
    for (table, tag), group in groups():
        title = f"[{table}]" if table else "top level"
        lines.append(title + (f"  with type = {json.dumps(tag)}; [data.heldout.N] takes the same" if tag else ""))
        for setting in group:
            default = "required" if setting.default is MISSING else f"default {inline(setting.default)}"
            head = f"  {_flag(setting, 'N')}   {setting.expected}; {default}"
            wide = textwrap.wrap(head, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
            lines += [head] if len(head) <= width else wide
            lines += textwrap.wrap(setting.description, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def groups() -> Iterator[tuple[tuple[str, str | None], list[Setting]]]:
    """Settings by (table, tag of the kind of source): top level first, a table before those inside it."""
    order = {name: index for index, name in enumerate(RunConfig.model_fields)}
    shown = [setting for setting in leaves() if not setting.key.startswith("data.heldout.")]
    shown.sort(key=lambda item: (order[item.key.split(".")[0]] if "." in item.key else -1, _table(item)))
    for group, members in groupby(shown, key=lambda setting: (_table(setting), tag_of(setting.section))):
        yield group, list(members)


def _flag(setting: Setting, index: str) -> str:
    return f"--{setting.key.replace('.*.', f'.{index}.').replace('_', '-')}"


def _table(setting: Setting) -> str:
    return setting.key.rpartition(".")[0].replace(".*", ".N")
