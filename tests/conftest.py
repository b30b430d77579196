"""No test reaches a network, and all hear Ctrl-C: set before any library reads it."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts what runs in the background deaf to it, and processes hand that on.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported so far is never garbage: a run collects it twice, which took a seventh of a tiny one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning curve of a run is drawn for tests with the mark `pictures` alone: a fifth of a tiny run."""
    report = sys.modules.get("coterie.board.report")
    if report is not None and "pictures" not in request.keywords:
        monkeypatch.setattr(report, "draw_curve", lambda run, title: False)
