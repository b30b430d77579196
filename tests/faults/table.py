"""The rows of a fault set as a Markdown table and one JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TITLES = {
    "random": "SIGKILL at random moments, one to three in a row",
    "tools": "SIGKILL at random moments of a run with tools, several turns and drafts",
    "stages": "SIGKILL of a fine-tuning, rejection sampling and a pipeline, at named points and random moments",
    "points": "SIGKILL at named points",
    "power": "power cut (recorded run, unflushed data kept, lost, torn, zeroed, reordered)",
    "disk": "disk full, slow, read-only, vanished, no file descriptors, nobody reads",
    "calls": "no space, or an I/O error, at every call on the run's folder in turn",
    "stop": "SIGTERM, Ctrl-C, twice, SIGHUP, frozen, two processes",
    "damage": "damaged, foreign and hostile checkpoints",
    "flips": "single flipped bits",
    "secrets": "secrets in the environment, listening sockets",
    "configs": "mutated settings",
    "engine": "an engine that lies, fails, hangs, loses a commit, reads old weights",
    "services": "engine services killed and frozen; their run, runs with a lag, and learner ranks killed",
    "vllm": "vLLM as a service killed and frozen, and its run killed",
    "soak": "a long run, killed every few steps",
    "clock": "a wall clock that jumps",
}


_GROWN = ("mib", "descriptors", "threads", "children", "leftovers", "checkpoints")
"""Figures of the soak that tell by how much something grew."""


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Section → its rows, the last of a complete one being its time."""
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in TITLES
        if (folder / f"{name}.jsonl").exists()
    }


def merge(shares: Sequence[Path], out: Path) -> None:
    """The rows of several workers in one file a section; its time is that of the slowest. A worker that did not come to
    the end of a section leaves it without a time."""
    for name in TITLES:
        tables = [read(folder)[name] for folder in shares if (folder / f"{name}.jsonl").exists()]
        if not tables:
            continue
        cases = [row for rows in tables for row in rows if "name" in row]
        ends = [row for rows in tables for row in rows if "section" in row and "name" not in row]
        if len(ends) == len(tables):
            cases.append(max(ends, key=lambda row: row["seconds"]))
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cases), encoding="utf-8")


def markdown(folder: Path) -> str:
    """One line a section, then the figures; `summary.json` beside it holds the same for programs."""
    lines = ["| fault | cases | passed | figures | time |", "| --- | ---: | ---: | --- | ---: |"]
    everything: dict[str, Any] = {}
    for name, rows in read(folder).items():
        cases = [row for row in rows if "name" in row]
        ends = [row for row in rows if "seconds" in row and "name" not in row]
        tried, bad = len(cases), sum(row["problem"] is not None for row in cases)
        figures = _figures(name, [row["facts"] for row in cases], bad)
        time = f"{ends[-1]['seconds']} s" if ends else "cut off"
        lines.append(f"| {TITLES[name]} | {tried} | {tried - bad} | {'; '.join(figures)} | {time} |")
        everything[name] = {"tried": tried, "failed": bad, "figures": figures, "time": time}
    (folder / "summary.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return "\n".join(lines) + "\n"


def _figures(name: str, facts: Sequence[dict[str, Any]], bad: int) -> list[str]:
    if name in ("random", "tools", "stages", "points"):
        return _deaths(facts, bad)
    if name == "flips":
        flips, noticed, harmless = (sum(fact[key] for fact in facts) for key in ("flips", "noticed", "harmless"))
        return [
            f"{flips} flips: {noticed} noticed, {harmless} where nothing is read, {flips - noticed - harmless} missed"
        ]
    if name in ("power", "secrets"):
        return [f"{value} {key}" for fact in facts for key, value in fact.items()]
    if name == "stop":
        waits = [fact["stop_s"] for fact in facts if "stop_s" in fact]
        return [f"stops within {max(waits):.1f} s"] if waits else []
    if name in ("disk", "calls"):
        refused = sum(bool(fact.get("refusals")) for fact in facts)
        return [f"{refused} ended in a named error and went on later"] if refused else []
    if name == "engine":
        noticed = sum(fact.get("noticed", False) for fact in facts)
        return [
            f"{noticed} of {sum('noticed' in fact for fact in facts)} kinds of wrong weights told of in the same step"
        ]
    if name in ("services", "vllm"):
        counts = {key: sum(fact.get(key, 0) for fact in facts) for key in ("service_kills", "rank_kills")}
        runs = sum(len(fact.get("deaths", [])) for fact in facts)
        return [
            f"{counts['service_kills']} services killed at random moments, {counts['rank_kills']} learner ranks, "
            f"{runs} runs"
        ]
    if name == "soak":
        return [
            ", ".join(f"{key} {value:+g}" if key in _GROWN else f"{value} {key}" for key, value in fact.items())
            for fact in facts
        ]
    if name == "configs":
        return [
            f"{fact['mutants']} mutants, {fact['refused']} refused, slowest {fact['slowest_ms']} ms" for fact in facts
        ]
    return []


def _deaths(facts: Sequence[dict[str, Any]], bad: int) -> list[str]:
    kills = Counter(phase for fact in facts for phase in fact["deaths"])
    total = kills.total()
    if not total:
        return []
    recovery = sorted(value for fact in facts for value in fact["recovery"])
    lost = [value for fact in facts for value in fact["lost"]]
    figures = [f"{total} kills ({', '.join(f'{phase} {count}' for phase, count in kills.most_common())})"]
    if bad == 0:
        figures.append(f"diverged 0, so with 95 % confidence fewer than {300 / total:.2g} % of kills (3/N)")
    if recovery:
        figures.append(f"first new step after {_quantile(recovery, 0.5):.1f} s (p95 {_quantile(recovery, 0.95):.1f} s)")
    if lost:
        figures.append(f"finished steps lost: {sum(lost) / len(lost):.2f} on average, {max(lost)} at most")
    return figures


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]
