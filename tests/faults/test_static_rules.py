"""What no file of the package may do, read from its syntax tree; each exception is named here with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "telnetlib"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "pandas.read_pickle",
    "tempfile.mktemp",
    "signal.alarm",
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}
FLAGS = {
    ("shell", True),
    ("allow_pickle", True),
    ("verify", False),
    ("trust_remote_code", True),
    ("weights_only", False),
}
EVERYWHERE = ("0.0.0.0", "[::]")
ALLOWED = {
    ("runs/metrics.py", "time.time"): "the date of an event, for people; every deadline is on the monotonic clock",
    ("trackers.py", "time.time"): "the date of a metric, which MLflow asks for",
    ("serve/application.py", "time.time"): "the date of a model, a field of OpenAI's API",
    ("serve/replies.py", "time.time"): "the date of an answer, a field of OpenAI's API",
    ("runs/directory.py", "datetime.now"): "the date of a line, for people",
    ("benchmarks/peers/run.py", "datetime.now"): "the date of a report, for people",
    ("rewards/by_value.py", "pickle"): "a reward function on its way to a worker of this process; never from a file",
    ("rewards/by_value.py", "cloudpickle"): "writes what the line above reads",
    ("compat/trl/arguments.py", "0.0.0.0"): "TRL's default of a refused argument: nothing listens there",
    ("data/shards.py", "yaml"): "safe_load alone, which makes plain values of a data set's README.md",
}
"""(file, what) → why it is no danger."""


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return ""


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in MODULES:
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in CALLS)
        elif isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                yield dotted(node.func)
            for word in node.keywords:
                if isinstance(word.value, ast.Constant) and (word.arg, word.value.value) in FLAGS:
                    yield f"{word.arg}={word.value.value}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (address for address in EVERYWHERE if address in node.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_dangerous_is_called(file: Path) -> None:
    calls = set(findings(ast.parse(file.read_text(encoding="utf-8"))))
    name = str(file.relative_to(ROOT))
    assert not {what for what in calls if (name, what) not in ALLOWED}


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("import pickle", "pickle"),
        ("from dill import load", "dill"),
        ("eval(x)", "eval"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import yaml\nyaml.load(f)", "yaml"),
        ("run(x, shell=True)", "shell=True"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("bind(('0.0.0.0', 1))", "0.0.0.0"),
        ("load(trust_remote_code=True)", "trust_remote_code=True"),
        ("datetime.now(UTC)", "datetime.now"),
    ],
)
def test_the_rules_find_what_they_look_for(code: str, finding: str) -> None:
    assert finding in set(findings(ast.parse(code)))
