"""The fault set: `python -m faults [--short] [--only SECTION …] [--kills N] [--seed N] [--out FOLDER]`.

Each case is written down as soon as its verdict is known, so that a set that was cut off still tells what it tried.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from faults.cases import Case, of_trial
from faults.table import markdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    kills: int
    passes: int
    """Of each named point."""
    points: int
    """Every so manieth point is tried."""
    flips: int
    calls: int
    """Every so manieth call of a run is refused."""
    cuts: int
    """Every so manieth prefix of the record is cut."""
    sizes: tuple[int, ...]
    """KiB of the disks that run full."""
    few: int
    """Every so manieth of the lists that are written out."""


LONG = Size(
    kills=300,
    passes=3,
    points=1,
    flips=1000,
    calls=1,
    cuts=1,
    sizes=(*range(40, 560, 24), 600, 700, 800, 900, 1000),
    few=1,
)
SHORT = Size(kills=4, passes=1, points=10, flips=60, calls=60, cuts=14, sizes=(120, 500), few=2)


def _sections(size: Size, seed: int, root: Path) -> dict[str, Callable[[], Iterator[Case]]]:
    from faults import configs, damage, disk, kills, power, secrets, stopping
    from faults.harness import Harness

    harness = Harness(root)

    def several(*parts: Iterator[Case]) -> Iterator[Case]:
        for part in parts:
            yield from part

    return {
        "configs": configs.refused,
        "flips": lambda: damage.flips(harness, size.flips, seed),
        "damage": lambda: several(
            damage.broken(harness, size.few), damage.nothing_left(harness), damage.hostile(harness, size.few)
        ),
        "power": lambda: power.cuts(harness, size.cuts, seed),
        "secrets": lambda: secrets.leaks(harness),
        "stop": lambda: several(
            stopping.signals(harness, size.few), stopping.two_at_once(harness), stopping.frozen(harness)
        ),
        "random": lambda: (of_trial("random", one) for one in kills.at_random(harness, size.kills, seed)),
        "points": lambda: (of_trial("points", one) for one in kills.at_points(harness, size.passes, size.points)),
        "disk": lambda: several(
            disk.full(harness, list(size.sizes)),
            disk.read_only(harness, size.few),
        ),
        "calls": lambda: several(
            disk.every_call(harness, errno.EIO, size.calls, only_fsync=True),
            disk.every_call(harness, errno.ENOSPC, size.calls),
        ),
    }


def main() -> int:
    options = _options()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    size = SHORT if options.short else LONG
    if options.kills is not None:
        size = replace(size, kills=options.kills)
    if options.passes is not None:
        size = replace(size, passes=options.passes)
    root = Path(tempfile.mkdtemp(prefix="coterie-faults-"))
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of libraries
        sections = _sections(size, options.seed, root / "trials")
    failed = 0
    for name in options.only or sections:
        began = time.monotonic()
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as rows:
            for case in sections[name]():
                rows.write(json.dumps(asdict(case)) + "\n")
                rows.flush()
                if case.problem is not None:
                    failed += 1
                    print(f"{name}: {case.name}: {case.problem}", flush=True)
            rows.write(json.dumps({"section": name, "seconds": round(time.monotonic() - began), "seed": options.seed}))
        print(f"{name} done after {time.monotonic() - began:.0f} s", flush=True)
    text = markdown(out)
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        print(f"{failed} cases failed; what is left of them is in {root}")
        return 1
    shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the set of the normal tests")
    parser.add_argument("--only", nargs="+", help="sections")
    parser.add_argument("--kills", type=int, help="at random moments")
    parser.add_argument("--passes", type=int, help="of each named point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fault-results"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
