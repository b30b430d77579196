"""An MCP server with good and bad tools: `python mcp_samples.py [PORT]`, over standard input or HTTP."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from typing import Any, Literal

server: Any = import_module("mcp.server").MCPServer("samples")


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool(name="say-it")
def say(text: str, how: Literal["loud", "soft"] = "soft") -> str:
    """Say something."""
    return text.upper() if how == "loud" else text


@server.tool()
def environment(name: str) -> str:
    """Read an environment variable."""
    return os.environ.get(name, "unset")


@server.tool()
def picture():
    """Draw."""
    return import_module("mcp.types").ImageContent(type="image", data="AAAA", mime_type="image/png")


@server.tool()
def unruly(kind: str) -> str:
    """Do something that a tool should not."""
    if kind == "hang":
        time.sleep(60)
    if kind == "die":
        os._exit(3)
    if kind == "raise":
        raise ValueError("no such thing")
    return "y" * 3_000_000


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
