"""Text of tokens: what each of a sequence of tokens adds to the text, by the tokenizer that the run used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.data import assets
from coterie.errors import CoterieError
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.models import resolve
from coterie.text import safe_text

FILE = "tokenizer.json"
BEFORE = 6
"""Tokens decoded before a token: the first of a text may be written otherwise than one in its midst."""
LONGEST = 16
"""Tokens that may share one letter before they are shown as they are."""
BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no letter yet."""


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Decoder of a run's tokens; without a tokenizer at hand tokens are shown by their ids."""

    decode: Callable[[list[int]], str] | None = None

    def pieces(self, ids: Sequence[int], first: int, end: int) -> list[str | None]:
        """[end − first] the text that each token adds; empty for one whose letter a later one ends; None for all
        without a tokenizer."""
        if self.decode is None:
            return [None] * (end - first)
        pieces: list[str | None] = []
        start = first  # of the tokens whose text is not given yet
        for place in range(first, end):
            context = list(ids[max(0, start - BEFORE) : start])
            before = self.decode(context)
            after = self.decode([*context, *ids[start : place + 1]])
            if after.endswith(BROKEN) and place + 1 < end and place - start < LONGEST:
                pieces.append("")
                continue
            pieces.append(safe_text(after[len(before) :] if after.startswith(before) else self.decode([ids[place]])))
            start = place + 1
        return pieces


def token_texts(run: Path) -> TokenTexts:
    """The tokens' texts by the tokenizer beside a checkpoint of the run, else by that of the model it started from."""
    for folder in _folders(run):
        if (folder / FILE).is_file():
            decode = _decoder(folder / FILE)
            if decode is not None:
                return TokenTexts(decode)
    return TokenTexts()


def _folders(run: Path) -> list[Path]:
    """Folders that may hold the tokenizer, the most likely first."""
    folder = run / "checkpoints"
    folders = [folder / f"step_{step:06d}" / "model" for step in reversed(checkpoint.steps(folder))]
    try:
        model = RunDirectory.at(run).read_config().get("model")
        name = model.get("name") if isinstance(model, dict) else None
        source = resolve(str(name), run.parent, check_files=False)
    except CoterieError:
        return folders
    local = assets.locate(source.asset) if source.asset else source.folder
    return folders if local is None else [*folders, local]


def _decoder(file: Path) -> Callable[[list[int]], str] | None:
    """None for a file that the tokenizers package cannot read."""
    from tokenizers import Tokenizer  # of transformers; without torch

    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception:  # the package raises no narrower class
        return None

    def decode(ids: list[int]) -> str:
        try:
            return tokenizer.decode(ids, skip_special_tokens=False)
        except (OverflowError, TypeError):  # an id that is no token's
            return BROKEN

    return decode
