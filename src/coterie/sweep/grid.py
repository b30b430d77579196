"""The runs of a sweep: every arm with every combination of the varied settings and every seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from coterie.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    arm: str = ""
    """Name of a bundle of settings; empty where there is only one."""
    bundle: tuple[str, ...] = ()
    """Its settings, `key=value` each."""
    choice: tuple[tuple[str, str], ...] = ()
    """(setting, text of its value) of what is varied, in the order in which it was given."""
    seed: int

    @property
    def label(self) -> str:
        """Label of its settings, e.g. `algorithm=ppo optim.lr=1e-5`."""
        return (
            " ".join([*filter(None, [self.arm]), *(f"{key}={value}" for key, value in self.choice)]) or "base settings"
        )

    @property
    def name(self) -> str:
        """Name of its run folder."""
        words = [*filter(None, [self.arm]), *(f"{key.rpartition('.')[2]}-{value}" for key, value in self.choice)]
        return "--".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", word) for word in [*words, f"seed-{self.seed}"])

    def words(self) -> list[str]:
        """Flags for `coterie train`."""
        return [*self.bundle, *(f"{key}={value}" for key, value in (*self.choice, ("seed", str(self.seed))))]


def cells(
    vary: Mapping[str, Sequence[str]], seeds: Sequence[int], arms: Mapping[str, Sequence[str]] | None = None
) -> list[Cell]:
    """All cells of a sweep. Seeds are the outermost loop, so that an unfinished sweep compares equal seeds."""
    keys = list(vary)
    choices = [tuple(zip(keys, values, strict=True)) for values in product(*vary.values())]
    grid = [
        Cell(arm=name, bundle=tuple(bundle), choice=choice, seed=seed)
        for seed in seeds
        for name, bundle in (arms or {"": ()}).items()
        for choice in choices
    ]
    names = [cell.name for cell in grid]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two runs of the sweep would be called {twice[0]!r}; vary each setting once, each value once"
        )
    return grid


def parse_vary(words: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--vary`: `optim.lr=1e-5,2e-5` → {"optim.lr": ["1e-5", "2e-5"]}."""
    varied: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not equals or not key or not values:
            raise ConfigError(f"--vary {word!r}; expected KEY=VALUE,VALUE…, e.g. optim.lr=1e-5,2e-5")
        if key == "seed":
            raise ConfigError("--vary seed=…: seeds have an option of their own, --seeds 0-4")
        varied[key] = values
    return varied


def parse_arms(words: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--arm`: `ppo: algorithm=ppo critic.kind=model` → {"ppo": ["algorithm=ppo", "critic.kind=model"]}."""
    arms: dict[str, list[str]] = {}
    for word in words:
        name, colon, text = word.partition(":")
        bundle = text.split()
        if not colon or not name.strip() or not all("=" in setting for setting in bundle):
            raise ConfigError(f"--arm {word!r}; expected 'NAME: KEY=VALUE KEY=VALUE…'")
        if name.strip() in arms:
            raise ConfigError(f"--arm {word!r}: there is another arm of this name")
        arms[name.strip()] = bundle
    return arms


def parse_seeds(text: str) -> list[int]:
    """Parse `--seeds`: `0-4`, `0,1,7` or a mix of both."""
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ConfigError(f"--seeds {text!r}; expected whole numbers or ranges, e.g. 0-4 or 0,1,7")
        seeds += range(int(low), int(high if dash else low) + 1)
    return list(dict.fromkeys(seeds))
