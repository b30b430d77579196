"""FlexAttention over a packed row is the plain packed attention: mask, numbers, gradient, with and without a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from coterie.batches.batch import Segment
from coterie.errors import ModelError
from coterie.policy import kernels
from coterie.policy.attention import PackedLayout, ScoreRule
from coterie.policy.kernels import compile_layers, eager
from tiny_models import KINDS, tiny_policy

CPU = torch.device("cpu")


def row(*shapes: tuple[int, tuple[int, ...]], head: int = 0) -> list[Segment]:
    """Segments one behind the other, after the head that their prompts share."""
    segments: list[Segment] = []
    start = head
    for prompt, lengths in shapes:
        segments.append(Segment(start=start, prompt=prompt, lengths=lengths, head=head))
        start += prompt + sum(lengths)
    return segments


def inputs(segments: list[Segment], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions [1, T]."""
    head = segments[0].head
    positions = list(range(head))
    for segment in segments:
        positions += range(head, head + segment.prompt)
        for length in segment.lengths:
            positions += range(head + segment.prompt, head + segment.prompt + length)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (1, len(positions)), generator=generator), torch.tensor([positions])


def visible(segments: list[Segment], size: int, window: int | None) -> torch.Tensor:
    """[size, size] by the definition: a token sees the head's, its prompt's and the earlier ones of its own run."""
    facts = np.full((3, size), -1)  # segment, run within it (0 is the prompt), position
    head = segments[0].head
    facts[:2, :head], facts[2, :head] = -2, np.arange(head)
    for number, segment in enumerate(segments):
        cursor = segment.start
        for run, length in enumerate((segment.prompt, *segment.lengths)):
            part = slice(cursor, cursor + length)
            facts[0, part], facts[1, part] = number, run
            facts[2, part] = np.arange(length) + head + (segment.prompt if run else 0)
            cursor += length
    owner, run, position = (torch.from_numpy(fact) for fact in facts)
    related = (owner[:, None] == owner) & (owner != -1) & ((run == 0) | (run[:, None] == run))
    related |= (owner == -2) & (owner[:, None] != -1)
    distance = position[:, None] - position
    return related & (distance >= 0) & (distance < (size if window is None else window))


SHAPES = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(0, 50), max_size=4).map(tuple)), min_size=1, max_size=4
)

HEADS = st.sampled_from([0, 1, 30])


@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, window=st.none() | st.integers(1, 70), head=HEADS)
def test_mask_is_the_definition_and_its_blocks_are_what_torch_finds(shapes: Any, window: int | None, head: int) -> None:
    segments = row(*shapes, head=head)
    size = kernels.FlexLayout(segments, CPU).size
    made = kernels.block_mask(segments, size, window, CPU)
    dense = create_mask(made.mask_mod, 1, 1, size, size, device="cpu")[0, 0]
    assert torch.equal(dense, visible(segments, size, window))
    expected = create_block_mask(made.mask_mod, 1, 1, size, size, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, indices = getattr(made, f"{name}_num_blocks"), getattr(made, f"{name}_indices")
        assert torch.equal(counts, getattr(expected, f"{name}_num_blocks"))
        assert torch.equal(indices, getattr(expected, f"{name}_indices"))


def states(policy: Any, segments: list[Segment], layout: Any, *, padded: bool = False) -> torch.Tensor:
    tokens, positions = inputs(segments)
    length = tokens.shape[1]
    if padded:
        tokens, positions = kernels.pad_row(tokens, positions, layout)
    return policy.hidden(tokens, positions, layout)[:, :length]


def gradients(policy: Any, segments: list[Segment], layout: Any, **how: Any) -> dict[str, torch.Tensor]:
    parameters = policy.parameters()
    out = states(policy, segments, layout, **how)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    gradients = torch.autograd.grad((out * weights).sum(), list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, gradients, strict=True) if grad is not None}


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    return float((got - want).detach().abs().max() / want.detach().abs().max())


SHAPE = ((40, (30, 5, 61)), (1, (1,)), (9, ()), (130, (17, 0, 3)))
ROW = row(*SHAPE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
@pytest.mark.parametrize(("padded", "head"), [(False, 0), (True, 0), (True, 20)])
def test_states_and_gradient_are_those_of_the_plain_layout(
    kind: str, dtype: torch.dtype, tolerance: float, padded: bool, head: int
) -> None:
    policy, segments = tiny_policy(kind, dtype=dtype), row(*SHAPE, head=head)
    want = states(policy, segments, PackedLayout(segments, CPU))
    got = states(policy, segments, kernels.FlexLayout(segments, CPU), padded=padded)
    assert apart(got, want) < tolerance
    plain = gradients(policy, segments, PackedLayout(segments, CPU))
    flexible = gradients(policy, segments, kernels.FlexLayout(segments, CPU), padded=padded)
    assert plain.keys() == flexible.keys()
    for name, grad in plain.items():
        assert apart(flexible[name], grad) < tolerance, name


@settings(max_examples=15, deadline=None)
@given(shapes=SHAPES, window=st.sampled_from([None, 1, 7, 50]), head=HEADS)
def test_any_row_gives_the_same_gradient(shapes: Any, window: int | None, head: int) -> None:
    segments = row(*shapes, head=head)
    length = inputs(segments)[0].shape[1]
    generator = torch.Generator().manual_seed(length)

    def run(layout: Any) -> list[torch.Tensor]:
        generator.manual_seed(length)
        sizes = ((1, 4, length, 8), (1, 2, length, 8), (1, 2, length, 8))
        tensors = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in sizes]
        out = layout.attend(0, *tensors, ScoreRule(0.3, window))
        upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        return [out, *torch.autograd.grad(out, tensors, upstream)]

    for got, want in zip(run(kernels.FlexLayout(segments, CPU)), run(PackedLayout(segments, CPU)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_one_mask_serves_all_layers() -> None:
    layout = kernels.FlexLayout(ROW, CPU)
    states(tiny_policy("gemma3"), ROW, layout)
    assert layout.mask(5) is layout.mask(5)
    assert set(layout._masks) == {None, 5}


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_rows_differ_by_their_masks_and_lengths_but_share_the_compiled_kernel() -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    function = torch.compile(flex_attention, backend=counter)
    for last in (61, 44, 1, 150, 300, 420):  # padded to 256 and to more
        segments = row((40, (last, 5, 30)), (3, (20,)))
        layout = kernels.FlexLayout(segments, CPU, attention=function)
        generator = torch.Generator().manual_seed(1)
        length = inputs(segments)[0].shape[1]
        query, key, value = (torch.randn(1, heads, length, 8, generator=generator) for heads in (4, 2, 2))
        got = layout.attend(0, query, key, value, ScoreRule(0.3))
        torch.testing.assert_close(got, PackedLayout(segments, CPU).attend(0, query, key, value, ScoreRule(0.3)))
    assert counter.frame_count == 2  # one length, then any length


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_compiled_layers_share_a_graph_and_keep_the_gradient(kind: str) -> None:
    torch.compiler.reset()
    policy = tiny_policy(kind)
    want = gradients(policy, ROW, PackedLayout(ROW, CPU))
    counter = CompileCounterWithBackend("aot_eager")
    compile_layers(policy, backend=counter)
    chosen = kernels.choose_kernel(policy, "flex")
    got = gradients(policy, ROW, kernels.packed_layout(ROW, CPU, chosen), padded=True)
    for name, grad in want.items():
        assert apart(got[name], grad) < 1e-6, name
    other = row((33, (90, 1)), (100, (70,)))  # another row of the same padded length
    gradients(policy, other, kernels.packed_layout(other, CPU, chosen), padded=True)
    compiled = counter.frame_count
    assert compiled == {"qwen2": 1, "gemma3": 2}[kind]  # one per kind of layer
    with eager(policy):
        states(policy, ROW, PackedLayout(ROW, CPU))
    assert counter.frame_count == compiled


def test_choice_of_kernel_says_why() -> None:
    policy = tiny_policy("gemma3")
    auto = kernels.choose_kernel(policy)
    assert (auto.name, auto.reason) == ("sdpa", "FlexAttention trains on CUDA only, this is cpu")
    assert isinstance(kernels.packed_layout(ROW, CPU, auto), PackedLayout)
    asked = kernels.choose_kernel(policy, "flex")
    assert asked.windows == (None, 5)
    assert isinstance(kernels.packed_layout(ROW, CPU, asked), kernels.FlexLayout)
    assert kernels.choose_kernel(policy, "sdpa").name == "sdpa"
    with pytest.raises(ModelError, match="expected one of auto, flex, sdpa"):
        kernels.choose_kernel(policy, "fast")
