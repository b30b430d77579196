"""Sampling through a model's own forward pass and cache, for models that the packed path cannot compute.

Rows that are decoded together have prompts of equal length, so that nothing is padded: layers that carry a state along
the sequence would take padding for text. Each distinct prompt is computed once for all its rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coterie.algo.streams import uniforms
from coterie.engines.base import Quorum, Request, Sampling, TextCodec
from coterie.engines.embedded import _Row, _Session
from coterie.engines.kv import KVPool
from coterie.policy.model import Policy
from coterie.policy.path import PlainDecoder


class PlainSession(_Session):
    """One `generate` call: rows of one prompt length after another, in the order of the requests.

    Args:
        slots: how many sequences are decoded at once.
    """

    def __init__(
        self,
        policy: Policy,
        codec: TextCodec,
        slots: int,
        requests: Sequence[Request],
        sampling: Sampling,
        quorum: Quorum | None = None,
    ) -> None:
        super().__init__(policy, codec, KVPool(slots, 0), requests, sampling, None, quorum)
        self.rows = PlainDecoder(policy.runner)

    @property
    def has_room(self) -> bool:
        return not self.live

    def _admit(self) -> None:
        """Fill the slots with the first request that waits and others with as long a prompt; sample a token of each."""
        length = len(self.waiting[-1][1].prompt_tokens)
        alike = [pair for pair in reversed(self.waiting) if len(pair[1].prompt_tokens) == length]
        chosen = dict(alike[: self.pool.slots])
        self.waiting = [pair for pair in self.waiting if pair[0] not in chosen]
        self.live = [
            _Row(index=index, request=request, uniforms=uniforms(request.key, self.sampling.max_tokens))
            for index, request in chosen.items()
        ]
        prompts = {request.prompt_tokens: None for request in chosen.values()}
        number = {prompt: row for row, prompt in enumerate(prompts)}
        device = self.policy.device
        copies = torch.tensor([number[row.request.prompt_tokens] for row in self.live], device=device)
        self.rows = PlainDecoder(self.policy.runner)
        logits = self.rows.prefill(torch.tensor(list(prompts), device=device))
        self.rows.select(copies)
        self._extend(self.live, logits[copies])
        self._retire()

    def _decode(self) -> None:
        newest = torch.tensor([row.tokens[-1] for row in self.live], device=self.policy.device)
        self._extend(self.live, self.rows.step(newest))
        self._retire()

    def _retire(self) -> None:
        """Take finished rows out, and with them what the cache keeps of them."""
        staying = [slot for slot, row in enumerate(self.live) if row.reason is None]
        if len(staying) == len(self.live):
            return
        for row in self.live:
            if row.reason is not None:
                self._finish(row)
        if staying:
            self.rows.select(torch.tensor(staying, device=self.policy.device))
        self.live = [self.live[slot] for slot in staying]
