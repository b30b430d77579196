"""Presets of the group-aware baseline, and all its numeric settings."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, Literal

from coterie.config.advantage import GroupingConfig

Scale = Literal["siblings", "batch", "prompt", "tree", "key", "linear", "root"]
SCALES: frozenset[Scale] = frozenset({"siblings", "batch", "prompt", "tree", "key", "linear", "root"})
"""siblings: the other rollouts of the prompt. batch: the other prompts of this step. prompt: what is remembered of the
prompt. tree: its region. key: prompts of the same text by the user's own key. linear: prompts near it in feature space.
root: all prompts."""

STATE = "state"
"""Scale within multi-turn episodes: other attempts that came to the same state. See `algo/turns.py`."""

SIGNALS = frozenset({"semantic", "complexity", "task", "key", "reward", "temporal"})
"""semantic, complexity, task, key: columns of the features. reward: boundaries drawn where rewards differ (off: regions
are cut at medians of features). temporal: forgetting (off: evidence never fades)."""

Expert = Literal[
    "group",
    "rloo",
    "global",
    "tracker",
    "js2",
    "empirical_bayes",
    "empirical_bayes_no_tree",
    "empirical_bayes_no_features",
    "own",
]
"""own: a function of the user's, see custom.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A preset: its experts, their first weights, and whether it is unbiased."""

    experts: tuple[Expert, ...]
    exact: bool
    """No baseline depends on its own rollout, so the expected gradient is the true one."""
    start: tuple[float, ...] = ()
    """Weights of the experts before anything is learned; equal if empty."""
    note: str = ""


PRESETS: dict[str, Preset] = {
    "prompt": Preset(experts=("group",), exact=False, note="plain GRPO: the group mean, own reward included"),
    "rloo": Preset(experts=("rloo",), exact=True, note="the other rollouts of the prompt"),
    "global": Preset(experts=("global",), exact=True, note="all other rollouts of the step"),
    "tracker": Preset(experts=("tracker",), exact=True, note="SPO: the prompt's own history"),
    "js2": Preset(experts=("js2",), exact=True, note="siblings and step, James-Stein"),
    "empirical_bayes": Preset(experts=("empirical_bayes",), exact=True, note="every scale, one model"),
    "mixture": Preset(
        experts=("empirical_bayes", "empirical_bayes_no_tree", "empirical_bayes_no_features", "tracker", "js2", "rloo"),
        # The full model leads until errors say otherwise; equal weights would give the noisiest expert a sixth.
        start=(0.5, 0.15, 0.1, 0.1, 0.1, 0.05),
        exact=True,
        note="every scale, six models weighted by what their errors cost",
    ),
}


LIVES_ON: dict[Expert, frozenset[Scale]] = {
    "group": frozenset({"siblings"}),
    "rloo": frozenset({"siblings"}),
    "global": frozenset({"batch"}),
    "js2": frozenset({"siblings", "batch"}),
    "tracker": frozenset({"prompt"}),
}
"""Scales that an expert requires. The hierarchical experts work with any."""


def experts_of(preset: str, scales: frozenset[Scale]) -> dict[Expert, float]:
    """Experts of a preset that these scales allow, with their first weights, which add up to 1. A preset with a colon
    is a custom baseline."""
    if ":" in preset:
        return {"own": 1.0}
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; expected one of {sorted(PRESETS)}, or module:function")
    row = PRESETS[preset]
    start = row.start or (1.0,) * len(row.experts)
    left = {
        name: weight
        for name, weight in zip(row.experts, start, strict=True)
        if LIVES_ON.get(name, frozenset()) <= scales
    }
    if not left:
        needed = sorted(frozenset().union(*(LIVES_ON[name] for name in row.experts)))
        raise ValueError(f"preset {preset!r} lives on {needed}, of which some are left out; choose another preset")
    total = sum(left.values())
    return {name: weight / total for name, weight in left.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the section `[grouping]`, and the numbers beside it: in units of a reward range of 1 and of steps,
    chosen in simulation."""

    config: GroupingConfig = field(default_factory=GroupingConfig)
    state_spread: float = 0.2
    """Prior variance of a state's value around its prompt's, in variances of one reward."""
    use_batch: bool = True
    """False: baselines from history and siblings only, so that they can be frozen when a prompt is dispatched."""
    root_variance: float = 0.08
    root_walk: float = 5e-4
    """Variance that the overall mean gains per step."""
    linear_variance: float = 0.02
    """Prior variance of the linear scale's contribution."""
    key_variance: float = 0.02
    """Prior variance of the common offset of prompts of one key."""
    window: int = 60
    """Steps that the tree looks back."""
    refit_first: tuple[int, ...] = (1, 3, 6)
    keep_gram: float = 0.98
    keep_kappa: float = 0.97
    keep_tau: float = 0.99
    keep_scale: float = 0.98
    tracker_half_life: float | None = None
    """Half-life of SPO's tracker in units of the clock; None decays by .875 a visit."""

    @property
    def scales(self) -> frozenset[Scale]:
        """Scales that are not ablated."""
        return SCALES - {*self.config.ablate, *(() if self.use_batch else ("batch",))}

    @property
    def signals(self) -> frozenset[str]:
        """Signals that are not ablated."""
        return SIGNALS - set(self.config.ablate)

    @property
    def states(self) -> bool:
        """The scale `state`: turns of an episode are also compared with those that other attempts took from there."""
        return STATE not in self.config.ablate

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest reward; None measures the range on the first step and does not clip."""
        limits = self.config.reward_range
        return None if limits is None else (limits[0], limits[1])

    @property
    def weighted(self) -> bool:
        """Use the rollouts' weights; False minimises squared error instead of gradient variance."""
        return self.config.weights != "none"

    def changed(self, **settings: Any) -> Settings:
        """The same with other settings of `[grouping]`, unchecked."""
        return replace(self, config=self.config.model_copy(update=settings))

    def without(self, name: str) -> Settings:
        """Settings without one scale or signal, for an ablation.

        >>> sorted(Settings().without("tree").scales)
        ['batch', 'key', 'linear', 'prompt', 'root', 'siblings']
        """
        if name not in SCALES | SIGNALS | {STATE}:
            raise ValueError(f"nothing is called {name!r}; expected one of {sorted(SCALES | SIGNALS | {STATE})}")
        return self.changed(ablate=[*self.config.ablate, name])

    def in_effect(self) -> Settings:
        """Settings with the ablation resolved: without the temporal signal nothing decays."""
        if "temporal" in self.signals:
            return self
        settings = self.changed(decay_steps=inf, prompt_decay_steps=inf)
        return replace(settings, root_walk=0.0, keep_gram=1.0, keep_kappa=1.0, keep_tau=1.0, keep_scale=1.0)

    def fingerprint(self) -> dict[str, Any]:
        """JSON by which a saved state is matched with the settings; without those that no saved state depends on."""
        names = ("decay_steps", "prompt_decay_steps", "max_leaves", "min_weight", "refit_every", "scale")
        beside = [item.name for item in fields(self) if item.name not in ("config", "state_spread")]
        plain = {name: getattr(self.config, name) for name in names} | {name: getattr(self, name) for name in beside}
        plain |= {"scales": self.scales, "signals": self.signals, "bounds": self.bounds, "weighted": self.weighted}
        return {
            key: sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
            for key, value in plain.items()
        }
