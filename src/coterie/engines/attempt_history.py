"""History of what was said at each prompt: the newest attempts of earlier steps, for drafts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from coterie.errors import CheckpointError
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.types import Rollout

FILE = "attempts.json"
CONTEXT = 8
"""Tokens before an attempt's first that are kept with it."""
ATTEMPTS = 8
"""Newest attempts that are kept of a prompt."""
MOST_TOKENS = 1 << 20
"""Tokens that are kept in all, 4 MiB. Beyond that the prompts are forgotten that were attempted longest ago."""


class AttemptHistory:
    """Tokens of the newest attempts at each prompt; the prompt attempted longest ago comes first.

    Args:
        most_tokens: that are kept in all.
    """

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self.most_tokens = most_tokens
        self._attempts: dict[str, list[array[int]]] = {}
        self._size = 0

    def attempts(self, prompt: str) -> Sequence[Sequence[int]]:
        """Of a prompt id, the oldest first: the prompt's last `CONTEXT` tokens, then the conversation from there on."""
        return self._attempts.get(prompt, ())

    def remember(self, rollouts: Iterable[Rollout]) -> None:
        """Add the attempts of a step."""
        for rollout in rollouts:
            turns = [turn for turn in rollout.turns if turn.tokens]
            if turns:
                start = max(0, len(turns[0].prompt_tokens) - CONTEXT)
                self._add(rollout.context.prompt_id, (*turns[-1].prompt_tokens, *turns[-1].tokens)[start:])

    def _add(self, prompt: str, tokens: Iterable[int]) -> None:
        attempts = self._attempts.pop(prompt, [])
        attempts.append(array("i", tokens))
        self._size += len(attempts[-1]) - sum(map(len, attempts[:-ATTEMPTS]))
        self._attempts[prompt] = attempts[-ATTEMPTS:]
        while self._size > self.most_tokens and len(self._attempts) > 1:
            self._size -= sum(map(len, self._attempts.pop(next(iter(self._attempts)))))

    def save(self, folder: Path) -> None:
        """Write the history into a checkpoint's folder.

        Raises:
            RunError: the disk refused.
        """
        rows = [[prompt, [tokens.tolist() for tokens in attempts]] for prompt, attempts in self._attempts.items()]
        write_file(folder / FILE, json_dumps(rows).encode())

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            rows = json_loads((folder / FILE).read_bytes())
            attempts = {str(prompt): [array("i", tokens) for tokens in texts] for prompt, texts in rows}
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"cannot read the earlier attempts in {folder}: {error}") from error
        self._attempts = attempts
        self._size = sum(len(tokens) for texts in attempts.values() for tokens in texts)
