"""Chunked scores against full logits and autograd, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.policy import logprobs as module
from coterie.policy.head import Head, LogitTransform
from coterie.policy.logprobs import OutputFlags, TokenOutputs, chunked_scores

TEMPERATURE = 0.7
EVERYTHING = OutputFlags(entropy_gradient=True)


@pytest.fixture(autouse=True)
def _many_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module, "_BLOCK", 22)


def parts(rows: int = 7, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    maker = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=maker, dtype=torch.float64)).to(dtype).requires_grad_()

    return draw(rows, 5), draw(11, 5), draw(11) if bias else None, torch.randint(11, (rows,), generator=maker)


def full(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> TokenOutputs:
    logs = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) / TEMPERATURE, -1)
    chances = logs.exp()
    picked = logs.gather(1, targets[:, None])[:, 0]
    return TokenOutputs(
        logprobs=picked,
        entropies=-(chances * logs).sum(-1),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_of_both_outputs_are_those_of_full_logits(bias):
    hidden, weight, offset, targets = parts(bias=bias)
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    outputs = chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=EVERYTHING)
    want = full(hidden, weight, offset, targets)
    for name in ("logprobs", "entropies"):
        torch.testing.assert_close(getattr(outputs, name), getattr(want, name))
    pull = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for first, second in ((pull[0], pull[1]), (0 * pull[0], pull[1]), (pull[0], 0 * pull[1])):
        grads = [
            torch.autograd.grad(
                (first * scores.logprobs + second * scores.entropies).sum(),
                leaves,
                retain_graph=True,
                allow_unused=True,
            )
            for scores in (outputs, want)
        ]
        for got, expected in zip(*grads, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "transform", [LogitTransform(0.25), LogitTransform(1.0, 3.0), LogitTransform(1 / 8, 0.7)], ids=str
)
def test_what_a_model_does_to_its_logits_is_in_values_and_gradients(transform: LogitTransform) -> None:
    hidden, weight, offset, targets = parts()
    logits = torch.nn.functional.linear(hidden, weight, offset) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    torch.testing.assert_close(Head(_Linear(weight, offset), transform)(hidden), logits)
    logs = torch.log_softmax(logits / TEMPERATURE, -1)
    expected = logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
    scores = chunked_scores(
        hidden, weight, offset, targets, temperature=TEMPERATURE, flags=EVERYTHING, transform=transform
    )
    pull = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for logprobs, entropies in (expected, (scores.logprobs, scores.entropies)):
        torch.testing.assert_close(logprobs, expected[0])
        torch.testing.assert_close(entropies, expected[1])
        gradients.append(
            torch.autograd.grad((pull[0] * logprobs + pull[1] * entropies).sum(), (hidden, weight, offset))
        )
    torch.testing.assert_close(gradients[1], gradients[0])


class _Linear:
    """A head of given tensors."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, states: Tensor) -> Tensor:
        return torch.nn.functional.linear(states, self.weight, self.bias)


def test_a_loss_of_entropies_alone_has_their_gradient():
    hidden, weight, offset, targets = parts()
    outputs = chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=EVERYTHING)
    grads = [
        torch.autograd.grad(scores.entropies.sum(), hidden)[0]
        for scores in (outputs, full(hidden, weight, offset, targets))
    ]
    torch.testing.assert_close(*grads)


def test_finite_differences():
    hidden, weight, offset, targets = parts(3)

    def scores(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        outputs = chunked_scores(*leaves, targets, temperature=TEMPERATURE, flags=EVERYTHING)
        return outputs.logprobs, outputs.entropies

    assert torch.autograd.gradcheck(scores, (hidden, weight, offset))


def test_unless_asked_entropies_have_no_gradient_and_nothing_more_is_computed():
    hidden, weight, offset, targets = parts()
    flags = OutputFlags(entropy=True)
    outputs = chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=flags)
    logprobs, entropies = outputs.logprobs, outputs.entropies
    want = full(hidden, weight, offset, targets)
    assert not entropies.requires_grad
    torch.testing.assert_close(entropies, want.entropies)
    torch.testing.assert_close(
        torch.autograd.grad(logprobs.sum(), hidden)[0], torch.autograd.grad(want.logprobs.sum(), hidden)[0]
    )
    bare = chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=OutputFlags())
    assert bare.entropies.tolist() == [0] * 7


def test_log_probs_do_not_depend_on_what_else_is_asked_for():
    hidden, weight, offset, targets = parts(dtype=torch.float32)
    variants = [
        chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=flags)
        for flags in (OutputFlags(), OutputFlags(entropy=True), EVERYTHING)
    ]
    grads = [torch.autograd.grad(outputs.logprobs.sum(), hidden)[0] for outputs in variants]
    assert all(torch.equal(variants[0].logprobs, other.logprobs) for other in variants)
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])


def test_bfloat16_states_give_float32_scores_and_finite_gradients():
    hidden, weight, offset, targets = parts(dtype=torch.bfloat16)
    outputs = chunked_scores(hidden, weight, offset, targets, temperature=TEMPERATURE, flags=EVERYTHING)
    assert {outputs.logprobs.dtype, outputs.entropies.dtype} == {torch.float32}
    (outputs.logprobs.sum() + outputs.entropies.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert torch.isfinite(hidden.grad).all()


def test_no_tokens_give_no_scores():
    hidden, weight, offset, _ = parts(0)
    outputs = chunked_scores(
        hidden, weight, offset, torch.zeros(0, dtype=torch.int64), temperature=1.0, flags=EVERYTHING
    )
    assert outputs.logprobs.shape == outputs.entropies.shape == (0,)
    (outputs.logprobs.sum() + outputs.entropies.sum()).backward()
    assert weight.grad.abs().sum() == 0
