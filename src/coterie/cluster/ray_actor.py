"""What lives in a Ray actor: the same engine or learner rank that a child process serves, asked by calls of Ray."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.cluster.engine_service import Served, built, guarded

if TYPE_CHECKING:
    from coterie.policy.shared_memory import SharedWeights  # brings torch


class ServiceActor:
    """A service that answers messages of JSON; Ray calls its methods one after the other, in the order asked."""

    def __init__(self) -> None:
        self._served: Served | None = None
        self._memory: SharedWeights | None = None

    def place(self, surroundings: Mapping[str, str]) -> dict[str, Any]:
        """Move to the run's folder and log, where this node sees them; tells where this is.

        Args:
            surroundings: `folder` to work in, and the file `log` for what is printed, empty without one.
        """
        faulthandler.enable()
        with suppress(OSError):
            os.chdir(surroundings["folder"])
        return {"pid": os.getpid(), "host": os.uname().nodename, "logs": _log_to(surroundings["log"])}

    def begin(self, text: str) -> str:
        """Build what the order says, with memory of its own for the weights; the first answer.

        Args:
            text: JSON of the order.
        """
        return json.dumps(guarded(0, lambda: self._begun(json.loads(text))))

    def _begun(self, order: dict[str, Any]) -> dict[str, Any]:
        arguments = order["arguments"]
        if "weights" in arguments:
            from coterie.policy.shared_memory import SharedWeights

            self._memory = SharedWeights.laid_out(arguments["weights"]["slots"])
            arguments["weights"] = self._memory.arguments
        self._served = built(order)["built"]
        return {}

    def answer(self, text: str, weights: np.ndarray | None = None) -> str:
        """Make the calls of a message.

        Args:
            text: JSON of the message.
            weights: bytes of the weights that are read from here on, as they lie in the memory; None: those of before.
        """
        if weights is not None:
            assert self._memory is not None
            self._memory.content[:] = weights.data
        message = json.loads(text)
        return json.dumps(guarded(message["id"], lambda: self._made(message["calls"])))

    def _made(self, calls: Any) -> dict[str, Any]:
        assert self._served is not None
        return self._served.answer(calls)

    def end(self) -> None:
        """Free what it holds."""
        if self._served is not None:
            self._served.close()
            self._served = None


def _log_to(path: str) -> bool:
    """Send what this process prints to the end of a file; False where its folder is not on this node."""
    if not path or not os.path.isdir(os.path.dirname(path)):
        return False
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(Exception):  # a stream of Ray's own
            stream.flush()
        os.dup2(file, number)
        if isinstance(stream, TextIOWrapper):  # what is printed before a crash is not lost
            stream.reconfigure(line_buffering=True, errors="backslashreplace", encoding="utf-8")
    os.close(file)
    return True
