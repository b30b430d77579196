"""A run as one HTML file: the board's page with its scripts, and the records that its pages ask for.

The file needs no server and no network, and its own policy lets it reach none: it can be mailed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from coterie.board.catalog import Catalogue
from coterie.board.region_pages import spread
from coterie.errors import CoterieError, RunError
from coterie.runs import parquet
from coterie.runs.directory import find
from coterie.runs.durable import write_file
from coterie.runs.export import jsonable
from coterie.web.local_server import require

GROUPS = 24
"""Groups of a step that are included, at most."""
EMBEDDED = 400
"""Rollouts that are included, at most."""


def export(run: str | Path, runs: Path, file: Path, *, steps: int = 3) -> int:
    """Write a run as one HTML file; returns its size in bytes.

    Args:
        run: its name under `runs`, or its folder.
        steps: steps whose groups and rollouts are included, evenly spread with the first and the last.

    Raises:
        ConfigError: the packages of the extra `board` are not installed.
        RunError: there is no such run, the file exists, or it cannot be written.
    """
    require("board", "the board")
    path = find(run, runs)
    if file.exists():
        raise RunError(f"{file} exists, and an export overwrites nothing; choose another name, or delete it")
    if not file.parent.is_dir():
        raise RunError(f"{file.parent} is no folder; make it, or export elsewhere")
    data = page(dict(_records(Catalogue(path), path.resolve().name, steps))).encode()
    write_file(file, data)
    return len(data)


def answer_key(question: str, words: Mapping[str, str]) -> str:
    """The name of a question in the page; `answerKey` of board/web/base.js makes the same."""
    return "\n".join([question, *(f"{name}={words[name]}" for name in sorted(words))])


def _records(catalogue: Catalogue, name: str, steps: int) -> Iterator[tuple[str, Any]]:
    """Questions that the page asks about a run with their answers; one that cannot be answered is left out."""
    from coterie.board.routes import QUESTIONS, Answers

    answers = Answers(catalogue)

    def ask(question: str, **words: Any) -> Iterator[tuple[str, Any]]:
        texts = {key: str(value) for key, value in words.items()}
        try:
            answer = QUESTIONS[question](answers, texts)
        except CoterieError:
            return
        # Where the run lies is nobody's business who gets the file.
        yield answer_key(question, texts), {key: name if key in ("path", "root") else answer[key] for key in answer}

    yield from ask("runs")
    for question in ("run", "curves", "doctor", "regions", "prompts", "map", "parts"):
        yield from ask(question, run=name)
    with suppress(CoterieError):
        yield answer_key("damage", {"run": name}), _damage(answers, name)
    regions = answers.regions({"run": name})
    for step in regions["checkpoints"]:
        yield from ask("tree", run=name, step=step)
    stored = parquet.steps(catalogue.path(name) / "rollouts")
    chosen = [stored[-1]] if steps == 1 and stored else spread(stored, steps) if steps > 1 else []
    rows: list[dict[str, Any]] = []
    for step in reversed(chosen):
        rows += _of_step(answers, name, step)
    rows = rows[:EMBEDDED]
    listed = {
        "rows": rows,
        "next": None,
        "read": [],
        "steps": [chosen[0], chosen[-1]] if chosen else [],
        "problems": [],
    }
    yield answer_key("rollouts", {"run": name}), listed
    for step, prompt in dict.fromkeys((row["step"], row["prompt_id"]) for row in rows):
        yield from ask("group", run=name, step=step, prompt=prompt)
    for row in rows:
        yield from ask("rollout", run=name, step=row["step"], id=row["rollout_id"])


def _damage(answers: Any, name: str) -> dict[str, Any]:
    """All parts of the check of the metrics as one."""
    damaged: list[str] = []
    cursor = ""
    while cursor is not None:
        part = answers.damage({"run": name, "from": cursor})
        damaged += part["damaged"]
        cursor = part["next"]
    return {"damaged": damaged, "next": None}


def _of_step(answers: Any, name: str, step: int) -> list[dict[str, Any]]:
    """The rollouts of the first groups of a step; none where its file is damaged."""
    rows: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        page = answers.rollouts({"run": name, "first": str(step), "last": str(step), "cursor": cursor})
        rows += page["rows"]
        cursor = page["next"]
        if len({row["prompt_id"] for row in rows}) > GROUPS:
            break
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))[:GROUPS]
    return [row for row in rows if row["prompt_id"] in prompts]


def page(records: Mapping[str, Any]) -> str:
    """The page with everything in it, under a policy that runs these scripts and no other, and connects to nothing."""
    from coterie.board.routes import SCRIPTS, STYLES, WEB, html

    styles = "".join((WEB / name).read_text(encoding="utf-8") for name in STYLES)
    scripts = [(WEB / name).read_text(encoding="utf-8") for name in SCRIPTS]
    licences = (WEB / "vendor/LICENSES.txt").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{styles}</style>'
    data = _inside(json.dumps(jsonable(records), allow_nan=False))
    body = f'<script type="application/json" id="records">{data}</script>\n'
    body += "\n".join(f"<script>{script}</script>" for script in scripts)
    # In front of the first script, so that its text is in the file that is mailed.
    return html(head, f"<!--\n{re.sub('--+', '-', licences)}\n-->\n{body}")


def _hash(text: str) -> str:
    """The source of a policy that names an inline script or style by its content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inside(text: str) -> str:
    """JSON that may stand in a script element: no character of it ends one or begins a comment."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
