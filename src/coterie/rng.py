"""Counter-based randomness: no global generator, nothing to save.

Every uniform number is a function of (run seed, policy version, prompt id, sample, turn, token index), so a token
depends on its logits and its counters only, never on what else is in the batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import numpy as np

from coterie.types import SampleKey


def generator(*counters: str | int) -> np.random.Generator:
    """An independent generator named by its counters: Philox keyed by their BLAKE2 hash."""
    text = "\x1f".join(f"{type(counter).__name__}:{counter}" for counter in counters)
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def uniforms(key: SampleKey, count: int) -> np.ndarray:
    """[count] float64 in [0, 1): number i decides token i of the turn. A longer stream starts with the shorter."""
    return generator("sample", key.seed, key.version, key.prompt, key.sample, key.turn).random(count)


def seed_of(key: SampleKey) -> int:
    """Seed for an engine that knows seeds alone: 62 bits of the key's random stream."""
    return int(generator("seed", *asdict(key).values()).integers(1 << 62))
