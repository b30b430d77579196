"""What the environment itself gave, turn by turn."""

from __future__ import annotations

import math
from collections.abc import Sequence


def environment(
    completions: Sequence[str], environment_rewards: Sequence[Sequence[float] | None] | None = None
) -> list[float | None]:
    """The sum over the turns of an episode; not applicable where there was none, as when a gold answer is scored."""
    if environment_rewards is None:
        return [None] * len(completions)
    return [None if given is None else math.fsum(given) for given in environment_rewards]
