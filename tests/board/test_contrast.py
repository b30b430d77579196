"""Colours of the board reach WCAG AA: 4.5:1 for text, 3:1 for lines and marks, on every ground in either theme."""

from __future__ import annotations

import itertools
import re

import pytest

from coterie.board.routes import SCRIPTS, STYLES, WEB

TEXTS = ("text", "quiet", "link", "good", "warn", "bad", "up", "down")
LINES = ("line-1", "line-2", "line-3", "line-4", "line-5", "line-6", "focus", "level")
STRONGEST = 0.75
"""Share of a token's colour over the ground, at most."""


def themes() -> dict[str, dict[str, str]]:
    css = (WEB / "board.css").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^(:root(?:\[data-theme=\"dark\"\])?) \{(.*?)^\}", css, re.MULTILINE | re.DOTALL))
    colours = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text)) for text in blocks.values()]
    return {"light": colours[0], "dark": colours[0] | colours[1]}


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(colour: list[float]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: list[float], second: list[float]) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out(theme: str) -> None:
    colours = {name: channels(text) for name, text in themes()[theme].items()}
    for ground, (names, least) in itertools.product(("ground", "raised"), ((TEXTS, 4.5), (LINES, 3.0))):
        for name in names:
            assert contrast(colours[name], colours[ground]) >= least, f"{name} on {ground}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_stay_readable_on_their_colour(theme: str) -> None:
    assert f"* {STRONGEST}" in (WEB / "board.css").read_text(encoding="utf-8")
    colours = {name: channels(text) for name, text in themes()[theme].items()}
    for side in ("low", "high"):
        mixed = [STRONGEST * a + (1 - STRONGEST) * b for a, b in zip(colours[side], colours["ground"], strict=True)]
        assert contrast(colours["text"], mixed) >= 4.5, side


def test_what_is_vendored_is_small_and_licensed() -> None:
    """The libraries together stay under 100 kB, and each is named with its licence."""
    vendored = [WEB / name for name in (*SCRIPTS, *STYLES) if name.startswith("vendor/")]
    assert sum(file.stat().st_size for file in vendored) < 100_000
    licences = (WEB / "vendor/LICENSES.txt").read_text(encoding="utf-8")
    for file in vendored:
        assert file.name in licences
    assert licences.count("MIT License") >= 2
    assert {file.name for file in (WEB / "vendor").iterdir()} == {file.name for file in vendored} | {"LICENSES.txt"}


def test_the_front_end_makes_no_markup_of_text() -> None:
    """No text becomes markup or code, and nothing is asked for from elsewhere."""
    for name in SCRIPTS:
        if not name.startswith("vendor/"):
            text = (WEB / name).read_text(encoding="utf-8")
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                "new Function",
                "dangerously",
            ):
                assert word not in text, f"{name}: {word}"
            assert not re.search(r"https?://", text), name
