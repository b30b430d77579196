"""The page docs/source.md: every file of the package with the first sentence of its docstring.

python tests/docs/source_tree.py     writes the page anew
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "coterie"
PAGE = ROOT / "docs" / "source.md"
HEAD = """# Source files

Every file of `src/coterie` with the first sentence of its docstring, written by `python tests/docs/source_tree.py`.
Imports point down a table of layers (`tests/test_layers.py`), without circles.
"""


def first_sentence(file: Path) -> str:
    """First sentence of a module's docstring, on one line, without its full stop."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence, _, _ = paragraph.partition(". ")
    return sentence.rstrip(".")


def page() -> str:
    """Markdown of the page."""
    parts = [HEAD]
    folders = sorted({file.parent for file in PACKAGE.rglob("*.py")})
    for folder in folders:
        name = folder.relative_to(PACKAGE.parent)
        init = folder / "__init__.py"
        parts.append(f"\n## {name}\n\n{first_sentence(init)}.\n\n| file | |\n| --- | --- |\n")
        for file in sorted(folder.glob("*.py")):
            if file.name != "__init__.py":
                parts.append(f"| `{file.name}` | {first_sentence(file).replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
