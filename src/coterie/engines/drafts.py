"""Drafts: guesses of what a sequence will say, from what was said at the same prompt before.

A pass checks the guesses of a row beside its newest token. The token at each place is drawn with the uniform number of
that place, as it would be without a draft; a guess is accepted where it is the token drawn. So the text is the same.

Which guesses are made depends on tokens alone, never on a clock, so that a re-run repeats every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from coterie.engines.attempt_history import CONTEXT, AttemptHistory
from coterie.engines.sequence import SampledSequence, attempt_of
from coterie.types import SampleKey

ORDERS = (CONTEXT, 4, 2)
"""Lengths of the contexts that guesses follow; the longest that occurred before is taken."""
WIDTH = 8
"""Most guesses of a row in a pass."""
MOST_CONTEXTS = 1 << 18
"""Contexts kept in a session, about 60 MiB; later ones are not learnt."""
PASS_TOKENS, ROW_TOKENS = 20.0, 1.0
"""Cost of a pass and of each of its rows, in tokens: about what a CPU takes (`python -m benchmarks.drafts --cost`)."""
SAFETY = 2.0
"""Guesses are made if they save this many times their cost, since another machine has other costs."""

Kind = tuple[int, int, int]
"""Guesses that are alike: order of the context, times it occurred, share of them that the guess followed."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """Guesses of a sequence's next tokens."""

    tokens: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Guess:
    """The token that most often followed a context."""

    token: int
    followed: int
    """Times that it did."""
    occurred: int
    """Times that the context occurred."""
    order: int
    """Length of the context."""

    @property
    def kind(self) -> Kind:
        return self.order, min(self.occurred.bit_length(), 5), 4 * self.followed // self.occurred


class NgramIndex:
    """Counts of the tokens that followed each context of `ORDERS` in the texts of one prompt.

    Contexts are kept by their hash: it is the same in every process, and a collision costs a wrong guess.
    """

    def __init__(self) -> None:
        self._counts: dict[int, dict[int, int]] = {}

    def add(self, tokens: Sequence[int], start: int) -> int:
        """Count the tokens from place `start` on, each after those before it; returns the number of new contexts."""
        before = len(self._counts)
        for end in range(start, len(tokens)):
            for order in ORDERS:
                if order <= end:
                    followers = self._counts.setdefault(hash(tuple(tokens[end - order : end])), {})
                    followers[tokens[end]] = followers.get(tokens[end], 0) + 1
        return len(self._counts) - before

    def guess(self, context: Sequence[int]) -> Guess | None:
        """What most often followed the longest known end of a context; None where none is known."""
        for order in ORDERS:
            followers = self._counts.get(hash(tuple(context[-order:]))) if order <= len(context) else None
            if followers:
                token = max(followers, key=lambda token: (followers[token], -token))
                return Guess(token, followers[token], sum(followers.values()), order)
        return None


class Acceptance:
    """Share of guesses that were right, by their kind.

    Begins at the share that the counts themselves say, with the weight of `_PRIOR` guesses.
    """

    _PRIOR = 4.0

    def __init__(self) -> None:
        self._right: dict[Kind, int] = {}
        self._made: dict[Kind, int] = {}

    def probability(self, guess: Guess) -> float:
        """Chance that a guess is right."""
        prior = self._PRIOR * guess.followed / (guess.occurred + 0.5)
        return (self._right.get(guess.kind, 0) + prior) / (self._made.get(guess.kind, 0) + self._PRIOR)

    def count(self, kind: Kind, *, right: bool) -> None:
        """Count a guess that was checked."""
        self._made[kind] = self._made.get(kind, 0) + 1
        self._right[kind] = self._right.get(kind, 0) + right


def worth(rows: int) -> float:
    """Chance from which a guess is worth its cost in a pass of so many rows.

    A token without drafts costs its share of the pass, its row and itself. A guess that is right saves that; each costs
    one token.

    >>> [round(worth(rows), 2) for rows in (1, 4, 16, 64)]
    [0.09, 0.29, 0.62, 0.86]
    """
    return SAFETY * rows / (PASS_TOKENS + (1 + ROW_TOKENS) * rows)


class Drafts:
    """Guesses for the live sequences of a session, from the group's other attempts and from earlier ones.

    Args:
        history: attempts of earlier steps.
        stop_ids: tokens after which there is nothing to guess.

    Attributes:
        guessed: guesses checked since the start.
        accepted: tokens that came by them, each of which saved a row's place in a pass.
    """

    def __init__(self, history: AttemptHistory, stop_ids: AbstractSet[int]) -> None:
        self.history, self.stop_ids = history, stop_ids
        self.guessed = self.accepted = 0
        self.clear()

    def clear(self) -> None:
        """Forget the session; the next begins with the history alone."""
        self._acceptance = Acceptance()
        self._indices: dict[str, NgramIndex] = {}  # by prompt id
        self._prompts: set[tuple[str, tuple[int, ...]]] = set()  # that were read
        self._texts: dict[SampleKey, list[int]] = {}  # by attempt, as far as they were read
        self._contexts = 0

    def read(self, sequence: SampledSequence) -> None:
        """Learn what is new of a sequence: the prompt of its turn, and what was said."""
        key, prompt = sequence.request.key, sequence.prompt
        index = self._indices.get(key.prompt)
        if index is None:
            index = self._indices[key.prompt] = NgramIndex()
            for tokens in self.history.attempts(key.prompt):
                self._contexts += index.add(tokens, CONTEXT)
        text = self._texts.setdefault(attempt_of(key), [])
        start = len(text)
        if not start and (key.prompt, prompt) in self._prompts:
            start = len(prompt)
        self._prompts.add((key.prompt, prompt))
        text += prompt[len(text) :]
        text += sequence.tokens[len(text) - len(prompt) :]
        if self._contexts < MOST_CONTEXTS:
            self._contexts += index.add(text, start)

    def guesses(self, live: Sequence[SampledSequence]) -> list[Draft]:
        """A draft for each row; most are empty where little repeats."""
        least = worth(len(live))
        return [self._draft(sequence, least) for sequence in live]

    def _draft(self, sequence: SampledSequence, least: float) -> Draft:
        draft, probability = Draft(), 1.0
        index, text = self._indices[sequence.request.key.prompt], self._texts[attempt_of(sequence.request.key)]
        context = text[-CONTEXT:]
        for _ in range(min(WIDTH, sequence.sampling.max_tokens - len(sequence.tokens) - 1)):
            guess = index.guess(context)
            if guess is None:
                break
            probability *= self._acceptance.probability(guess)
            if probability < least:
                break
            draft.tokens.append(guess.token)
            draft.kinds.append(guess.kind)
            if guess.token in self.stop_ids:
                break
            context = [*context[1 - CONTEXT :], guess.token]
        return draft

    def judge(self, draft: Draft, sampled: Sequence[int]) -> None:
        """Learn from what was said in place of the guesses: those that were right, and the first that was not."""
        self.guessed += len(draft.tokens)
        self.accepted += len(sampled) - 1
        for guess, kind, token in zip(draft.tokens, draft.kinds, sampled, strict=False):
            self._acceptance.count(kind, right=guess == token)
