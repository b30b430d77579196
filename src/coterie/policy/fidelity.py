"""Choice of the forward path that computes an architecture exactly as transformers does, checked for every model.

A small random model of the same architecture (see `coterie.policy.miniature`) is asked for what training needs: several
prompts and continuations in one row, the gradient of their tokens, and tokens decoded one by one, all longer than the
windows and beyond the point where a rotary embedding changes. What the model's own forward pass says of each sequence
alone is right. The comparison is in float32, so that rounding hides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from coterie.algo.sampling import widened
from coterie.batches.batch import Segment
from coterie.errors import ModelError
from coterie.policy.attention import PackedLayout
from coterie.policy.head import LogitTransform
from coterie.policy.miniature import SWITCH, VOCABULARY, miniature
from coterie.policy.path import ModelRunner, Path, PlainDecoder

EXACT = 1e-3
"""Greatest difference of a logit, in standard deviations of the logits, and greatest relative difference of the
gradient, between two ways to compute the same in float32."""
_LENGTHS = {"p": 9, "a": 11, "b": 8, "q": 7, "c": 5}
"""Tokens of two prompts, of two continuations of the first, and of one of the second."""
_DECODED = 5
_GENTLE, _ROUNDING = 0.6, 0.02
"""Spread of the weights where differences up to the second number may be rounding that many layers blew up."""
_CHOSEN: dict[tuple[type, str, bool], Path | str] = {}
"""Choices of this process: a path, or the reason why there is none."""


def choose_path(model: Any, *, longest: int | None = None) -> Path:
    """The fastest path that is exact for this architecture.

    Args:
        model: of transformers, in eval mode.
        longest: sequences never get longer than this many tokens.

    Raises:
        ModelError: no path is exact; says why, and what would work.
    """
    _refuse_switch(model, longest)
    config_fields = model.config.to_dict()
    key = (type(model), json.dumps(config_fields, sort_keys=True, default=str), longest is not None)
    if key not in _CHOSEN:
        try:
            with _quiet_transformers():
                _CHOSEN[key] = _choose(model, longest)
        except ModelError as error:
            _CHOSEN[key] = str(error)
    chosen = _CHOSEN[key]
    if isinstance(chosen, str):
        raise ModelError(chosen)
    return chosen


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Only errors in the log of transformers: its warnings are about the small copies that are tried."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def rope_switch(config: Any) -> int | None:
    """The length in tokens beyond which the rotary embedding of the whole sequence changes; None where it does not."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (rope, *(item for item in rope.values() if isinstance(item, dict))):
        if part.get("rope_type", part.get("type")) == "longrope":
            length = part.get("original_max_position_embeddings") or config.original_max_position_embeddings
            longest = getattr(config, "max_position_embeddings", None)
            return int(length) if longest is None or length < longest else None
    return None


def _refuse_switch(model: Any, longest: int | None) -> None:
    switch = rope_switch(model.config)
    if switch is not None and (longest is None or longest > switch):
        raise ModelError(
            f"{type(model).__name__} changes its rotary embedding for a whole sequence once it is longer than {switch} "
            "tokens (longrope): tokens sampled before that point would be scored by another model than the one that "
            f"sampled them; open it with longest = {switch}, as coterie.policy.model.load does, or use a model without "
            "longrope"
        )


def _choose(model: Any, longest: int | None) -> Path:
    name, switch = type(model).__name__, SWITCH if longest is None else 4 * SWITCH
    with suppress(_CannotRunError):
        try:
            subject = miniature(model, switch=switch)
        except Exception as error:  # whatever an architecture's code raises at sizes that it does not allow
            raise _CannotRunError(str(error)) from error
        try:
            return _examine(name, subject)
        except _NotCausalError as error:
            if error.difference > _ROUNDING:
                raise
            # Layers that run many times over blow up rounding: gentler weights tell it from a difference.
            return _examine(name, miniature(model, switch=switch, spread=_GENTLE))
    with in_float32(model):  # no small model of this architecture can be made: the model itself is asked
        return _examine(name, model, packed=not _windows(model.config))


def _windows(config: Any) -> bool:
    """True if the configuration bounds attention in a way that short sequences would not show."""
    config_fields = config.get_text_config().to_dict()
    return any(value for key, value in config_fields.items() if "window" in key or key == "attention_chunk_size")


def _examine(name: str, model: Any, *, packed: bool = True) -> Path:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        reference = _Reference(name, model)
        problems = {"packed": "it has windows that a short check does not reach", "plain": ""}
        for path in _candidates(model, packed):
            try:
                exact = _exact(model, path, reference)
                return exact if path.kind == "packed" else replace(exact, reason=problems["packed"])
            except _Differs as problem:
                problems[path.kind] = str(problem)
    finally:
        model.set_attn_implementation(before or "eager")
    raise ModelError(
        f"{name} cannot be trained exactly: packed, {problems['packed']}; through its own forward pass, "
        f"{problems['plain']}; use a model that docs/models.md lists as packed or plain, such as Llama, Qwen, Gemma, "
        "Mistral or SmolLM"
    )


def _candidates(model: Any, packed: bool) -> Iterator[Path]:
    """Paths to check, the fastest first."""
    if packed:
        yield Path()
        yield Path(states="head")
    if getattr(model, "_supports_sdpa", False):
        yield Path(kind="plain", attention="sdpa", states="head")
    yield Path(kind="plain", attention="eager", states="head")


class _NotCausalError(ModelError):
    """The model's own logits of a token depend on later ones, by `difference` standard deviations."""

    def __init__(self, message: str, difference: float) -> None:
        super().__init__(message)
        self.difference = difference


class _CannotRunError(ModelError):
    """The model's own code raises an error."""


class _Differs(Exception):  # noqa: N818 - it reports no error
    """A path's numbers differ from the model's."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sequence:
    """A prompt with one continuation, and the model's own logits."""

    prompt: list[int]
    rest: list[int]
    logits: Tensor  # [T, V]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.rest


class _Reference:
    """Expected logits and gradient: the model's own code on some sequences, each alone."""

    def __init__(self, name: str, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        draw = torch.Generator().manual_seed(1)
        try:
            size = min(model.get_input_embeddings().weight.shape[0], VOCABULARY)
            part = {key: torch.randint(3, size, (count,), generator=draw).tolist() for key, count in _LENGTHS.items()}
            pairs = [(part["p"], part["a"]), (part["p"], part["b"]), (part["q"], part["c"])]
            self.sequences = [_Sequence(prompt, rest, self._logits(prompt + rest)) for prompt, rest in pairs]
            self._require_causal(name)
            self.weights = torch.randn(sum(len(sequence.rest) for sequence in self.sequences), generator=draw).to(
                self.device
            )
            self.parameters = _small_parameters(model)
            self.gradient = torch.autograd.grad(self._loss(), self.parameters, allow_unused=True)
        except ModelError:
            raise
        except Exception as error:  # whatever the architecture's code raises
            raise _CannotRunError(
                f"{name} cannot be run on token ids alone, or has no gradient ({_first_line(error)}); use a causal "
                "language model that takes input_ids and nothing else"
            ) from error

    def _logits(self, tokens: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return self._forward(tokens)

    def _forward(self, tokens: Sequence[int]) -> Tensor:
        return self.model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False).logits[0].float()

    def _require_causal(self, name: str) -> None:
        whole = self.sequences[0]
        for length in (1, len(whole.prompt), len(whole.tokens) - 3):
            difference = distance(self._logits(whole.tokens[:length]), whole.logits[:length])
            if not difference < EXACT:
                raise _NotCausalError(
                    f"{name} is not causal: the logits after a token change by {difference:.2g} standard deviations "
                    "with the tokens that follow it, so that a completion is not sampled from what is trained; use a "
                    "causal language model (an encoder such as BERT needs is_decoder = true in its config.json)",
                    difference,
                )

    def _loss(self) -> Tensor:
        logprobs = []
        for sequence in self.sequences:
            logits = self._forward(sequence.tokens)[len(sequence.prompt) - 1 : -1]
            logprobs.append(_picked(logits, torch.tensor(sequence.rest, device=self.device)))
        return (torch.cat(logprobs) * self.weights).sum()


def _small_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters whose gradient is compared: of a large model the small ones, through which all of it flows."""
    limit = 1 << 18
    trained = (weight for weight in model.parameters() if weight.is_floating_point() and weight.requires_grad)
    return [weight for weight in trained if weight.numel() <= limit]


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def distance(computed: Tensor, expected: Tensor) -> float:
    """Largest difference of two sets of logits in standard deviations; infinite where one is not finite."""
    difference = float((computed.float() - expected.float()).abs().max() / expected.float().std().clamp(min=1e-6))
    return difference if difference == difference else float("inf")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"


def _exact(model: Any, path: Path, reference: _Reference) -> Path:
    """The path with all that it needs to be exact."""
    try:
        runner = ModelRunner(model, path)
        with torch.no_grad():
            path = replace(path, transform=_transform(runner, reference))
            runner = ModelRunner(model, path)
            runner.path = replace(path, ruled=_require_packing(runner, reference))
        _require_gradient(runner, reference)
    except _Differs:
        raise
    except Exception as error:  # whatever an architecture's code raises when it is called in another way
        raise _Differs(f"it stops with {_first_line(error)}") from error
    return _decoding(runner, reference)


def _transform(runner: ModelRunner, reference: _Reference) -> LogitTransform:
    """The model's transform of its head's output, from the numbers that its configuration names."""
    expected = reference.sequences[0]
    ids = torch.tensor([expected.tokens], device=reference.device)
    layout = PackedLayout([Segment(start=0, prompt=len(expected.tokens), lengths=())], reference.device)
    states = runner.hidden(ids, torch.arange(ids.shape[1], device=reference.device)[None], layout)
    raw = runner.head.linear(states)[0].float()
    if raw.shape != expected.logits.shape:
        raise _Differs(f"its head gives {list(raw.shape)} logits where the model gives {list(expected.logits.shape)}")
    config = runner.model.config.get_text_config().to_dict()
    # Only what is named for the logits: a width that fits by chance would be another one in the real model.
    named = {key: value for key, value in config.items() if "logit" in key or key.startswith("lm_head")}
    numbers = {key: float(value) for key, value in named.items() if isinstance(value, int | float) and value > 0}
    caps = [None, *(value for key, value in numbers.items() if "cap" in key)]
    scales = [value for key, value in numbers.items() if "cap" not in key]
    choices = product(dict.fromkeys([1.0, *scales, *(1 / scale for scale in scales)]), dict.fromkeys(caps))
    errors = [(_transformed_error(raw, expected.logits, LogitTransform(*choice)), choice) for choice in choices]
    least = min(error for error, _ in errors)
    if not least < EXACT:
        raise _Differs(f"the logits of one sequence differ by {errors[0][0]:.2g} standard deviations")
    # What is right but for rounding; the identity comes first.
    return next(LogitTransform(*choice) for error, choice in errors if error <= max(2 * least, 1e-5))


def _transformed_error(raw: Tensor, expected: Tensor, transform: LogitTransform) -> float:
    return distance(transform.apply_(raw.clone()), expected)


def _row(reference: _Reference) -> tuple[Tensor, Tensor, PackedLayout]:
    """All sequences in one packed row: two continuations of the first prompt, then the second prompt with its own."""
    first, second, third = reference.sequences
    tokens = [*first.tokens, *second.rest, *third.tokens]
    prompt, start = len(first.prompt), len(first.tokens) + len(second.rest)
    positions = [*range(len(first.tokens)), *range(prompt, len(second.tokens)), *range(len(third.tokens))]
    segments = [
        Segment(start=0, prompt=prompt, lengths=(len(first.rest), len(second.rest))),
        Segment(start=start, prompt=len(third.prompt), lengths=(len(third.rest),)),
    ]
    device = reference.device
    row = torch.tensor([tokens], device=device), torch.tensor([positions], device=device)
    return *row, PackedLayout(segments, device)


def _require_packing(runner: ModelRunner, reference: _Reference) -> bool:
    """Check the packed logits; True if a layer had capped scores or sinks."""
    tokens, positions, layout = _row(reference)
    logits = runner.head(runner.hidden(tokens, positions, layout))[0]
    first, second, third = (sequence.logits for sequence in reference.sequences)
    expected = torch.cat([first, second[len(reference.sequences[1].prompt) :], third])
    difference = distance(logits, expected)
    if not difference < EXACT:
        raise _Differs(
            "packing several sequences into a row would change their logits, since its layers carry a state along the "
            "row, or attend in a way of their own"
        )
    return layout.ruled


def _require_gradient(runner: ModelRunner, reference: _Reference) -> None:
    states = runner.hidden(*_row(reference))[0]
    logprobs, start = [], 0
    for number, sequence in enumerate(reference.sequences):
        if number == 1:  # behind the first's continuation, the same prompt
            before = [len(sequence.prompt) - 1, *range(start, start + len(sequence.rest) - 1)]
            start += len(sequence.rest)
        else:
            before = [*range(start + len(sequence.prompt) - 1, start + len(sequence.tokens) - 1)]
            start += len(sequence.tokens)
        logprobs.append(
            _picked(runner.head(states[before]).float(), torch.tensor(sequence.rest, device=reference.device))
        )
    loss = (torch.cat(logprobs) * reference.weights).sum()
    gradient = torch.autograd.grad(loss, reference.parameters, allow_unused=True)
    size = apart = 0.0
    for computed, expected in zip(gradient, reference.gradient, strict=True):
        zero = torch.zeros(())
        computed, expected = (zero if grad is None else widened(grad).cpu() for grad in (computed, expected))
        size += float(expected.square().sum())
        apart += float((computed - expected).square().sum())
    difference = (apart / max(size, 1e-30)) ** 0.5
    if not difference < EXACT:
        raise _Differs(f"the gradient is off by {difference:.2g} of its size")


def _decoding(runner: ModelRunner, reference: _Reference) -> Path:
    """The path, with whether the model's own cache is exact."""
    path = runner.path
    if path.kind == "packed":
        try:
            with torch.no_grad():
                difference = _pool_distance(runner, reference)
        except Exception as error:  # as above
            raise _Differs(f"decoding stops with {_first_line(error)}") from error
        if not difference < EXACT:
            raise _Differs(f"tokens decoded one by one differ by {difference:.2g} standard deviations")
        return path
    for choice in (path, replace(path, positions=True)):
        runner.path = choice
        with torch.no_grad(), suppress(Exception):  # as above
            if _cached_distance(runner, reference) < EXACT:
                return choice
    return replace(path, cached=False)


def _pool_distance(runner: ModelRunner, reference: _Reference) -> float:
    """Distance of decoded tokens' logits from the model's own, with the engine's key-value memory."""
    from coterie.policy.kv import DecodeLayout, KVPool, PrefillLayout

    device, sequences = reference.device, reference.sequences
    first, third = sequences[0].prompt, sequences[2].prompt
    segments = [
        Segment(start=0, prompt=len(first), lengths=()),
        Segment(start=len(first), prompt=len(third), lengths=()),
    ]
    layout = PrefillLayout(segments, device)
    positions = torch.tensor([[*range(len(first)), *range(len(third))]], device=device)
    runner.hidden(torch.tensor([first + third], device=device), positions, layout)
    pool = KVPool(4, 32)
    pool.admit([0, 1], layout.kept[0])
    pool.admit([2], layout.kept[1])
    difference = 0.0
    for step in range(_DECODED):
        tokens = torch.tensor([sequence.rest[step] for sequence in sequences], device=device)
        where = torch.tensor([[len(sequence.prompt) + step] for sequence in sequences], device=device)
        states = runner.hidden(tokens[:, None], where, DecodeLayout(pool, where, int(where.max()) + 1))
        expected = torch.stack([sequence.logits[len(sequence.prompt) + step] for sequence in sequences])
        difference = max(difference, distance(runner.head(states[:, 0]), expected))
    return difference


def _cached_distance(runner: ModelRunner, reference: _Reference) -> float:
    """Distance of decoded tokens' logits with the model's own cache: one prompt for two rows, of which one leaves."""
    first, second, _ = reference.sequences
    decoder, prompt = PlainDecoder(runner), len(first.prompt)
    rows = [first, second]
    difference = distance(
        decoder.prefill(torch.tensor([first.prompt], device=reference.device)), first.logits[None, prompt - 1]
    )
    decoder.select(torch.tensor([0, 0], device=reference.device))
    for step in range(_DECODED):
        logits = decoder.step(torch.tensor([sequence.rest[step] for sequence in rows], device=reference.device))
        difference = max(
            difference, distance(logits, torch.stack([sequence.logits[prompt + step] for sequence in rows]))
        )
        if step == 1:
            decoder.select(torch.tensor([1], device=reference.device))
            rows = [second]
    return difference


@contextmanager
def in_float32(model: nn.Module) -> Generator[None]:
    """Context in which every rounded tensor of the model is float32; the way there and back changes no bit."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    rounded = [(tensor, tensor.dtype) for tensor in tensors.values() if tensor.dtype.itemsize < 4]
    for tensor, _ in rounded:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in rounded:
            tensor.data = tensor.data.to(dtype)
