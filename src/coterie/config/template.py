"""Template of a config file: short, or with every setting."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import get_args

from coterie.config.keys import MISSING, Setting, kind_at, nullable, union_members
from coterie.config.show import groups
from coterie.config.toml import inline

SHORT = """\
# Settings of one training run. Check them, then train:
#   coterie validate @ FILE.toml             data and rewards
#   coterie train @ FILE.toml --dry-run      model, memory and time
#   coterie train @ FILE.toml
# Every setting: coterie config init --all, or coterie train --help-all.

steps = 50
#algorithm = "grpo"        # preset: dapo, dr_grpo, gspo, … (coterie algo ls)

[model]
name = "smollm2-135m"      # built-in (coterie assets ls), a local folder, or a Hugging Face id
#[model.lora]              # train an adapter instead of all weights; then optim.lr = 1e-4
#rank = 16

# What to learn. Replace this example by your own data:
#   type = "file", path = "train.jsonl"      rows with `prompt` and `answer` (.jsonl, .csv, .parquet)
#   type = "hub", name = "openai/gsm8k", config = "main", split = "train"
[[data.train]]
type = "reasoning_gym"
name = "leg_counting"
size = 1000
seed = 0

# What to evaluate on, before, during and after training; never trained on.
[[data.heldout]]
type = "reasoning_gym"
name = "leg_counting"
size = 100
seed = 1

[[rewards.functions]]
name = "task"              # the data's own scorer; or number, exact, math, or yours: "module:function"

[collect]
prompts_per_step = 8
group_size = 8             # completions per prompt

[sampling]
max_tokens = 64            # of a completion
temperature = 1.0

[optim]
lr = 2e-5                  # all weights of a small model; larger models want less, adapters more

[eval]
every = 10                 # steps

[checkpoint]
every = 10                 # steps
"""


def init_text(*, every: bool = False) -> str:
    """TOML that trains as it is.

    Args:
        every: hold every setting with its meaning, at its default and commented out, before the example.
    """
    return "\n".join(_lines()) + "\n" if every else SHORT


def _lines() -> Iterator[str]:
    yield "# Settings of one coterie run. `#key = value` shows a default: remove the # to change it."
    for (table, tag), group in groups():
        yield ""
        if table.endswith(".N"):
            yield f"# {group[0].section.__doc__}" + (" (data.heldout takes the same.)" if tag else "")
            yield f"#[[{table.removesuffix('.N')}]]"
        elif table:
            # The header stands, so that uncommenting a key is enough; an optional table would be switched on.
            optional = nullable(kind_at(table.split(".")))
            yield f"# {group[0].section.__doc__}"
            yield f"{'#' if optional else ''}[{table}]"
        for setting in group:
            yield from textwrap.wrap(setting.description, 100, initial_indent="# ", subsequent_indent="# ")
            yield f"#{setting.key.rpartition('.')[2]} = {_sample(setting)}"
    yield ""
    yield "# What to learn: replace this example by your own."
    example = SHORT[SHORT.index("[[data.train]]") : SHORT.index("[[rewards.functions]]")]
    yield example.rstrip()


def _sample(setting: Setting) -> str:
    """The default, or an example where there is none."""
    if setting.default is not MISSING:
        return '"none"' if setting.default is None else inline(setting.default)
    choices = [choice for member in union_members(setting.kind) for choice in get_args(member)]
    return inline(choices[0] if choices else "…")
