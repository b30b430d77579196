"""What to type instead of a command that does not exist but that other programs have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

HINTS: Mapping[str, str] = {
    "init": "`coterie config init FILE.toml` writes a config file to start from",
    "new": "`coterie config init FILE.toml` writes a config file to start from",
    "runs": "`coterie ls` lists runs, `coterie show RUN` shows one",
    "list": "`coterie ls` lists runs",
    "status": "`coterie ls` lists runs, `coterie show RUN` shows one",
    "continue": "`coterie resume RUN` resumes from the latest checkpoint",
    "compare": "`coterie diff RUN RUN` compares two runs",
    "grpo": "`coterie train @ FILE.toml` trains with GRPO",
    "finetune": "`coterie train @ FILE.toml` trains with GRPO",
    "sft": "coterie has no supervised fine-tuning; `coterie train @ FILE.toml` trains with GRPO",
    "generate": "`coterie rollout MODEL_OR_RUN` samples and scores completions, `coterie chat` talks with a model",
    "sample": "`coterie rollout MODEL_OR_RUN` samples and scores completions",
    "test": "`coterie eval MODEL_OR_RUN` evaluates",
    "evaluate": "`coterie eval MODEL_OR_RUN` evaluates",
    "check": "`coterie validate @ FILE.toml` checks data and rewards, `coterie train @ FILE.toml --dry-run` all of it",
    "models": "`coterie assets ls` lists built-in models and data sets; a folder or a Hugging Face id works, too",
    "datasets": "`coterie assets ls` lists built-in models and data sets; a folder or a Hugging Face id works, too",
    "download": "`coterie assets fetch NAME` downloads a built-in model or data set",
    "algorithms": "`coterie algo ls` lists algorithm presets",
    "merge": "a LoRA checkpoint's `model` folder is a PEFT adapter: peft's merge_and_unload() merges it into its base",
    "export": "a checkpoint's `model` folder (runs/NAME/checkpoints/step_N/model) opens in transformers",
    "push": "a checkpoint's `model` folder opens in transformers; coterie uploads nothing",
    "serve": "a checkpoint's `model` folder (runs/NAME/checkpoints/step_N/model) can be served by vLLM",
    "settings": "`coterie train --help-all` explains every setting, `coterie config print` shows their values",
    "config show": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config ls": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config list": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config new": "`coterie config init FILE.toml` writes a config file to start from",
    "config validate": "`coterie validate @ FILE.toml` checks settings, data and rewards",
    "algo list": "`coterie algo ls` lists algorithm presets",
    "algo print": "`coterie algo show NAME` explains one",
    "assets list": "`coterie assets ls` lists built-in models and data sets",
    "assets download": "`coterie assets fetch NAME` downloads one",
}
"""Words after `coterie` → what does it."""


class HintedGroup(TyperGroup):
    """A group of commands that says what to type instead of one it does not have."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = [*ctx.command_path.split()[1:], args[0]]
        hint = HINTS.get(" ".join(words)) if args[0] not in self.commands else None
        if hint is not None:
            ctx.fail(f"No such command {args[0]!r}: {hint}.")
        return super().resolve_command(ctx, args)
