"""Settings as help on the command line: the ones that people change most, or every one."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from types import MappingProxyType

from coterie.config.fields import MISSING, Setting, kind_at, leaves, nullable, settings, tag_of
from coterie.config.schema import RunConfig
from coterie.config.show import inline

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
        "rewards.parts.*.name": "task, number, exact, math, format … or module:function",
        "algorithm": "algorithm preset (coterie algo ls)",
        "steps": "training steps",
        "collect.prompts": "prompts per step",
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
"""What people change most, with a short meaning."""
MEASURING: Mapping[str, str] = MappingProxyType(
    {
        "model.name": "built-in model, folder or Hugging Face id",
        "model.device": "auto, cpu, cuda …",
        "data.heldout.*.path": "prompts to evaluate on, with data.heldout.0.type file",
        "data.train.*.path": "prompts to train on, with data.train.0.type file",
        "data.system": "system message before every prompt",
        "rewards.parts.*.name": "task, number, exact, math, format … or module:function",
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
    """How settings are written, and the ones that people change most with this verb, a line each."""
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
    """Every setting, grouped by table: key, what is expected, default, meaning."""
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
