"""The results as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.summary import Spread, circumstances, lines

NAMES = {"coterie": "coterie", "trl": "TRL", "vllm": "vLLM"}


def markdown(found: dict[str, Any]) -> str:
    """The whole report: circumstances, the table, what each case was like, and how to repeat it."""
    parts = [f"# {_heading(found)}", _circumstances(found), _table(found), _cases(found), _method(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float) -> str:
    """Three figures.

    >>> [number(x) for x in (0.01234, 1.234, 12.34, 1234.5)]
    ['0.0123', '1.23', '12.3', '1234']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(one: Spread | None, suffix: str = "") -> str:
    """Median, and the range where there is one."""
    if one is None:
        return "–"
    middle = number(one.median) + suffix
    return middle if one.low == one.high else f"{middle} ({number(one.low)}–{number(one.high)})"


def _heading(found: dict[str, Any]) -> str:
    peers = [NAMES[side] for side in found["sides"] if side != "coterie"]
    return f"coterie beside {' and '.join(peers) or 'nobody'}"


def _circumstances(found: dict[str, Any]) -> str:
    facts = [
        f"Date: {found['date']}",
        f"Machine: {found['machine']}; {found['threads']} threads",
        f"Model: {found['model_name']}, {found['dtype']}; {found['rounds']} rounds, taking turns in one run",
        f"Command: `{found['command']}`",
        *(f"Note: {note}" for note in found["notes"]),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def _table(found: dict[str, Any]) -> str:
    sides = list(found["sides"])
    peers = [side for side in sides if side != "coterie"]
    head = ["case", "what", *(NAMES[side] for side in sides), *(f"better than {NAMES[peer]}" for peer in peers)]
    rows = []
    for result in found["cases"]:
        for index, line in enumerate(lines(result)):
            values = [cell(line.sides.get(side)) for side in sides]
            better = [cell(line.better.get(peer), "×") for peer in peers]
            rows.append([result["title"] if index == 0 else "", f"{line.what}, {line.unit}", *values, *better])
    if not rows:
        return ""
    align = ["---", "---", *["--:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows]) + "\n\nMedian (lowest–highest)."


def _cases(found: dict[str, Any]) -> str:
    told = [line for result in found["cases"] for line in _case(result)]
    return "\n".join(f"- {line}" for line in told)


def _case(result: dict[str, Any]) -> list[str]:
    told = []
    if result["rounds"]:
        facts = circumstances(result)
        spans = "; ".join(
            f"{NAMES[side]} {held['mean']:.0f} ({held['min']}–{held['max']})" for side, held in facts["lengths"].items()
        )
        prompts = result["prompt_lengths"]
        told.append(
            f"{result['title']}: prompts of {min(prompts)}–{max(prompts)} tokens; completions of {spans} tokens; "
            f"{facts['zero_variance']:.0%} of the groups without variance; {facts['trained']:.0%} of the tokens trained"
        )
    if "gradient" in result:
        held = result["gradient"]
        told.append(
            f"{result['title']}: gradients of the same loss in float32 ({held['rollouts']} rollouts): cosine "
            f"{held['cosine']:.9f}, relative error {held['relative_error']:.2e}"
        )
    return told + [f"{result['title']}: {error}" for error in result.get("errors", [])]


def _method(found: dict[str, Any]) -> str:
    versions = [
        f"{NAMES[side]}: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        for side, facts in found["sides"].items()
        if facts
    ]
    trl = found["sides"].get("trl") or {}
    settings = [
        f"TRL's {name}: " + ", ".join(f"`{key}` {value}" for key, value in held.items())
        for name, held in trl.get("settings", {}).items()
    ]
    return "\n".join(f"- {line}" for line in [*versions, *settings])
