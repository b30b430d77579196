"""Order of prompts over epochs and curriculum stages: a pure function of the seed and the cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from coterie.config.data import CurriculumSpan, changes
from coterie.rng import generator
from coterie.types import Prompt


class PromptOrder:
    """Endless stream of prompts; each epoch is its own permutation. The cursor is the only state.

    Where prompts join and leave, the stream falls into stages with epochs of their own.

    Args:
        presence: see `CurriculumSpan`, by prompt id; who is not named is always there.
        rehearsal: share of a stage's draws that come from the prompts that have left.

    Raises:
        ValueError: at some cursor there is no prompt.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        presence: Mapping[str, tuple[int, int | None]] | None = None,
        rehearsal: float = 0.0,
    ) -> None:
        self.prompts = list(prompts)
        times = [CurriculumSpan(*(presence or {}).get(prompt.id, ())) for prompt in self.prompts]
        starts = enumerate(changes(times))
        self.stages = [_Stage(number, start, self.prompts, times, seed, rehearsal) for number, start in starts]

    def draw(self, cursor: int, count: int) -> list[Prompt]:
        """The prompts number `cursor` … `cursor + count - 1` of the endless stream."""
        return [self._stage(at).prompt(at) for at in range(cursor, cursor + count)]

    def available(self, cursor: int) -> int:
        """Number of different prompts of the stage, without those under rehearsal."""
        return len(self._stage(cursor).current.prompts)

    def stage(self, cursor: int) -> int:
        """Number of the stage, from 0."""
        return self._stage(cursor).number

    def _stage(self, cursor: int) -> _Stage:
        return next(stage for stage in reversed(self.stages) if stage.start <= cursor)


class _Stage:
    """A curriculum stage, from the cursor `start` on."""

    def __init__(
        self,
        number: int,
        start: int,
        prompts: Sequence[Prompt],
        times: Sequence[CurriculumSpan],
        seed: int,
        rehearsal: float,
    ) -> None:
        self.number, self.start = number, start
        together = list(zip(prompts, times, strict=True))
        current = [prompt for prompt, when in together if when.holds(start)]
        left = [prompt for prompt, when in together if when.past(start)]
        if prompts and not current:
            raise ValueError(f"there is no prompt to draw after {start} were drawn")
        counters = (number,) if number else ()
        self.current = _Epochs(current, "order", seed, *counters)
        self.left = _Epochs(left, "review", seed, *counters)
        self.share = Fraction(rehearsal).limit_denominator(1_000_000) if left else Fraction(0)

    def prompt(self, cursor: int) -> Prompt:
        """Prompt of a place in the stage; one in 1 / share is for rehearsal, evenly spread."""
        at = cursor - self.start
        reviewed = int(at * self.share)
        if int((at + 1) * self.share) > reviewed:
            return self.left[reviewed]
        return self.current[at - reviewed]


class _Epochs:
    """An endless stream of permutations of some prompts."""

    def __init__(self, prompts: Sequence[Prompt], *counters: str | int) -> None:
        self.prompts, self.counters = prompts, counters
        self._permutations: dict[int, list[int]] = {}

    def __getitem__(self, at: int) -> Prompt:
        epoch, place = divmod(at, len(self.prompts))
        if epoch not in self._permutations:
            drawn = generator(*self.counters, epoch).permutation(len(self.prompts)).tolist()
            self._permutations = {
                **{old: order for old, order in self._permutations.items() if old == epoch - 1},
                epoch: drawn,
            }
        return self.prompts[self._permutations[epoch][place]]
