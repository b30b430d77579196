"""Forward paths of a model: packed in one row, or each sequence through the model's own code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache

from coterie.batches.batch import Segment, unpack
from coterie.policy.attention import NAME, Layout
from coterie.policy.head import Head, LogitTransform

_CACHES = ("past_key_values", "cache_params", "state")
"""Names of the argument under which models of transformers take and return their cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Forward path of one architecture; chosen by `coterie.policy.fidelity.choose_path`."""

    kind: Literal["packed", "plain"] = "packed"
    """packed: many sequences in one row, under coterie's attention and key-value memory. plain: every sequence on its
    own, through the model's forward pass, attention and cache."""
    attention: str = NAME
    """Attention implementation that the model is set to."""
    states: Literal["decoder", "head"] = "decoder"
    """The head's input: the decoder's output, or what the model's code passes to the head."""
    transform: LogitTransform = field(default_factory=LogitTransform)
    ruled: bool = False
    """Attention scores are capped, or have sinks; see `coterie.policy.attention.ScoreRule`."""
    cached: bool = True
    """Of a plain path: tokens are sampled with the model's own cache; else the whole sequence is computed anew for each
    token."""
    positions: bool = False
    """Of a plain path with a cache: the model has to be told the position of a decoded token."""
    reason: str = ""
    """Reason why it is not packed."""


class _EarlyExit(Exception):  # noqa: N818 - it reports no error
    """Ends a forward pass at the states that were asked for."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class ModelRunner:
    """Runs a causal language model along its `Path`.

    Args:
        model: of transformers, in eval mode; its attention implementation is set.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self.model = model
        self.path = path
        self.decoder: Any = model.get_decoder()
        self.head = Head(model.get_output_embeddings(), path.transform)
        model.set_attn_implementation(path.attention)

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """The states [B, T, D] that the head is given; see `coterie.policy.model.Policy.hidden`."""
        if self.path.kind == "plain":
            return self._plain(tokens, layout.segments, self._before_head)
        if self.path.states == "head":
            inputs = {"input_ids": tokens, "position_ids": positions, "layout": layout}
            return self._before_head(lambda: self.model(**inputs, use_cache=False))
        return self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, layout=layout).last_hidden_state

    def settle(self) -> None:
        """A pass without gradient is over: give back what it has gathered of weights; here it gathers none."""

    def mid_layer_states(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """States [B, T, D] after half of the layers; of a model without a list of layers the last ones."""
        layers = getattr(self.decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) < 2:
            return self.hidden(tokens, positions, layout)
        layer = layers[len(layers) // 2 - 1]
        if self.path.kind == "plain":
            return self._plain(tokens, layout.segments, lambda run: _after(layer, run))
        return _after(layer, lambda: self.hidden(tokens, positions, layout))

    def _before_head(self, run: Callable[[], Any]) -> Tensor:
        """Run the model up to its head."""

        def stop(_head: nn.Module, given: Any) -> None:
            raise _EarlyExit(given[0])

        hook = self.head.linear.register_forward_pre_hook(stop)
        try:
            run()
        except _EarlyExit as early_exit:
            return early_exit.states
        finally:
            hook.remove()
        raise TypeError("its head is not called as a module")

    def _plain(
        self, tokens: Tensor, segments: Sequence[Segment], states: Callable[[Callable[[], Any]], Tensor]
    ) -> Tensor:
        """States [1, T, D] of a packed row whose sequences are run one by one, in the row's order."""
        parts = unpack(segments)
        states_by_group = []
        for group in parts.groups:
            ids = tokens[0][torch.from_numpy(group).to(tokens.device)]
            states_by_group.append(states(lambda ids=ids: self.model(input_ids=ids, use_cache=False)).flatten(0, 1))
        return torch.cat(states_by_group).index_select(0, torch.from_numpy(parts.order).to(tokens.device))[None]


def _after(layer: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """Output of a layer; the rest of the model is not run."""

    def stop(_layer: nn.Module, _given: Any, out: Any) -> None:
        raise _EarlyExit(out[0] if isinstance(out, tuple) else out)

    hook = layer.register_forward_hook(stop)
    try:
        return run()
    except _EarlyExit as early_exit:
        return early_exit.states
    finally:
        hook.remove()


class PlainDecoder:
    """Next-token logits of rows of equal length, through the model's own cache or, where `Path.cached` is False,
    through its forward pass over the whole rows."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        names = inspect.signature(runner.model.forward).parameters
        self._cache_name = next((name for name in _CACHES if name in names), "past_key_values")
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self._cache: Any = None
        self._tokens: Tensor | None = None

    def prefill(self, tokens: Tensor) -> Tensor:
        """Begin with prompts [n, P] of equal length; logits [n, V] after their last token."""
        return self._forward(tokens, tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [n]; logits [n, V] after it."""
        assert self._tokens is not None, "prefill comes first"
        return self._forward(tokens[:, None], torch.cat([self._tokens, tokens[:, None]], dim=1))

    def select(self, rows: Tensor) -> None:
        """Keep these rows [m] only, in this order; a row may occur several times."""
        assert self._tokens is not None, "prefill comes first"
        self._tokens = self._tokens[rows]
        if isinstance(self._cache, Cache):
            self._cache.reorder_cache(rows)
        elif self._cache is not None:
            self._cache = [None if state is None else state[rows] for state in self._cache]

    def _forward(self, newest: Tensor, whole: Tensor) -> Tensor:
        self._tokens = whole
        if not self.runner.path.cached:
            return self._run(input_ids=whole, use_cache=False)
        cache_inputs: dict[str, Any] = {} if self._cache is None else {self._cache_name: self._cache}
        if self.runner.path.positions:
            positions = torch.arange(whole.shape[1] - newest.shape[1], whole.shape[1], device=whole.device)
            cache_inputs["position_ids"] = positions.expand(newest.shape[0], -1)
        return self._run(input_ids=newest, use_cache=True, **cache_inputs)

    def _run(self, **inputs: Any) -> Tensor:
        head_inputs: list[Tensor] = []
        hook = self.runner.head.linear.register_forward_pre_hook(lambda _head, args: head_inputs.append(args[0]))
        try:
            out = self.runner.model(**inputs, **self._last_only)
        finally:
            hook.remove()
        if inputs["use_cache"]:
            self._cache = out[self._cache_name]
        return self.runner.head(head_inputs[0][:, -1])
