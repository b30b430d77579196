"""The fault set: `python -m faults [--short] [--only SECTION …] [--workers N] [--kills N] [--seed N] [--out FOLDER]`.

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from faults.cases import Case, of_trial
from faults.table import TITLES, markdown, merge


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    kills: int
    tool_kills: int
    """Of runs with tools, which take longer."""
    stage_kills: int
    """Of fine-tunings, rejection sampling and pipelines."""
    passes: int
    """Of each named point."""
    points: int
    """Every so manieth point is tried."""
    stage_points: int
    """Of stages and of pipelines, so many of each kind; 0: all, also those of a resume."""
    flips: int
    calls: int
    """Every so manieth call of a run is refused."""
    cuts: int
    """Every so manieth prefix of the record is cut."""
    sizes: tuple[int, ...]
    """KiB of the disks that run full."""
    few: int
    """Every so manieth of the lists that are written out."""
    soak: int
    """Steps of the long run."""
    service_kills: int
    """Of engine services, at random moments."""
    service_passes: tuple[int, ...]
    """In which they are lost."""
    lag_kills: int
    """Of runs with a lag, at random moments."""
    vllm_kills: int
    """Of vLLM as a service, and of its runs."""
    scales: tuple[float, ...]
    """By which the engine's weights are wrong."""


LONG = Size(
    kills=300,
    tool_kills=108,
    stage_kills=150,
    passes=3,
    points=1,
    stage_points=0,
    flips=1000,
    calls=1,
    cuts=1,
    sizes=(*range(40, 560, 24), 600, 700, 800, 900, 1000),
    few=1,
    soak=400,
    service_kills=120,
    service_passes=(1, 2, 3, *range(4, 40, 3)),
    lag_kills=40,
    vllm_kills=45,
    scales=(1.0003, 1.001, 1.003, 1.01),
)
SHORT = Size(
    kills=4,
    tool_kills=4,
    stage_kills=3,
    passes=1,
    points=20,
    stage_points=1,
    flips=60,
    calls=120,
    cuts=66,
    sizes=(120, 500),
    few=3,
    soak=16,
    service_kills=2,
    service_passes=(1, 30),
    lag_kills=1,
    vllm_kills=3,
    scales=(1.01,),
)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several workers does."""

    index: int = 0
    count: int = 1

    def takes(self, section: str) -> bool:
        """Sections that cannot be cut go round the workers; the others are everybody's."""
        return section in CUT or WHOLE.index(section) % self.count == self.index


CUT = ("power", "random", "tools", "stages", "points", "calls")
WHOLE = ("soak", "disk", "damage", "engine", "services", "stop", "configs", "flips", "secrets", "clock", "vllm")
"""In an order that leaves two workers with about as much to do."""
NAMED = ("vllm",)
"""Sections that are tried when --only names them, for they need another environment."""


def _sections(size: Size, seed: int, share: Share, root: Path) -> dict[str, Callable[[], Iterator[Case]]]:
    from faults import (
        clock,
        configs,
        damage,
        disk,
        engine,
        kills,
        power,
        secrets,
        services,
        soak,
        stages,
        stopping,
        tools,
        vllm_services,
    )
    from faults.harness import Harness

    harness = Harness(root)

    def several(*parts: Iterator[Case]) -> Iterator[Case]:
        for part in parts:
            yield from part

    def every(stride: int) -> dict[str, int]:
        """This share of every so manieth thing."""
        return {"stride": stride * share.count, "first": stride * share.index}

    refused = size.calls * share.count
    return {
        "configs": configs.refused,
        "flips": lambda: damage.flips(harness, size.flips, seed),
        "damage": lambda: several(
            damage.broken(harness, size.few), damage.nothing_left(harness), damage.hostile(harness, size.few)
        ),
        "power": lambda: power.cuts(harness, seed=seed, **every(size.cuts)),
        "secrets": lambda: secrets.leaks(harness),
        "stop": lambda: several(
            stopping.signals(harness, size.few), stopping.two_at_once(harness), stopping.frozen(harness)
        ),
        "clock": lambda: clock.jumps(harness),
        "engine": lambda: several(
            engine.answers(harness, size.few),
            engine.failures(harness),
            engine.old_weights(harness, size.scales, size.few),
        ),
        "services": lambda: several(
            services.losses(
                harness, size.service_kills, size.service_passes, seed, whole=size.service_kills > SHORT.service_kills
            ),
            services.with_a_lag(
                root.parent / "lag", size.lag_kills, size.service_passes[::4], max(1, size.points // 4), seed
            ),
            services.on_ranks(root.parent / "ranks", max(1, size.points // 4)),
        ),
        "vllm": lambda: vllm_services.losses(root.parent / "vllm", size.vllm_kills, seed),
        "random": lambda: (
            of_trial("random", trial)
            for trial in kills.at_random(harness, -(-size.kills // share.count), seed * share.count + share.index)
        ),
        "tools": lambda: tools.kills(
            root.parent / "tools", -(-size.tool_kills // share.count), seed * share.count + share.index
        ),
        "stages": lambda: stages.kills(
            root.parent / "stages",
            size.stage_kills,
            size.passes,
            seed,
            most=size.stage_points,
            share=(share.index, share.count),
        ),
        "points": lambda: (
            of_trial("points", trial)
            for trial in kills.at_points(
                harness, size.passes, **every(size.points), always=size.points > 1 and share.index == 0
            )
        ),
        "soak": lambda: soak.soak(harness, size.soak, seed),
        "disk": lambda: several(
            disk.full(harness, list(size.sizes)),
            disk.beside(harness),
            disk.read_only(harness, size.few),
        ),
        "calls": lambda: several(
            disk.every_call(harness, errno.EIO, refused, first=1 + size.calls * share.index, only_fsync=True),
            disk.every_call(harness, errno.ENOSPC, refused, first=1 + size.calls * share.index),
        ),
    }


def _size(options: argparse.Namespace) -> Size:
    size = SHORT if options.short else LONG
    given = {name: getattr(options, name) for name in ("kills", "passes", "soak", "calls", "cuts")}
    given |= dict.fromkeys(("tool_kills", "stage_kills", "service_kills", "lag_kills", "vllm_kills"), options.kills)
    return replace(size, **{name: value for name, value in given.items() if value is not None})


def main() -> int:
    options = _options()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    failed = _together(options) if options.workers > 1 else _alone(options)
    text = markdown(options.out)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    if options.share is None:
        print(text)
    return int(failed)


def _together(options: argparse.Namespace) -> bool:
    """Several processes, each with its share; True when any failed."""
    words = [word for word in sys.argv[1:] if not word.startswith("--workers=")]
    if "--workers" in words:
        place = words.index("--workers")
        del words[place : place + 2]
    folders = [options.out / f"worker-{index}" for index in range(options.workers)]
    command = [sys.executable, "-m", "faults", *words]
    workers = [
        subprocess.Popen([*command, "--share", str(index), str(options.workers), "--out", str(folder)])
        for index, folder in enumerate(folders)
    ]
    codes = [worker.wait() for worker in workers]
    merge(folders, options.out)
    return any(codes)


def _alone(options: argparse.Namespace) -> bool:
    out, share = options.out, Share(*options.share or (0, 1))
    root = Path(tempfile.mkdtemp(prefix="coterie-faults-"))
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of libraries
        sections = _sections(_size(options), options.seed, share, root / "trials")
    failed = 0
    for name in options.only or [name for name in sections if name not in NAMED]:
        if not share.takes(name):
            continue
        began, spent = time.monotonic(), sum(os.times()[:4])
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as rows:
            for case in sections[name]():
                rows.write(json.dumps(asdict(case)) + "\n")
                rows.flush()
                if case.problem is not None:
                    failed += 1
                    print(f"{name}: {case.name}: {case.problem}", flush=True)
            seconds = round(time.monotonic() - began)
            used = round(sum(os.times()[:4]) - spent, 1)  # of processors, the children's too; no other load changes it
            end = {"section": name, "seconds": seconds, "cpu": used, "seed": options.seed}
            rows.write(json.dumps(end) + "\n")
        print(f"{name} done after {seconds} s, {used} s of a processor", flush=True)
    if failed:
        print(f"{failed} cases failed; what is left of them is in {root}")
    else:
        shutil.rmtree(root)
    return failed > 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the set of the normal tests")
    parser.add_argument("--only", nargs="+", choices=TITLES, metavar="SECTION", help=", ".join(TITLES))
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work, one a processor")
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, help="at random moments")
    parser.add_argument("--passes", type=int, help="of each named point")
    parser.add_argument("--calls", type=int, help="every so manieth call is refused")
    parser.add_argument("--cuts", type=int, help="every so manieth moment has a power cut")
    parser.add_argument("--soak", type=int, help="steps of the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fault-results"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
