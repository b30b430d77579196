"""Memory may be refused at any moment: the gradient comes out the same; what saves memory does not change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import assert_same, credits_of, learner, rollouts
from torch.utils._python_dispatch import TorchDispatchMode

from coterie.batches.batch import Batch, halves
from coterie.batches.pack import largest, plan
from coterie.config.optim import OptimConfig
from coterie.config.schema import LoraConfig
from coterie.errors import ConfigError, DoesNotFitError
from coterie.policy import activations, memory
from coterie.policy.activations import Offload, OomSplitter, arrange, is_out_of_memory
from coterie.policy.kv import reserved
from coterie.policy.learner import Learner, UpdateContext
from coterie.policy.logprobs import OutputFlags
from tiny_models import tiny_policy

REFUSED = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


def packed(seed: int = 1, **sizes: Any) -> list[Batch]:
    items = rollouts(seed=seed, **sizes)
    return plan(
        items, credits_of(items), loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=False
    )


class Refuse(TorchDispatchMode):
    """Memory is refused at the n-th operation, of the forward or the backward pass; later ones go through."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError(REFUSED)
        return func(*args, **kwargs or {})


def refusing(learner: Learner, *moments: int) -> None:
    """The learner's k-th attempt at a part is refused memory at operation `moments[k]` (0: never)."""
    inner, left, modes = learner._backward_part, list(moments), []

    def attempt(*args: Any) -> Any:
        modes.append(Refuse(left.pop(0) if left else 0))
        with modes[-1]:
            return inner(*args)

    learner._backward_part = attempt  # ty: ignore[invalid-assignment]


@pytest.fixture(autouse=True)
def quick_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes longer than a tiny gradient."""
    monkeypatch.setattr("coterie.policy.activations.release", lambda: None)


def operations(batch: Batch) -> int:
    """How many operations a forward and backward pass of the tiny learner takes."""
    learner, count = small(), Refuse(0)
    with count:
        learner._backward_part(batch, UpdateContext(), learner.objective, set())
    return -count.left


def small() -> Learner:
    return learner(tiny_policy(num_hidden_layers=1))


def test_memory_refused_anywhere_leaves_the_same_gradient() -> None:
    (batch,) = packed(prompts=2, size=2)
    want = small().gradient([batch, batch])
    total = operations(batch)
    assert total > 200
    learner = small()
    part = learner._backward_part
    for moment in range(1, total + 1, 2):
        learner.fitting, learner._backward_part = OomSplitter(), part
        refusing(learner, 0, moment)  # the second batch, when the sum holds the first one's gradient already
        assert_same(learner.gradient([batch, batch]), want)
        assert learner.fitting.splits == 1, moment


@pytest.mark.parametrize("seed", range(6))
def test_memory_refused_again_and_again(seed: int) -> None:
    (batch,) = packed(prompts=4, size=8)
    want = small().gradient([batch])
    moments = np.random.default_rng(seed).integers(1, operations(batch), 4).tolist()
    learner = small()
    refusing(learner, *moments)
    assert_same(learner.gradient([batch]), want, tolerance=2e-6)  # each cut rounds once more in the norms' float32
    assert learner.fitting.splits >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["smollm", "gemma3"])
def test_no_part_is_counted_twice_where_the_head_is_tied(kind: str, dtype: torch.dtype) -> None:
    (batch,) = packed()
    want = learner(tiny_policy(kind, dtype=dtype)).gradient([batch])
    for moment in (1, 40, 150, 300, 400, 450):
        trained = learner(tiny_policy(kind, dtype=dtype))
        refusing(trained, moment)
        got = trained.gradient([batch])
        for name, grad in want.items():
            error = float((got[name] - grad).norm() / grad.norm().clamp(min=1e-9))
            assert error < (3e-6 if dtype == torch.float32 else 0.05), (name, moment)


def test_with_minibatches_a_kl_and_an_adapter_nothing_else_changes() -> None:
    batches = packed(seed=4)
    lora = LoraConfig(rank=2, alpha=4)

    def made() -> Learner:
        return learner(tiny_policy(lora=lora), beta=0.2)

    want, split = made(), made()
    report = want.update([batches, batches])
    refusing(split, 300, 0, 0, 250)
    got = split.update([batches, batches])
    assert report.splits == 0
    assert got.splits == 2  # once in each minibatch; the second one's batch is cut in advance as well
    assert got.metrics == pytest.approx(report.metrics, rel=1e-6, abs=1e-9)
    for name, values in report.logprobs.items():
        np.testing.assert_allclose(got.logprobs[name], values, rtol=1e-6)
    for name, parameter in want.policy.parameters().items():
        moved, meant = split.policy.parameters()[name].detach(), parameter.detach()
        assert float((moved - meant).norm() / meant.norm()) < 1e-4


def test_scoring_is_cut_too() -> None:
    (batch,) = packed()
    learner = small()
    want = learner.score([batch])
    inner, first = learner.passes.forward, [True]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first.pop() if first else False:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(*args, **kwargs)

    learner.passes.forward = forward
    got = learner.score([batch])
    assert got.keys() == want.keys()
    for name, scores in want.items():
        np.testing.assert_allclose(got[name].logprobs, scores.logprobs, rtol=1e-12)
    assert learner.scoring.splits == 1
    assert learner.fitting.limit is None


def test_a_cut_while_an_update_scores_is_reported_with_it() -> None:
    (batch,) = packed()
    learner = small()
    inner, first = learner.passes.forward, [True]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first.pop() if first else False:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(*args, **kwargs)

    learner.passes.forward = forward
    assert learner.update([[batch], [batch]]).splits == 1
    assert (learner.scoring.splits, learner.fitting.splits) == (1, 0)


def test_a_smaller_row_is_remembered() -> None:
    (batch,) = packed()
    fitting, sizes = OomSplitter(), []

    def attempt(part: Batch, done: set[str]) -> int:
        sizes.append(len(part.tokens))
        if len(part.tokens) > 30:
            raise MemoryError
        return len(part.targets)

    assert sum(fitting.run(batch, attempt)) == len(batch.targets)
    assert fitting.limit is not None
    assert fitting.limit <= 30
    splits, sizes[:] = fitting.splits, []
    fitting.run(batch, attempt)
    assert max(sizes) <= 30
    assert fitting.splits == splits


def test_a_rollout_that_does_not_fit_is_named_with_the_remedy() -> None:
    (batch,) = packed()

    def attempt(part: Batch, done: set[str]) -> None:
        raise RuntimeError(REFUSED)

    with pytest.raises(
        DoesNotFitError, match=r"a single rollout of \d+ tokens .*can't allocate.*optim\.gradient_checkpointing"
    ):
        OomSplitter().run(batch, attempt)


def test_other_errors_pass() -> None:
    def attempt(part: Batch, done: set[str]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        OomSplitter().run(packed()[0], attempt)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))


def test_a_refused_allocation_looks_as_expected() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_halves_train_the_same_rollouts() -> None:
    (batch,) = packed(prompts=4, size=3)
    left, right = halves(batch)
    assert [*left.spans, *right.spans] == list(batch.spans)
    assert left.weights.sum() + right.weights.sum() == pytest.approx(batch.weights.sum())
    assert abs(len(left.tokens) - len(right.tokens)) < len(batch.tokens) / 2


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)])
def test_checkpointing_gives_the_same_gradient_to_the_bit(kind: str, lora: LoraConfig | None) -> None:
    (batch,) = packed()
    calls = 0
    trained = learner(tiny_policy(kind, lora=lora), gradient_checkpointing=True)
    layer = trained.policy.model.get_decoder().layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: count())

    def count() -> None:
        nonlocal calls
        calls += 1

    got, want = trained.gradient([batch]), learner(tiny_policy(kind, lora=lora)).gradient([batch])
    assert calls == 2  # once forward, once more in the backward pass
    for name, grad in want.items():
        assert torch.equal(got[name], grad), name
    trained.score([batch])
    assert calls == 3


def test_checkpointing_keeps_less() -> None:
    (batch,) = packed()

    def kept(**optim: Any) -> int:
        trained, total = learner(tiny_policy(), **optim), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained.passes.forward(trained.policy, batch, OutputFlags(entropy=True))
        return total

    assert kept(gradient_checkpointing=True) < kept() / 3


def test_memory_refused_while_recomputing() -> None:
    (batch,) = packed()
    want = small().gradient([batch])
    for moment in range(5, 500, 23):
        trained = learner(tiny_policy(num_hidden_layers=1), gradient_checkpointing=True)
        refusing(trained, moment)
        assert_same(trained.gradient([batch]), want)


def test_offload_is_for_gpus() -> None:
    with pytest.raises(ConfigError, match=r"model\.device is cpu; use optim\.gradient_checkpointing"):
        learner(tiny_policy(), activation_offload=True)


def test_offloaded_activations_come_back_and_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []
    plain: Callable[[torch.Tensor], torch.Tensor] = activations._to_main_memory
    monkeypatch.setattr(activations, "_SMALL", 16)
    monkeypatch.setattr(activations, "_to_main_memory", lambda tensor: moved.append(tensor) or plain(tensor))
    (batch,) = packed()
    trained = learner(tiny_policy())
    weight_storages = {parameter.untyped_storage().data_ptr() for parameter in trained.policy.model.parameters()}
    with Offload(trained.policy.model.parameters()):
        _, outputs = trained.passes.forward(trained.policy, batch, OutputFlags(entropy=True))
    outputs.logprobs.sum().backward()
    assert moved
    assert not weight_storages & {tensor.untyped_storage().data_ptr() for tensor in moved}
    got = trained.optimizer.take_gradients()
    other = learner(tiny_policy())
    other.passes.forward(other.policy, batch, OutputFlags(entropy=True))[1].logprobs.sum().backward()
    for name, grad in other.optimizer.take_gradients().items():
        assert torch.equal(got[name], grad)


def test_models_without_marked_layers_are_refused() -> None:
    with pytest.raises(Exception, match=r"use optim\.gradient_checkpointing = false"):
        arrange(torch.nn.Linear(2, 2), torch.device("cpu"), OptimConfig(gradient_checkpointing=True))


@pytest.mark.parametrize("budget", [40, 100, 1000])
def test_the_preflight_tries_the_largest_row_and_changes_nothing(budget: int) -> None:
    batch = largest(prompt=7, completion=5, prompts=3, group_size=4, max_tokens_per_microbatch=budget)
    items = [(len(segment.lengths), segment.prompt) for segment in batch.segments]
    assert len(batch.tokens) <= budget
    assert len(batch.tokens) == sum(prompt + 5 * count for count, prompt in items)
    assert len(batch.tokens) + 7 + 4 * 5 > min(budget, 3 * (7 + 4 * 5))
    learner = small()
    before = {name: tensor.clone() for name, tensor in learner.optimizer.state().items()}
    state = torch.get_rng_state()
    report = memory.preflight(learner, batch, sampling=1 << 30)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.optimizer.state().items())
    assert not learner.optimizer.gradients.sums
    assert report.tokens == len(batch.tokens)
    assert report.gradient == report.weights == sum(p.numel() * 8 for p in learner.policy.parameters().values())
    assert report.optimizer >= 2 * report.weights
    assert report.total > 1 << 30
    assert "GiB at most" in report.line()


def test_a_preflight_that_does_not_fit_cuts_the_run_before_it_starts() -> None:
    learner = small()
    refusing(learner, 100)
    batch = largest(prompt=7, completion=5, prompts=3, group_size=4, max_tokens_per_microbatch=100)
    report = memory.preflight(learner, batch, sampling=0)
    assert report.limit is not None
    assert f"rows are cut to {report.limit}" in report.line()
    assert learner.update([packed()]).splits == 0


def test_what_sampling_reserves_is_what_the_engine_takes() -> None:
    policy = tiny_policy(dtype=torch.float32)
    assert 5 * reserved(70) * policy.cache_bytes() == 2 * 3 * 2 * 8 * 5 * 128 * 4
