"""No test reaches a network, and all hear Ctrl-C: set before any library reads it."""

from __future__ import annotations

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts what runs in the background deaf to it, and processes hand that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
