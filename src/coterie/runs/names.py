"""Names of the runs in a folder, for messages that a name means none of them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

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
