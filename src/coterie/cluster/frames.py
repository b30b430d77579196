"""Messages between a run and its services: JSON behind four bytes of length, on a stream socket; no pickle."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from coterie.engines.base import Request, Sampling
from coterie.types import SampleKey, StopReason, Turn

LENGTH = struct.Struct("!I")
LONGEST = 1 << 30
"""Bytes of a message; a longer one is none."""
_CHUNK = 1 << 18


class BrokenStreamError(Exception):
    """The other end closed the stream, wrote something else, or did not write in time."""


class Frames:
    """One end of the stream.

    Args:
        stream: a connected socket; closed with this.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream, self._received = stream, bytearray()

    def send(self, message: Mapping[str, Any], seconds: float | None = None) -> None:
        """Write a message; None waits as long as it takes.

        Raises:
            BrokenStreamError: the other end is gone, or did not read for so many seconds.
        """
        data = json.dumps(message).encode()
        try:
            self._stream.settimeout(seconds)
            self._stream.sendall(LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise BrokenStreamError(_reason(error, seconds)) from error

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """Read the next message; None waits as long as it takes.

        Raises:
            BrokenStreamError: the stream ended, or no whole message came for so many seconds.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while (data := self._next()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            try:
                if left is not None and left <= 0:
                    raise TimeoutError
                self._stream.settimeout(left)
                chunk = self._stream.recv(_CHUNK)
            except OSError as error:
                raise BrokenStreamError(_reason(error, seconds)) from error
            if not chunk:
                raise BrokenStreamError("closed its stream")
            self._received += chunk
        try:
            message = json.loads(data)
        except ValueError as error:
            raise BrokenStreamError(f"wrote a message that is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise BrokenStreamError(f"wrote {message!r:.60}, expected a JSON object")
        return message

    def _next(self) -> bytes | None:
        """The first whole message that has been read, taken out."""
        if len(self._received) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._received)
        if length > LONGEST:
            raise BrokenStreamError(f"began a message of {length} bytes, expected at most {LONGEST}")
        end = LENGTH.size + length
        if len(self._received) < end:
            return None
        data = bytes(self._received[LENGTH.size : end])
        del self._received[:end]
        return data

    def close(self) -> None:
        self._stream.close()


def _reason(error: OSError, seconds: float | None) -> str:
    return f"did not answer within {seconds:g} s" if isinstance(error, TimeoutError) else "closed its stream"


def packed_request(request: Request) -> dict[str, Any]:
    """A request as JSON."""
    return {
        "key": asdict(request.key),
        "prompt_tokens": request.prompt_tokens,
        "may_continue": request.may_continue,
    }


def request_of(row: Mapping[str, Any]) -> Request:
    """The request of `packed_request`."""
    return Request(
        key=SampleKey(**row["key"]), prompt_tokens=tuple(row["prompt_tokens"]), may_continue=row["may_continue"]
    )


def packed_sampling(sampling: Sampling) -> dict[str, Any]:
    """What an engine reads of the sampling parameters, as JSON; deadline and progress are the caller's."""
    names = ("temperature", "top_p", "top_k", "max_tokens", "stop")
    return {name: getattr(sampling, name) for name in names}


def sampling_of(row: Mapping[str, Any]) -> Sampling:
    """The parameters of `packed_sampling`."""
    values: dict[str, Any] = {**row, "stop": tuple(row["stop"])}
    return Sampling(**values)


def packed_turn(turn: Turn) -> dict[str, Any]:
    """A turn as JSON; Python writes a float so that it reads the same float."""
    return {field.name: getattr(turn, field.name) for field in fields(turn)}


def turn_of(row: dict[str, Any]) -> Turn:
    """The turn of `packed_turn`."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (row | {"stop_reason": StopReason(row["stop_reason"])}).items()
    }
    return Turn(**values)
