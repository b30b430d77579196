"""What becomes of memory that was freed: kept for the next tensor, or handed back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library's allocator; None where it has no such thing (musl, other systems)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def keep_freed() -> None:
    """Have glibc keep what is freed for the next tensor instead of handing it back at once, which costs every update
    the page faults of memory that it had a moment before. Does nothing elsewhere."""
    if mallopt := _glibc("mallopt"):
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_MMAP_THRESHOLD, 1 << 25)  # larger ones on their own: kept, they would break memory into pieces


def release() -> None:
    """Give freed memory back: to the device, and on Linux to the system."""
    gc.collect()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        getattr(torch, accelerator.type).empty_cache()
    if trim := _glibc("malloc_trim"):
        trim(0)
