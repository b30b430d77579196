"""A teacher that a server holds: its log-probs of the tokens that the student sampled, over HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from coterie.engines.completion_client import CompletionClient, RefusedError
from coterie.errors import DataError, EngineError, ModelError
from coterie.types import Rollout

SEQUENCES = 16
"""Of one request."""
SPELLED = 2048
"""Tokens whose spelling one request compares."""
Item = TypeVar("Item")


class HttpTeacher:
    """A teacher behind vLLM's `/v1/completions`, or that of `coterie serve`: it is sent token ids, with
    `prompt_logprobs`. Log-probs are those of temperature 1.

    Args:
        model: its name at the server; empty takes the first that the server names.

    Raises:
        EngineError: the server is not there, or has no such model.
    """

    bytes = 0
    """Memory of its weights here."""

    def __init__(self, client: CompletionClient, model: str = "") -> None:
        self.client = client
        try:
            self.card = client.card(model)
        except RefusedError as error:
            raise EngineError(
                f"the teacher at {client.base_url} does not say which models it has ({error}); start it first, and "
                f"give its key in {client.api_key_var}"
            ) from error
        self.model = str(self.card["id"])

    def require_room(self, longest: int) -> None:
        """Refuse episodes that leave no room for the one token that a server samples behind what it scores.

        Raises:
            DataError: names the settings.
        """
        room = int(self.card.get("max_model_len") or longest + 1)
        if longest >= room:
            raise DataError(
                f"an episode may have {longest} tokens, and the teacher at {self.client.base_url} scores at most "
                f"{room - 1}; start it with --max-model-len {longest + 1}, or lower sampling.max_tokens or "
                "data.max_prompt_tokens"
            )

    def require_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a server that spells a token otherwise.

        Raises:
            ModelError: names the first tokens that differ.
            EngineError: the server does not say how it spells them.
        """
        for ids in _portions(sorted(tokenizer.get_vocab().values()), SPELLED):
            body = {"model": self.model, "tokens": ids}
            try:
                theirs = self.client.persist(lambda body=body: self.client.ask("/detokenize", body)).get("prompt")
            except EngineError as error:
                raise EngineError(
                    f"the teacher at {self.client.base_url} does not spell the tokens {ids[0]} to {ids[-1]}: {error}. "
                    "Only a teacher with the student's tokenizer can score its tokens, which POST /detokenize of vLLM "
                    "and `coterie serve` shows"
                ) from error
            ours = tokenizer.decode(ids)
            if theirs != ours:
                place = next((n for n, (a, b) in enumerate(zip(str(theirs), ours, strict=False)) if a != b), 0)
                there, here = str(theirs)[place : place + 20], ours[place : place + 20]
                raise ModelError(
                    f"the teacher at {self.client.base_url} has another tokenizer: it spells the tokens {ids[0]} to "
                    f"{ids[-1]} with {there!r} where the student's has {here!r}, so its log-probs would be of other "
                    "words. Take a model of the same family; a teacher of another one can be imitated: `coterie "
                    "rejection` with it as the model, then `coterie sft`"
                )

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
        """[C] log-probs of each rollout's sampled tokens, by its id; one without tokens has none.

        Raises:
            EngineError: the server refuses, is away for longer than the client waits, or gives no log-probs.
        """
        asked = [rollout for rollout in rollouts if any(turn.tokens for turn in rollout.turns)]
        scores: dict[str, np.ndarray] = {}
        for some in _portions(asked, SEQUENCES):
            # Each turn goes on from all before it, so the last one holds them.
            whole = [(*rollout.turns[-1].prompt_tokens, *rollout.turns[-1].tokens) for rollout in some]
            for rollout, tokens, logprobs in zip(some, whole, self._score(whole), strict=True):
                first = [len(turn.prompt_tokens) for turn in rollout.turns]
                places = [
                    k for n, turn in zip(first, rollout.turns, strict=True) for k in range(n, n + len(turn.tokens))
                ]
                scores[rollout.id] = np.array([self._of(logprobs[k], tokens[k]) for k in places])
        return scores

    def _score(self, prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Any]]:
        """What the server says of each prompt's tokens, in the order asked."""
        body = {"model": self.model, "prompt": list(map(list, prompts)), "max_tokens": 1, "prompt_logprobs": 0}
        answer: Mapping[str, Any] = self.client.persist(lambda: self.client.ask("completions", body))
        choices = sorted(answer.get("choices") or (), key=lambda choice: choice["index"])
        if len(choices) != len(prompts):
            raise EngineError(
                f"the teacher at {self.client.base_url} answers {len(prompts)} prompts with {len(choices)} choices"
            )
        for prompt, choice in zip(prompts, choices, strict=True):
            logprobs = choice.get("prompt_logprobs")
            if not isinstance(logprobs, list) or len(logprobs) != len(prompt):
                raise EngineError(
                    f"the teacher at {self.client.base_url} gives no log-probs of the {len(prompt)} tokens of a "
                    "prompt; expected vLLM's prompt_logprobs, which `coterie serve` has too"
                )
            yield logprobs

    def _of(self, entry: Any, token: int) -> float:
        value = entry.get(str(token), {}).get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise EngineError(
                f"the teacher at {self.client.base_url} gives {value!r} as the log-prob of token {token}; expected a "
                "finite number"
            )
        return float(value)


def _portions(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
