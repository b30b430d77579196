"""The results as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.summary import Spread, circumstances, lines

NAMES = {"coterie": "coterie", "trl": "TRL", "vllm": "vLLM"}


def markdown(results: dict[str, Any]) -> str:
    """The whole report: circumstances, the table, what each case was like, and how to repeat it."""
    parts = [f"# {_heading(results)}", _circumstances(results), _table(results), _cases(results), _method(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float) -> str:
    """Three figures.

    >>> [number(x) for x in (0.01234, 1.234, 12.34, 1234.5)]
    ['0.0123', '1.23', '12.3', '1234']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(interval: Spread | None, suffix: str = "") -> str:
    """Median, and the range where there is one."""
    if interval is None:
        return "–"
    middle = number(interval.median) + suffix
    return middle if interval.low == interval.high else f"{middle} ({number(interval.low)}–{number(interval.high)})"


def _heading(results: dict[str, Any]) -> str:
    peers = [NAMES[side] for side in results["sides"] if side != "coterie"]
    return f"coterie beside {' and '.join(peers) or 'nobody'}"


def _circumstances(results: dict[str, Any]) -> str:
    facts = [
        f"Date: {results['date']}",
        f"Machine: {results['machine']}; {results['threads']} threads",
        f"Model: {results['model_name']}, {results['dtype']}; {results['rounds']} rounds, taking turns in one run",
        f"Command: `{results['command']}`",
        *(f"Note: {note}" for note in results["notes"]),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def _table(results: dict[str, Any]) -> str:
    sides = list(results["sides"])
    peers = [side for side in sides if side != "coterie"]
    head = ["case", "what", *(NAMES[side] for side in sides), *(f"better than {NAMES[peer]}" for peer in peers)]
    rows = []
    for result in results["cases"]:
        for index, line in enumerate(lines(result)):
            values = [cell(line.sides.get(side)) for side in sides]
            better = [cell(line.better.get(peer), "×") for peer in peers]
            rows.append([result["title"] if index == 0 else "", f"{line.what}, {line.unit}", *values, *better])
    if not rows:
        return ""
    align = ["---", "---", *["--:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows]) + "\n\nMedian (lowest–highest)."


def _cases(results: dict[str, Any]) -> str:
    told = [line for result in results["cases"] for line in _case(result)]
    return "\n".join(f"- {line}" for line in told)


def _case(result: dict[str, Any]) -> list[str]:
    told = []
    if result["rounds"]:
        facts = circumstances(result)
        spans = "; ".join(
            f"{NAMES[side]} {length['mean']:.0f} ({length['min']}–{length['max']})"
            for side, length in facts["lengths"].items()
        )
        prompts = result["prompt_lengths"]
        told.append(
            f"{result['title']}: prompts of {min(prompts)}–{max(prompts)} tokens; completions of {spans} tokens; "
            f"{facts['zero_variance']:.0%} of the groups without variance; {facts['trained']:.0%} of the tokens trained"
        )
    if "gradient" in result:
        gradient = result["gradient"]
        told.append(
            f"{result['title']}: gradients of the same loss in float32 ({gradient['rollouts']} rollouts): cosine "
            f"{gradient['cosine']:.9f}, relative error {gradient['relative_error']:.2e}"
        )
    return told + [f"{result['title']}: {error}" for error in result.get("errors", [])]


def _method(results: dict[str, Any]) -> str:
    versions = [
        f"{NAMES[side]}: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        for side, facts in results["sides"].items()
        if facts
    ]
    trl = results["sides"].get("trl") or {}
    settings = [
        f"TRL's {name}: " + ", ".join(f"`{key}` {value}" for key, value in values.items())
        for name, values in trl.get("settings", {}).items()
    ]
    return "\n".join(f"- {line}" for line in [*versions, *settings])
