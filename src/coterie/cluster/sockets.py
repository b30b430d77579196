"""Sockets on which processes of this machine listen, read from /proc."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def descendants(pid: int) -> set[int]:
    """A process and all that it started, and those started.

    Args:
        pid: of the process, which is one of those returned.
    """
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    processes, waiting = {pid}, [pid]
    while waiting:
        waiting += (more := [child for child in children.get(waiting.pop(), ()) if child not in processes])
        processes.update(more)
    return processes


def open_to_others(pids: Iterable[int]) -> list[str]:
    """Addresses other than loopback on which these processes listen, as `10.0.0.1:6379 (process 12)`.

    Empty where the system has no /proc.
    """
    sockets: dict[str, str] = {}
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                address, port = _address(fields[1])
                if fields[3] == _LISTEN and not address.is_loopback:
                    sockets[f"socket:[{fields[9]}]"] = f"{address}:{port}"
    places = []
    for pid in sorted(pids):
        for file in (PROC / str(pid) / "fd").glob("*"):
            with suppress(OSError):
                if (place := sockets.get(os.readlink(file))) is not None:
                    places.append(f"{place} (process {pid})")
    return places


def _address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Address and port of a line of /proc/net/tcp: words of four bytes in the machine's order, little-endian."""
    words, _, port = text.partition(":")
    data = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    address = ipaddress.ip_address(data)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, int(port, 16)
