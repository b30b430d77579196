"""The optimizer steps as torch's AdamW does on float32 masters, in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coterie.config.optim import OptimConfig
from coterie.errors import CheckpointError, ConfigError
from coterie.policy import gradients
from coterie.policy.gradients import merge, split
from coterie.policy.optim import MasterAdamW, learning_rate

SHAPES = {"embedding": (97, 40), "norm": (33,), "odd": (7, 3, 5)}
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the 8bit extra")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 256, so that tiny tensors take several."""

    def chunks(size: int, device: torch.device) -> Iterator[slice]:
        for start in range(0, size, 256):
            yield slice(start, min(start + 256, size))

    for module in ("optim", "gradients"):
        monkeypatch.setattr(f"coterie.policy.{module}.chunks", chunks)
    assert list(gradients.chunks(5, torch.device("cpu"))) == [slice(0, 5)]


def made(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def optimizer(parameters: dict[str, nn.Parameter], **settings: Any) -> MasterAdamW:
    defaults: dict[str, Any] = {"lr": 1e-3, "max_grad_norm": 0.7, "weight_decay": 0.1} | settings
    return MasterAdamW(parameters, OptimConfig(**defaults))


def backward(parameters: dict[str, nn.Parameter], seed: int, size: float = 1.0) -> None:
    """A gradient that is some random tensor."""
    generator = torch.Generator().manual_seed(seed)
    total = sum((p * (size * torch.randn(p.shape, generator=generator)).to(p.dtype)).sum() for p in parameters.values())
    assert isinstance(total, Tensor)
    total.backward()


def test_masters_survive_the_split_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = np.array([0, 1 << 31, 0x3F808000, 0x3F818000, 0xBF808000, 0x3F807FFF, 0x3F808001, 0x7F7EFFFF], np.uint32)
    values = torch.from_numpy(np.concatenate([bits, edges]).view(np.float32))
    values = values[values.abs() < 3.3e38]  # above, the nearest bfloat16 is infinite
    high, low = torch.empty(len(values), dtype=torch.bfloat16), torch.empty(len(values), dtype=torch.int16)
    split(values.clone(), high, low)
    assert torch.equal(merge(high, low).view(torch.int32), values.view(torch.int32))
    nearest = values.to(torch.bfloat16)
    tie = (values.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(high.view(torch.int16)[~tie], nearest.view(torch.int16)[~tie])
    assert torch.equal((high[tie].float() - values[tie]).abs(), (nearest[tie].float() - values[tie]).abs())


def test_weights_that_were_never_stepped_are_their_own_masters() -> None:
    parameters = made()
    for name, master in optimizer(parameters).master_weights.items():
        assert master.dtype == torch.float32
        assert torch.equal(master, parameters[name].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_are_those_of_torch_on_full_masters(dtype: torch.dtype, parts: int) -> None:
    parameters = made(dtype)
    adamw = optimizer(parameters, lr=3e-3, decay_norms=True)
    exact = {name: nn.Parameter(master.clone()) for name, master in adamw.master_weights.items()}
    other = torch.optim.AdamW(exact.values(), betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, fused=True)
    for step in range(5):
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            backward(parameters, 10 * step + part)
            leaves = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
            backward(leaves, 10 * step + part)
            for name, leaf in leaves.items():
                assert leaf.grad is not None
                sums[name] = leaf.grad.to(exact[name].dtype) + sums.get(name, 0)
        for name, master in exact.items():
            master.grad = sums[name]
        norm = torch.nn.utils.get_total_norm(sums.values())
        scale = min(1.0, 0.7 / (float(norm) + 1e-6))
        for master in exact.values():
            assert master.grad is not None
            master.grad *= scale
        other.param_groups[0]["lr"] = 2e-3
        assert adamw.step(2e-3) == pytest.approx(float(norm), rel=1e-6)
        other.step()
        for name, master in adamw.master_weights.items():
            torch.testing.assert_close(master, exact[name].detach(), rtol=2e-6, atol=1e-8)
            assert torch.equal(parameters[name], master.to(dtype)) or dtype == torch.bfloat16
        assert all(p.grad is None for p in parameters.values())
        assert not adamw.gradients.sums


@pytest.mark.parametrize("decay_norms", [False, True])
def test_vectors_are_decayed_only_where_asked(decay_norms: bool) -> None:
    """Without a gradient direction of its own (here 0) a step is the decay alone: 1 - rate · weight_decay."""
    parameters = made(torch.float64)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    adamw = optimizer(parameters, weight_decay=0.1, decay_norms=decay_norms)
    for parameter in parameters.values():
        (0 * parameter).sum().backward()
    adamw.step(1e-2)
    for name, parameter in parameters.items():
        factor = 1 - 1e-3 if name != "norm" or decay_norms else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-12, atol=0)


def test_a_lone_bfloat16_gradient_takes_no_float32_copy() -> None:
    parameters = made()
    adamw = optimizer(parameters)
    backward(parameters, 1)
    assert {grad.dtype for grad in adamw.gradients.sums.values()} == {torch.bfloat16}
    backward(parameters, 2)
    assert {grad.dtype for grad in adamw.gradients.sums.values()} == {torch.float32}
    assert {grad.dtype for grad in adamw.take_gradients().values()} == {torch.float32}


def test_parameters_without_gradient_do_not_move() -> None:
    parameters = made()
    adamw = optimizer(parameters)
    before = parameters["odd"].detach().clone()
    backward({name: p for name, p in parameters.items() if name != "odd"}, 1)
    adamw.step(1e-2)
    assert torch.equal(parameters["odd"], before)
    assert float(adamw.state()["step/odd"]) == 0
    assert float(adamw.state()["step/norm"]) == 1


def test_no_gradient_is_no_step() -> None:
    parameters = made()
    adamw = optimizer(parameters)
    before = {name: tensor.clone() for name, tensor in adamw.state().items()}
    assert adamw.step(1.0) == 0.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in adamw.state().items())


@pytest.mark.parametrize("state", ["float32", pytest.param("8bit", marks=needs_bitsandbytes)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_state_continues_bit_for_bit(state: str, dtype: torch.dtype) -> None:
    shapes = SHAPES | {"large": (70, 101)}
    generator = torch.Generator().manual_seed(3)
    parameters = {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in shapes.items()}
    adamw = optimizer(parameters, moments=state)
    for step in range(3):
        backward(parameters, step)
        adamw.step(1e-2)
    saved = {name: tensor.clone() for name, tensor in adamw.state().items()}
    fresh = {name: nn.Parameter(torch.zeros_like(p)) for name, p in parameters.items()}
    other = optimizer(fresh, moments=state)
    other.load(saved)
    for weights in (parameters, fresh):
        backward(weights, 7)
    adamw.step(1e-2)
    other.step(1e-2)
    assert adamw.state().keys() == other.state().keys()
    for name, tensor in adamw.state().items():
        assert torch.equal(tensor, other.state()[name]), name


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_8bit_moments_step_nearly_as_full_ones_in_a_quarter_of_the_memory(dtype: torch.dtype) -> None:
    def run(state: str) -> tuple[Tensor, MasterAdamW]:
        weights = nn.Parameter(torch.zeros(300, 70, dtype=dtype))
        adamw = optimizer({"weights": weights}, moments=state, weight_decay=0.0, max_grad_norm=1e9)
        goal = torch.randn(300, 70, generator=torch.Generator().manual_seed(1))
        for _ in range(60):
            ((weights.float() - goal) ** 2).sum().backward()
            adamw.step(1e-2)
        return adamw.master_weights["weights"], adamw

    (full, _), (coarse, adamw) = run("float32"), run("8bit")
    assert float((full - coarse).norm() / full.norm()) < 0.1
    moments = {name: tensor for name, tensor in adamw.state().items() if name.startswith("exp_avg")}
    assert sum(t.numel() * t.element_size() for t in moments.values()) < 2.1 * 300 * 70


@needs_bitsandbytes
def test_another_kind_of_state_is_refused() -> None:
    def large() -> dict[str, nn.Parameter]:
        return {"large": nn.Parameter(torch.ones(70, 101, dtype=torch.bfloat16))}

    saved = optimizer(large(), moments="8bit").state()
    with pytest.raises(CheckpointError, match=r'made with optim\.moments = "8bit", the settings say "float32"'):
        optimizer(large()).load(saved)
    with pytest.raises(CheckpointError, match=r'made with optim\.moments = "float32", the settings say "8bit"'):
        optimizer(large(), moments="8bit").load(optimizer(large()).state())


def test_another_models_state_is_refused() -> None:
    saved = optimizer(made()).state()
    with pytest.raises(CheckpointError, match=r"the checkpoint has \(97, 40\) torch\.bfloat16 for embedding, expected"):
        optimizer(made(torch.float32)).load(saved)
    del saved["weight/norm"]
    with pytest.raises(CheckpointError, match="the checkpoint has nothing for norm"):
        optimizer(made()).load(saved)
    broken = {name: tensor for name, tensor in optimizer(made()).state().items() if name != "exp_avg/odd"}
    with pytest.raises(CheckpointError, match="the checkpoint has nothing for exp_avg/odd, expected 105 values"):
        optimizer(made()).load(broken)


def test_8bit_needs_the_extra_and_float32_masters() -> None:
    with pytest.raises(ConfigError, match=r"needs model\.dtype bfloat16 or float32; got float64"):
        optimizer(made(torch.float64), moments="8bit")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ConfigError, match="needs the package bitsandbytes: "):
            optimizer(made(), moments="8bit")


def test_the_schedule_warms_up_and_decays() -> None:
    config = OptimConfig(lr=1.0, warmup=2, schedule="linear")
    rates = [learning_rate(config, step, 6) for step in range(1, 7)]
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
