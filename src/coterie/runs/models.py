"""Resolution of a model's name: a run, a checkpoint, a model folder, an asset, or a model of the Hugging Face hub.

Reads names and folders only, so that a wrong name is told before anything is loaded.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from coterie.data import assets, hub_models
from coterie.errors import CheckpointError, ConfigError, ModelError, RunError
from coterie.runs import checkpoint
from coterie.runs.durable import verify_directory
from coterie.runs.metrics import MetricsDB
from coterie.types import metric_of, overall

MOST = 8
"""Names in a message."""


def names_in(runs: Path) -> list[str]:
    """The runs of a folder, the newest first."""
    configs = [path for path in runs.expanduser().glob("*/config.toml") if path.is_file()]
    configs.sort(key=lambda path: (-path.stat().st_mtime, path.parent.name))
    return [path.parent.name for path in configs]


def nearest(name: str, names: Sequence[str]) -> str:
    """` (did you mean 'gsm8k-001'?)`; empty where nothing is near."""
    near = get_close_matches(Path(name).name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def there(runs: Path, verb: str = "has") -> str:
    """`runs has c, b, a`, the newest first, `… and 12 more` where there are many; or `runs has no runs`."""
    names = names_in(runs)
    more = f", … and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{runs} {verb} {', '.join(names[:MOST])}{more}" if names else f"{runs} {verb} no runs"


Kind = Literal["model", "encoder"]
BEST = "best"
"""`RUN@best` is the checkpoint of the best held-out result."""
HELDOUT_LOSS = "heldout/loss"
"""Metric: mean negative log-likelihood of the assistant's tokens in held-out conversations, nats."""

_CONFIGS = ("config.json", "adapter_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Location of a model: exactly one of `folder`, `asset` and `hub` is set."""

    folder: Path | None = None
    """Local model or adapter folder, absolute."""
    asset: str = ""
    hub: str = ""
    """Id on the Hugging Face hub."""
    run: Path | None = None
    """Folder of the run that `folder` is a checkpoint of."""
    step: int | None = None
    """Training step of that checkpoint."""

    @property
    def name(self) -> str:
        """Its name in settings, valid from any folder."""
        return self.asset or self.hub or str(self.folder)

    @property
    def label(self) -> str:
        """A short name for people."""
        return self.asset or (self.run or Path(self.name)).name


def resolve(name: str, runs: Path = Path("runs"), kind: Kind = "model", *, check_files: bool = True) -> ModelSource:
    """The model that a name means; a local folder comes before an asset, an asset before a run.

    Args:
        name: a model folder, checkpoint folder or run folder; an asset; a run of `runs`; or an id `owner/name` of the
            hub, which is not asked. `@STEP` after a run takes the checkpoint of that step, `@best` the one of the best
            held-out result (of a fine-tuning by `sft.best`), else it is the newest one.
        runs: folder that holds the runs.
        kind: required kind of an asset.
        check_files: read a run's checkpoint against its manifest; False only asks whether the name means something.

    Raises:
        ConfigError: nothing is called so; the message names what is near.
        ModelError: the folder holds no model, or the asset is something else.
        RunError: the run has no checkpoint, or none of that step.
        CheckpointError: no checkpoint of the run verifies.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path, check_files)
    if name in assets.ASSETS:
        if assets.ASSETS[name].kind != kind:
            raise ModelError(f"the asset {name!r} is not a {kind}: it holds {assets.ASSETS[name].description}")
        return ModelSource(asset=name)
    if (runs.expanduser() / path).is_dir():
        return _of_folder(runs.expanduser() / path, check_files)
    run, _, step = name.rpartition("@")
    if run and (step.isdecimal() or step == BEST):
        for folder in (Path(run).expanduser(), runs.expanduser() / run):
            if (folder / "config.toml").is_file():
                return _of_step(folder, int(step) if step.isdecimal() else _best_saved(folder), check_files)
    pathlike = name.startswith((".", "/", "~", f"{runs}/")) or name.count("/") > 1 or path.is_absolute()
    if not pathlike and (_HUB_ID.fullmatch(name) or _in_cache(name)):
        if folder := _misspelled(path):
            raise ConfigError(
                f"there is no folder {name!r}; did you mean {folder!r}? If you mean the model of this id on the "
                f"Hugging Face hub, fetch it with `hf download {name} --local-dir FOLDER` and name that folder"
            )
        return ModelSource(hub=name)
    raise ConfigError(_nothing(name, runs.expanduser(), kind, pathlike=pathlike))


def locate(
    source: ModelSource,
    revision: str | None = None,
    *,
    note: Callable[[str], None] | None = None,
    arrived: assets.Arrived | None = None,
) -> str:
    """The model's folder, or its id on the hub. An asset is fetched when it is not here; the hub is asked once.

    Args:
        revision: pinned revision of a hub id.
        note: told what is downloaded.
        arrived: told what is done to an asset, and how many bytes of how many are.

    Raises:
        AssetError: the asset cannot be had.
        ModelError: the hub has no such model, or cannot be reached.
    """
    if source.asset:
        return str(assets.ensure(source.asset, progress=note, arrived=arrived))
    if source.hub:
        return hub_models.locate(source.hub, revision)
    return str(source.folder)


def _of_folder(path: Path, check_files: bool) -> ModelSource:
    """A checkpoint, a model, or a run, in this order."""
    path = path.absolute()
    if any((path / "model" / name).is_file() for name in _CONFIGS):
        return _checkpoint(path)
    if any((path / name).is_file() for name in _CONFIGS):
        if path.name == "model" and path.parent.parent.name == "checkpoints":
            return _checkpoint(path.parent)
        return ModelSource(folder=path)
    if (path / "config.toml").is_file():
        steps = checkpoint.steps(path / "checkpoints")
        if not steps:
            raise RunError(f"{path} has no checkpoint yet; resume it until it has, or name its model instead")
        newest = checkpoint.newest(path / "checkpoints") if check_files else None
        step = steps[-1] if newest is None else newest.step
        return _checkpoint(path / "checkpoints" / f"step_{step:06d}")
    raise ModelError(
        f"{path} has no config.json: expected a model folder (with config.json or adapter_config.json), a checkpoint "
        "or a run"
    )


def _checkpoint(path: Path) -> ModelSource:
    number = path.name.removeprefix("step_")
    if path.parent.name == "checkpoints" and number.isdecimal():
        return ModelSource(folder=path / "model", run=path.parent.parent, step=int(number))
    return ModelSource(folder=path / "model")


def _of_step(run: Path, step: int, check_files: bool) -> ModelSource:
    steps = checkpoint.steps(run / "checkpoints")
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise RunError(
            f"{run} has no checkpoint of step {step}; there are: {there} (checkpoint.keep says how many stay)"
        )
    folder = (run / "checkpoints" / f"step_{step:06d}").absolute()
    try:
        if check_files:
            verify_directory(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; take another step of {', '.join(map(str, steps))}") from error
    return _checkpoint(folder)


def fine_tuned(run: Path) -> Mapping[str, Any] | None:
    """The table `sft` of a run's settings; None of a run that sampled."""
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8")).get("sft")
    except (OSError, ValueError) as error:
        raise RunError(f"{run / 'config.toml'} cannot be read: {error}") from error


def best_step(database: MetricsDB, by: str) -> int | None:
    """The step after which the held-out result was best, the first of equal ones; None where none was measured.

    Args:
        by: `loss` or `accuracy`, which is the mean reward where that is graded.
    """
    if by == "loss":
        losses = [(value, step) for step, value in database.series(HELDOUT_LOSS) if step]
        return min(losses, default=(0.0, None))[1]
    results = [result for result in overall(database.evals()) if result.step]
    metric = metric_of(results)
    values = [(-estimate.value, result.step) for result in results if (estimate := result.metric(metric))]
    return min(values, default=(0.0, None))[1]


def _best_saved(run: Path) -> int:
    """The step of the best checkpoint of a run."""
    table = fine_tuned(run)
    by = "accuracy" if table is None else str(table.get("best", "loss"))
    saved = checkpoint.steps(run / "checkpoints")
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        step = max(saved, default=None) if by == "last" else best_step(database, by)
    if step is None:
        what = "checkpoint" if by == "last" else f"held-out {by} of a later step than 0"
        raise RunError(f"{run} has no {what}, so none is the best; take {run}, which is its newest checkpoint")
    return step


def _misspelled(path: Path) -> str:
    """The existing model, checkpoint or run folder whose path is nearest to one that does not exist; else empty."""
    place = Path()
    for part in path.expanduser().parts:
        if (place / part).is_dir():
            place /= part
            continue
        near = get_close_matches(part, [name for name in _folders(place) if _slipped(part, name)], n=1, cutoff=0.7)
        if not near:
            return ""
        place /= near[0]
    return place.as_posix() if any((place / name).is_file() for name in (*_CONFIGS, "config.toml")) else ""


def _slipped(typed: str, name: str) -> bool:
    """True if `typed` may be a misspelling of `name`: another size, version, variant or case is another model."""
    typed_lower, name_lower = typed.lower(), name.lower()
    same_size = re.findall(r"\d+", typed_lower) == re.findall(r"\d+", name_lower)
    return same_size and not typed_lower.startswith(name_lower) and not name_lower.startswith(typed_lower)


def _folders(place: Path) -> list[str]:
    try:
        return [child.name for child in place.iterdir() if child.is_dir()]
    except OSError:
        return []


def _in_cache(name: str) -> bool:
    """True if an id without an owner, such as `gpt2`, is in the hub's cache."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _nothing(name: str, runs: Path, kind: Kind, *, pathlike: bool) -> str:
    """Message for a name that no model has."""
    run_names = names_in(runs)
    models = [asset.name for asset in assets.ASSETS.values() if asset.kind == kind]
    misspelled = _misspelled(Path(name)) if "/" in name else ""
    hint = f" (did you mean {misspelled!r}?)" if misspelled else nearest(name, models) or nearest(name, run_names)
    if pathlike:
        return (
            f"the folder {Path(name).expanduser().absolute()} does not exist{hint}; expected a model folder, a "
            "checkpoint or a run. `coterie ls` lists the runs, `coterie assets ls` the models"
        )
    return (
        f"there is no {kind} {name!r}{hint}; expected an asset ({', '.join(models)}), a run ({there(runs)}), a local "
        "folder, or an id owner/name of the Hugging Face hub"
    )
