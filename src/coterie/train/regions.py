"""The regions of a group-aware run, read from a checkpoint: for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.algo.grouping.summary import Region, regions
from coterie.config.load import load_file
from coterie.errors import RunError
from coterie.runs import checkpoint
from coterie.runs.directory import find
from coterie.runs.metrics import MetricsDB
from coterie.train.credit import NEWS, Terms
from coterie.train.grouping import FILES, GroupAwareJudge
from coterie.train.prompt_features import PromptFeatures


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunGroups:
    """What a run's estimator knew after a step."""

    run: str
    step: int
    preset: str
    model: GroupAwareBaseline
    regions: tuple[Region, ...]
    moved: tuple[tuple[int, str], ...]
    """(step, what was split or merged), oldest first."""

    def plain(self) -> dict[str, Any]:
        """As JSON-able data."""
        weights = self.model.stack.overall()
        return {
            "run": self.run,
            "step": self.step,
            "preset": self.preset,
            "experts": {name: float(w) for name, w in zip(self.model.experts, weights, strict=True)},
            "unit": self.model.scale,
            "regions": [asdict(region) for region in self.regions],
            "moved": [{"step": step, "what": what} for step, what in self.moved],
        }

    def summary(self) -> str:
        """One line."""
        leaves = sum(region.leaf for region in self.regions)
        weights = zip(self.model.experts, self.model.stack.overall(), strict=True)
        experts = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in weights)
        return f"{self.preset}, {leaves} regions of {len(self.model.book.rows)} prompts seen; experts {experts}"


def read(run: Path, root: Path, step: int | None = None) -> RunGroups:
    """The groups of a run at a checkpoint, the newest by default.

    Raises:
        RunError: no such run or checkpoint, or one without groups.
        CheckpointError: the checkpoint does not verify.
    """
    path = find(run, root)
    config = load_file(path / "config.toml").config
    if config.grouping.preset == "prompt":
        raise RunError(
            f'{path} compares attempts at the same prompt only (grouping.preset = "prompt"): it has no regions; train '
            'with grouping.preset = "heb-stack"'
        )
    folder, at = _checkpoint(path, step)
    features = PromptFeatures((), None, dimensions=config.grouping.dimensions, seed=config.seed)
    judge = GroupAwareJudge(
        config.grouping,
        terms=Terms(clip_low=0.0, clip_high=0.0),
        features=features,
        part_weights={part.key: part.weight for part in config.rewards.parts},
        seed=config.seed,
    )
    judge.load(folder, adopt=False)
    model = judge.model.first
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        moved = [(event.step or 0, event.message) for event in database.events(NEWS) if (event.step or 0) <= at]
    return RunGroups(
        run=path.name,
        step=at,
        preset=config.grouping.preset,
        model=model,
        regions=tuple(regions(model)),
        moved=tuple(moved),
    )


def _checkpoint(path: Path, step: int | None) -> tuple[Path, int]:
    found = checkpoint.newest(path / "checkpoints") if step is None else None  # reads every byte of it
    if found is not None and (found.path / FILES.facts).is_file():
        return found.path, found.step
    folder = path / "checkpoints" / f"step_{step or 0:06d}"
    if not (folder / FILES.facts).is_file():
        there = ", ".join(sorted(one.parent.name for one in path.glob(f"checkpoints/*/{FILES.facts}"))) or "none"
        raise RunError(f"{path} has no checkpoint with groups at step {step}; those that there are: {there}")
    return folder, step or 0
