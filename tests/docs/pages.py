"""The pages that people read, cut into the parts that tests check."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")])
_FENCE = re.compile(r"^( *)```(\w*)[ ]*([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of the opening fence, from 1."""
    language: str
    note: str
    """What follows the language: a file name, `fragment`, `sketch`, `tree`, or nothing."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Every block of a language, on any page."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, without their common indentation."""
    source = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(source):
        indent, language, note, text = match.groups()
        yield Block(
            page=page,
            line=source.count("\n", 0, match.start()) + 1,
            language=language,
            note=note.strip(),
            text="\n".join(line.removeprefix(indent) for line in text.splitlines()) + "\n",
        )


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", prose(page), re.MULTILINE | re.DOTALL)
    assert match, f"{page.name} has no section {title!r}"
    return match[1]


def load_module(path: Path) -> ModuleType:
    """A Python file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNS = {"chain_sum": "demo", "gsm_symbolic": "gsm-symbolic", "functions": "code"}
"""Recipe by the task in the name of a run that the pages speak of."""


def write_files(folder: Path) -> None:
    """Write every block that names a file, and stand in for the runs that the pages speak of."""
    for page in PAGES:
        for block in blocks_of(page):
            if "." in block.note:
                path = folder / block.note
                assert not path.exists(), f"{block} shows {block.note}, which another page shows too"
                path.write_text(block.text, encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for task, recipe in RUNS.items():
        run = folder / f"runs/smollm2-135m-{task}-001"
        (run / "checkpoints").mkdir(parents=True)
        text = (ROOT / f"recipes/{recipe}/config.toml").read_text()
        (run / "config.toml").write_text(f'module_path = ["{ROOT}/recipes/{recipe}"]\n{text}')


DIAGNOSTICS = ROOT / "docs/diagnostics.md"
METRIC_TABLES = ("Reward", "Advantage and objective", "Update", "Sampler against learner", "Text", "Machine")


def rows(page: Path, title: str) -> list[list[str]]:
    """Cells of a section's table, without its head."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def is_documented(metric: str) -> bool:
    """A metric is explained by its name, or by one that ends in … and stands for all that begin so."""
    cells = [cells[0] for title in METRIC_TABLES for cells in rows(DIAGNOSTICS, title)]
    named = re.findall(r"`([^`]+)`", " ".join(cells))
    return any(metric == name or (name.endswith("…") and metric.startswith(name[:-1])) for name in named)
