"""Tools of a user, good and bad ones."""

from __future__ import annotations

import os
import time
from typing import Literal


def convert(value: float, unit: Literal["km", "mi"] = "km") -> str:
    """Convert a distance.

    Args:
        value: the number
        unit: its unit
    """
    return f"{value / 1.609:.1f} mi" if unit == "km" else f"{value * 1.609:.1f} km"


def unruly(kind: str):
    """Do something that a tool should not.

    Args:
        kind: what
    """
    if kind == "hang":
        time.sleep(60)
    if kind == "die":
        os._exit(3)
    if kind == "raise":
        raise KeyError("no such thing")
    if kind == "exit":
        raise SystemExit(2)
    if kind == "flood":
        print("x" * 3_000_000)
    if kind == "long":
        return "y" * 50_000_000
    return {"bytes": b"\x00\xff", "none": None, "object": object(), "list": [1, "a"], "nul": "a\x00b\ud800"}.get(
        kind, kind
    )


def undocumented(value):
    return value


class Shop:
    """A shop with a purse."""

    def reset(self, purse: int = 10, **columns):
        self.purse = purse

    def buy(self, price: int) -> str:
        """Buy something.

        Args:
            price: what it costs
        """
        if price < 0:
            time.sleep(60)
        if price > self.purse:
            raise ValueError("not enough money")
        self.purse -= price
        return f"{self.purse} left"

    def money(self) -> int:
        """Count the money."""
        return self.purse

    def _secret(self) -> None:
        """No tool."""


if __name__ == "__main__":
    print(convert(1.0))
