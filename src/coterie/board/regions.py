"""Regions of a group-aware run, read from a checkpoint, as data and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.algo.estimators import GROUPS_CHANGED, Terms
from coterie.board.figure import FAINT, INK, canvas, save
from coterie.config.load import load_file
from coterie.errors import RunError
from coterie.grouping.estimator import FILES, GroupAwareEstimator
from coterie.grouping.features import PromptFeatures
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.regions import Region, regions
from coterie.runs import checkpoint
from coterie.runs.directory import find
from coterie.runs.metrics import MetricsDB
from coterie.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What allocation expects of the prompts that it has considered so far."""

    prompts: int
    always: int
    """Expected to be solved always, and skipped."""
    never: int
    """Expected never to be solved, and skipped."""
    review: float
    """Share of the draws for those that are skipped."""
    answer_tokens: float
    """Expected of a rollout, mean over the prompts."""

    def sentence(self) -> str:
        return (
            f"allocation: of {self.prompts} prompts {self.always} are expected to be solved always and {self.never} "
            f"never; these are skipped but for {100 * self.review:.0f} % of the draws; a rollout is expected to have "
            f"{self.answer_tokens:.0f} tokens"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunGroups:
    """State of a run's group-aware estimator after a step."""

    run: str
    step: int
    preset: str
    model: GroupAwareBaseline
    regions: tuple[Region, ...]
    moved: tuple[tuple[int, str], ...]
    """(step, split or merge in words), oldest first."""
    outlook: Outlook | None
    """None for a run without `grouping.allocate`."""

    def plain(self) -> dict[str, Any]:
        """The regions as JSON-able data."""
        weights = self.model.mixture.overall()
        return {
            "run": self.run,
            "step": self.step,
            "preset": self.preset,
            "experts": {name: float(w) for name, w in zip(self.model.experts, weights, strict=True)},
            "unit": self.model.scale,
            "regions": [asdict(region) for region in self.regions],
            "moved": [{"step": step, "what": what} for step, what in self.moved],
            "allocation": None if self.outlook is None else asdict(self.outlook),
        }

    def summary(self) -> str:
        """Summary in one line."""
        leaves = sum(region.leaf for region in self.regions)
        weights = zip(self.model.experts, self.model.mixture.overall(), strict=True)
        experts = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in weights)
        return (
            f"{self.preset}, {leaves} regions of {len(self.model.prompt_table.index)} prompts seen; experts {experts}"
        )


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
            'with grouping.preset = "mixture"'
        )
    folder, at = _checkpoint(path, step)
    features = PromptFeatures((), None, dimensions=config.grouping.dimensions)
    estimator = GroupAwareEstimator(
        config.grouping,
        terms=Terms(clip_low=0.0, clip_high=0.0),
        features=features,
        part_weights={part.key: part.weight for part in config.rewards.functions},
        seed=config.seed,
    )
    estimator.read(folder)
    model = estimator.model.first
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        moved = [
            (event.step or 0, event.message) for event in database.events(GROUPS_CHANGED) if (event.step or 0) <= at
        ]
    return RunGroups(
        run=path.name,
        step=at,
        preset=config.grouping.preset,
        model=model,
        regions=tuple(regions(model)),
        moved=tuple(moved),
        outlook=_outlook(estimator) if config.grouping.allocate else None,
    )


def _outlook(estimator: GroupAwareEstimator) -> Outlook:
    names, level = tuple(estimator.features.rows), estimator.config.skip
    success = estimator.success(names)[0]
    return Outlook(
        prompts=len(names),
        always=int((success > 1.0 - level).sum()),
        never=int((success < level).sum()),
        review=estimator.config.review,
        answer_tokens=float(np.mean(estimator.lengths.expect(names, estimator.time, 0.0))),
    )


def _checkpoint(path: Path, step: int | None) -> tuple[Path, int]:
    newest = checkpoint.newest(path / "checkpoints") if step is None else None  # reads every byte of it
    if newest is not None and (newest.path / FILES.facts).is_file():
        return newest.path, newest.step
    folder = path / "checkpoints" / f"step_{step or 0:06d}"
    if not (folder / FILES.facts).is_file():
        there = ", ".join(sorted(file.parent.name for file in path.glob(f"checkpoints/*/{FILES.facts}"))) or "none"
        raise RunError(f"{path} has no checkpoint with groups at step {step}; available: {there}")
    return folder, step or 0


# The picture: the tree, and prompts by similarity, coloured by success over time.

PANELS = 3
"""The window of recent steps in as many parts."""
INCHES = 0.3
"""Height of a leaf of the tree."""
WIDEST, NARROW = 60, 24
"""Characters of a rule beside a leaf, and on a line."""


def draw(file: Path, groups: RunGroups) -> bool:
    """Draw prompts in feature space by thirds of the window, with the tree of regions below.

    Without a tree there is no lower part. Returns False without matplotlib or without observed prompts.
    """
    if not groups.model.window.steps:
        return False
    leaves = sum(region.leaf for region in groups.regions)
    below = 0.6 + INCHES * leaves if leaves else 0.0
    figure = canvas(11, 3.9 + below)
    if figure is None:
        return False
    low, high = groups.model.range or (0.0, 1.0)
    colours = {"cmap": "viridis", "vmin": low, "vmax": high}
    upper: Any = figure
    if leaves:
        parts: Any = figure.subfigures(2, 1, height_ratios=(3.9, below))
        upper = parts[0]
        _tree(parts[1].subplots(), groups.regions, colours)
    axes = upper.subplots(1, PANELS, sharex=True, sharey=True)
    upper.colorbar(_prompts(axes, groups, colours), ax=axes, label="mean reward", shrink=0.9)
    return save(figure, file)


def _prompts(axes: Sequence[Axes], groups: RunGroups, colours: dict[str, Any]) -> Any:
    """Draw all prompts faintly and those of each part of the window coloured; returns the mappable of the colours."""
    steps, bounds = list(groups.model.window.steps), (colours["vmin"], colours["vmax"])
    points, letters = _plane(groups.model), _letters(groups)
    shade = None
    for axis, part in zip(axes, np.array_split(np.arange(len(steps)), PANELS), strict=True):
        window = [steps[index] for index in part]
        axis.scatter(points[:, 0], points[:, 1], s=4, color=FAINT)
        if window:
            rows = np.concatenate([step.rows for step in window])
            mean = bounds[0] + (bounds[1] - bounds[0]) * np.concatenate([step.mean for step in window])
            shade = axis.scatter(points[rows, 0], points[rows, 1], c=mean, s=18, linewidths=0, **colours)
            first, last = groups.step - len(steps) + part[0] + 1, groups.step - len(steps) + part[-1] + 1
            axis.set_title(f"steps {first} to {last}", fontsize=10)
        for letter, rows in letters.items():
            here = points[rows]
            axis.annotate(
                letter,
                here[np.abs(here - np.median(here, axis=0)).sum(axis=1).argmin()],
                ha="center",
                va="center",
                color=INK,
                bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": INK, "alpha": 0.8},
                fontsize=8,
            )
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel("prompts by similarity")
    return shade


def _letters(groups: RunGroups) -> dict[str, np.ndarray]:
    """Rows of the prompts seen in each leaf, by its letter."""
    hierarchy, table = groups.model.regions, groups.model.prompt_table
    if hierarchy is None:
        return {}
    leaf = hierarchy.tree.locate(table.features[: len(table.index)])
    members = {region.label: np.flatnonzero(leaf == region.node) for region in groups.regions if region.leaf}
    return {label: rows for label, rows in members.items() if rows.size}


def _tree(axis: Axes, regions: Sequence[Region], colours: dict[str, Any]) -> None:
    """Draw the tree from left to right, a line for each leaf; size is the number of prompts, colour the success."""
    height = _heights(regions)
    for region in regions:
        if region.parent >= 0:
            x = (region.depth - 1, region.depth - 0.5, region.depth - 0.5, region.depth)
            y = (height[region.parent], height[region.parent], height[region.node], height[region.node])
            axis.plot(x, y, color=FAINT, zorder=1)
    axis.scatter(
        [region.depth for region in regions],
        [height[region.node] for region in regions],
        c=[region.success for region in regions],
        s=[30 + 200 * region.prompts / max(1, regions[0].prompts) for region in regions],
        edgecolors=INK,
        linewidths=0.6,
        zorder=2,
        **colours,
    )
    for region in regions:
        _name(axis, region, height[region.node])
    deepest = max(region.depth for region in regions)
    axis.set_xlim(-0.2, deepest + 1.6)
    axis.set_ylim(-0.7, max(height.values()) + 0.7)
    axis.invert_yaxis()
    axis.axis("off")


def _name(axis: Axes, region: Region, height: float) -> None:
    """Write a leaf's text to its right, and another node's rule on the line that leads to it."""
    figures = f"{region.success:.2f} ({region.drift:+.2f})"
    style: dict[str, Any] = {"textcoords": "offset points", "color": INK, "fontsize": 8}
    place = (region.depth, height)
    if region.leaf:
        label = f"{region.label}   {one_line(region.step, WIDEST)}: {figures}, {region.prompts} prompts"
        axis.annotate(label, place, xytext=(10, 0), va="center", fontweight="bold", **style)
        return
    root = region.parent < 0
    x, y, side = (0, 10, "left") if root else (-10, 2, "right")
    axis.annotate(one_line(region.step, NARROW), place, xytext=(x, y), ha=side, va="bottom", **style)
    axis.annotate(figures, place, xytext=(x, -y), ha=side, va="top", **style)


def _heights(regions: Sequence[Region]) -> dict[int, float]:
    """Line of each node: leaves one below the other, any other half way between its two children."""
    lines = {region.node: float(line) for line, region in enumerate(r for r in regions if r.leaf)}
    for region in reversed(regions):
        if not region.leaf:
            lines[region.node] = float(np.mean([lines[child.node] for child in regions if child.parent == region.node]))
    return lines


def _plane(model: GroupAwareBaseline) -> np.ndarray:
    """[prompts, 2] the features' two leading principal directions, those of meaning where there are any."""
    names: Sequence[int] = [i for i, column in enumerate(model.columns) if column.signal == "semantic"]
    features = model.prompt_table.features[: len(model.prompt_table.index)]
    chosen = features[:, names] if len(names) > 1 else features
    centred = chosen - chosen.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    return np.pad(plane, ((0, 0), (0, max(0, 2 - plane.shape[1]))))
