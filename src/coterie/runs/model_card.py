"""The model card of an exported model: base, training, results, licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie import __version__
from coterie.config.layers import flatten
from coterie.data import assets, cache
from coterie.errors import CoterieError
from coterie.runs import models
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB
from coterie.runs.models import ModelSource
from coterie.text import metric_text, safe_text
from coterie.types import PASS, REWARD

_SETTINGS = (
    "algorithm",
    "seed",
    "model.lora.rank",
    "model.lora.alpha",
    "optim.lr",
    "optim.schedule",
    "collect.prompts_per_step",
    "collect.group_size",
    "sampling.temperature",
    "sampling.max_tokens",
    "objective.loss",
    "objective.kl_beta",
)
_LONGEST_CHAIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model at the beginning of a chain of runs."""

    name: str
    """Asset, hub id, or the last part of a local folder's path."""
    hub: bool
    licence: str
    """SPDX expression; empty when unknown."""
    licence_file: Path | None


def write(source: ModelSource, *, base: str, form: str) -> tuple[str, Path | None]:
    """The card, and the licence text to put beside it.

    Args:
        source: the exported model.
        base: of an adapter, the folder or id of the model below it; else empty.
        form: merged, adapter or gguf.
    """
    config = _config(source.run)
    origin = _base(base or str(config.get("model", {}).get("name", "")) or source.name)
    name = source.label + (f", step {source.step}" if source.step is not None else "")
    sections = [_front_matter(origin, form, lora=bool(base)), f"# {_plain(name)}", _opening(origin, source, base, form)]
    if source.run is not None:
        sections += ["## Result\n\n" + _result(source.run, source.step), "## Training\n\n" + _training(config)]
    sections += ["## Use\n\n" + _use(form), "## Licence\n\n" + _licence(origin)]
    return "\n\n".join(sections) + "\n", origin.licence_file


def _config(run: Path | None) -> dict[str, Any]:
    return {} if run is None else RunDirectory.at(run).read_config()


def _base(name: str) -> Base:
    """Follow a chain of runs back to the model that the first one started from."""
    for _ in range(_LONGEST_CHAIN):
        try:
            source = models.resolve(name, check_files=False)
        except CoterieError:  # moved or deleted since
            return Base(name=Path(name).name, hub=False, licence="", licence_file=None)
        if source.run is None:
            return _described(source)
        name = str(_config(source.run).get("model", {}).get("name", ""))
    return Base(name=Path(name).name, hub=False, licence="", licence_file=None)


def _described(source: ModelSource) -> Base:
    folder = assets.locate(source.asset) if source.asset else source.folder
    licence, file = "", None
    name = source.label
    if folder is not None:
        record = folder / cache.RECORD
        if record.is_file():  # an asset, named by its folder
            record_fields = json.loads(record.read_text(encoding="utf-8"))
            name, licence = str(record_fields.get("name", name)), str(record_fields.get("licence", ""))
        file = next((path for path in (folder / "LICENSE", folder / "LICENSE.txt") if path.is_file()), None)
        card = folder / "README.md"
        if not licence and card.is_file():
            match = re.search(r"^license:\s*['\"]?([\w.+-]+)", card.read_text(encoding="utf-8", errors="replace"), re.M)
            licence = match[1] if match else ""
    return Base(name=source.hub or name, hub=bool(source.hub), licence=licence, licence_file=file)


def _front_matter(base: Base, form: str, *, lora: bool) -> str:
    """YAML for the hub; every value is JSON, which YAML contains."""
    metadata: dict[str, Any] = {"library_name": {"adapter": "peft", "gguf": "gguf"}.get(form, "transformers")}
    if base.hub:
        metadata["base_model"] = base.name
    if base.licence:
        metadata["license"] = base.licence.lower()
    metadata["pipeline_tag"] = "text-generation"
    metadata["tags"] = ["coterie", "grpo", "reinforcement-learning", *(["lora"] if lora else [])]
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items()) + "\n---"


def _opening(origin: Base, source: ModelSource, base: str, form: str) -> str:
    kind = "A LoRA adapter for" if form == "adapter" else "A LoRA adapter merged into" if base else "A version of"
    how = ""
    if source.run is not None:
        tuned = models.fine_tuned(source.run) is not None
        method = "fine-tuned on conversations" if tuned else "trained with GRPO (Group Relative Policy Optimization)"
        how = f", {method}"
    where = f" by coterie {__version__}, run `{_plain(source.label)}`" if source.run is not None else ""
    return f"{kind} `{_plain(origin.name)}`{how}{where}."


def _result(run: Path, step: int | None) -> str:
    """The first held-out evaluation and the last one up to the exported step."""
    metrics = RunDirectory.at(run).metrics
    if not metrics.is_file():
        return "No held-out evaluation was recorded."
    with MetricsDB.reader(metrics) as database:
        results = [result for result in database.evals() if step is None or result.step <= step]
    if not results:
        return "No held-out evaluation was recorded."
    ends = dict.fromkeys((results[0].step, results[-1].step))
    shown = [result for result in results if result.step in ends]
    rows = [
        "| held-out task | step | prompts × attempts | mean reward | pass@1 | pass@k |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {_plain(result.task)} | {result.step} | {result.prompts} × {result.samples} "
        f"| {metric_text(REWARD, result.reward)} "
        f"| {metric_text(PASS, result.pass_at_1)} | k = {result.k}: {metric_text(PASS, result.pass_at_k)} |"
        for result in shown
    ]
    return "\n".join(rows) + "\n\nBrackets are 95 % bootstrap intervals over prompts."


def _training(config: Mapping[str, Any]) -> str:
    values = {".".join(key): value for key, value in flatten(dict(config))}
    rows = [f"| {key} | {_plain(str(values[key]))} |" for key in _SETTINGS if values.get(key) not in (None, "")]
    names = [str(part.get("name", "")) for part in config.get("rewards", {}).get("functions", ())]
    rows.append(f"| rewards | {_plain(', '.join(names))} |")
    data = [_source_name(source) for source in config.get("data", {}).get("train", ())]
    rows.append(f"| training data | {_plain(', '.join(data))} |")
    return "| setting | value |\n| --- | --- |\n" + "\n".join(rows)


def _source_name(source: Mapping[str, Any]) -> str:
    """Name of a dataset without a path of the machine."""
    return str(source.get("task") or source.get("name") or Path(str(source.get("path", "?"))).name)


def _use(form: str) -> str:
    if form == "gguf":
        return "```sh\nllama-cli -m FOLDER/FILE.gguf\n```"
    auto = "AutoModelForCausalLM" if form == "merged" else "AutoPeftModelForCausalLM"
    library = "transformers" if form == "merged" else "peft"
    note = "" if form == "merged" else "\n\n`adapter_config.json` names the base model; it has to be there."
    return f'```python\nfrom {library} import {auto}\n\nmodel = {auto}.from_pretrained("FOLDER")\n```{note}'


def _licence(base: Base) -> str:
    if not base.licence:
        return "That of the base model, which coterie does not know."
    beside = ", whose text is in LICENSE" if base.licence_file is not None else ""
    return f"{_plain(base.licence)}, that of the base model{beside}."


def _plain(text: str) -> str:
    """Text that cannot leave its line, table cell or code span."""
    return " ".join(safe_text(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
