"""vLLM as an engine service, with the interpreter that COTERIE_VLLM names (`python3 bootstrap.py cluster` makes it)."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster_hosts import RAY, VLLM, vllm_pool
from coterie import launch
from coterie.cluster.engine_pool import EnginePool
from coterie.cluster.hosts import ChildService
from coterie.config.schema import RunConfig
from coterie.engines.base import Request, Sampling
from coterie.errors import ConfigError
from coterie.policy.model import Policy
from coterie.runs.metrics import MetricsDB
from coterie.types import SampleKey, StopReason, Turn
from engines_for_tests import Codec
from faults.world import end_state, make_world, settings

pytestmark = pytest.mark.skipif(not VLLM, reason="COTERIE_VLLM names no interpreter with vLLM")
SAMPLING = Sampling(temperature=0.9, max_tokens=12)
TYPICAL, LARGEST = 1e-5, 2e-3
"""Nats between a log-prob of vLLM in float32 and one of the model in float64: the median, and the greatest. Rounding
is well below both; the head of another version is off by 0.2."""


def requests(version: int, samples: int = 6) -> list[Request]:
    return [
        Request(key=SampleKey(seed=1, version=version, prompt=str(prompt), sample=k), prompt_tokens=prompt)
        for prompt in ((5, 9, 4), (11, 3, 8, 40, 7, 21, 60), (70,))
        for k in range(samples)
    ]


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[EnginePool, Policy]]:
    engine, policy, reports = vllm_pool()
    yield engine, policy
    engine.close()
    assert len(reports) == 1, "one service is killed below"


def plain(policy: Policy) -> Any:
    """The model in float64, with transformers' own attention."""
    network = deepcopy(policy.model).double()
    network.set_attn_implementation("eager")
    return network


def check_logprobs(policy: Policy, turns: list[Turn]) -> None:
    """Compare log-probs of the engine with those of the policy's own forward pass."""
    gaps, network = [], plain(policy)
    for turn in turns:
        ids = torch.tensor([[*turn.prompt_tokens, *turn.tokens]])
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[0, len(turn.prompt_tokens) - 1 : -1]
        logprobs = torch.log_softmax(logits / turn.temperature, -1)
        exact = logprobs.gather(1, torch.tensor(turn.tokens)[:, None])[:, 0]
        gaps.append((exact - torch.tensor(turn.sampler_logprobs, dtype=torch.float64)).abs())
    assert torch.cat(gaps).median() < TYPICAL
    assert torch.cat(gaps).max() < LARGEST


def test_log_probs_are_those_of_the_policy_after_every_update(pool: tuple[EnginePool, Policy]) -> None:
    """The head is tied, and vLLM keeps a packed copy of it; a checksum of the weights would see nothing."""
    engine, policy = pool
    first = engine.generate(requests(0), SAMPLING)
    check_logprobs(policy, first)
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(1.0 + 0.3 * torch.randn(parameter.shape, generator=generator))
    engine.commit(1)
    moved = engine.generate(requests(1), SAMPLING)
    check_logprobs(policy, moved)
    assert [turn.version for turn in moved] == [1] * len(moved)
    assert [turn.tokens for turn in moved] != [turn.tokens for turn in first]
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            parameter.copy_(before[name])
    engine.commit(0)
    again = engine.generate(requests(0), SAMPLING)
    assert [turn.tokens for turn in again] == [turn.tokens for turn in first]


def test_tokens_are_a_function_of_the_key(pool: tuple[EnginePool, Policy]) -> None:
    engine, _ = pool
    engine.commit(0)
    together = engine.generate(requests(0), SAMPLING)
    for request, turn in list(zip(requests(0), together, strict=True))[::5]:
        assert engine.generate([request], SAMPLING)[0].tokens == turn.tokens
    assert len({turn.tokens for turn in together}) > 10


def test_they_follow_the_distribution(pool: tuple[EnginePool, Policy]) -> None:
    """Every first token is drawn with the probability that its log-prob says."""
    engine, policy = pool
    engine.commit(0)
    sampling = replace(SAMPLING, max_tokens=1, temperature=0.7)
    asked = [
        Request(key=SampleKey(seed=9, version=0, prompt="p", sample=k), prompt_tokens=(5, 9, 4)) for k in range(600)
    ]
    turns = engine.generate(asked, sampling)
    with torch.inference_mode():
        logits = plain(policy)(input_ids=torch.tensor([[5, 9, 4]])).logits[0, -1].float()
    expected = torch.softmax(logits / 0.7, -1)
    counts = torch.bincount(torch.tensor([turn.tokens[0] for turn in turns]), minlength=len(expected)).double()
    likely = expected * len(turns) >= 5
    terms = (counts - expected * len(turns))[likely] ** 2 / (expected * len(turns))[likely]
    freedom = int(likely.sum()) - 1
    assert float(terms.sum()) < freedom + 5 * math.sqrt(2 * freedom)


def test_a_stop_token_ends_a_turn_and_is_its_last(pool: tuple[EnginePool, Policy]) -> None:
    engine, _ = pool
    engine.commit(0)
    turns = engine.generate(requests(0, 20), replace(SAMPLING, max_tokens=30))
    stopped = [turn for turn in turns if turn.stop_reason is StopReason.STOP]
    assert len(stopped) > 5
    for turn in turns:
        ends = [token in Codec.stop_ids for token in turn.tokens]
        assert not any(ends[:-1])
        assert ends[-1] == (turn.stop_reason is StopReason.STOP)


def test_a_killed_service_is_replaced(pool: tuple[EnginePool, Policy]) -> None:
    engine, policy = pool
    engine.commit(2)
    for request in requests(2):
        engine.submit(request, SAMPLING)
    turns: dict[int, Turn] = {}
    for _ in range(4):
        turns.update(engine.step())
    (member,) = engine._members
    assert isinstance(member.service, ChildService)
    os.kill(member.service.process.pid, signal.SIGKILL)
    shared = sorted(Path("/dev/shm").glob("psm_*"))
    while engine.unfinished:
        turns.update(engine.step())
    assert len(turns) == len(requests(2))
    check_logprobs(policy, list(turns.values()))
    assert sorted(Path("/dev/shm").glob("psm_*")) == shared, "it leaves no memory behind"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run reads, with a model that vLLM's kernels take."""
    folder = tmp_path / "world"
    make_world(folder, head_dim=32, hidden_size=64)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    return folder


def trained(world: Path, steps: int, *, lora: dict[str, Any] | None = None, lr: float, **engine: Any) -> list[Any]:
    """Metrics of each step of a run in float32.

    Args:
        engine: settings of vLLM's that are others than usual.
    """
    changed: dict[str, Any] = {
        "steps": steps,
        "engine": {"name": "vllm", "python": VLLM, "max_num_seqs": 4, **engine},
        "cluster": {"host": "processes"},
        "model": {"name": str(world / "model"), "dtype": "float32", "lora": lora},
        "optim": {"lr": lr},
    }
    run = launch.train(settings(world, world.parent / "runs", **changed))
    with closing(MetricsDB.reader(run / "metrics.sqlite")) as database:
        return [database.step_metrics(step) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("lora", "enable_lora"),
    [(None, False), ({"rank": 4, "alpha": 16}, False), ({"rank": 4, "alpha": 16}, True)],
    ids=["the whole model", "an adapter added to its base", "an adapter beside its base"],
)
def test_a_run_learns_from_it(world: Path, lora: dict[str, Any] | None, enable_lora: bool) -> None:
    """The same weights, so the mismatch of sampler and learner is that of two programs in float32."""
    steps = trained(world, 5, lora=lora, lr=1e-2, enable_lora=enable_lora)
    mismatch = [metrics["mismatch/kl"] for metrics in steps]
    assert steps[-1]["entropy"] != steps[0]["entropy"]
    assert max(map(abs, mismatch)) < 1e-6


def test_with_a_lag_it_samples_by_the_weights_of_the_step_before(world: Path) -> None:
    """What the learner's own forward pass of those weights says of the tokens, up to rounding."""
    steps = trained(world, 3, lr=1e-3, lag=1)
    assert [metrics["staleness/max"] for metrics in steps] == [0.0, 1.0, 1.0]
    assert abs(steps[0]["mismatch/kl"]) < 1e-6
    assert all(abs(metrics["mismatch/kl"]) > 1e-6 for metrics in steps[1:])


RUN = """
import os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from coterie import launch
from faults.world import make_world, settings

world = Path({world!r})
make_world(world, head_dim=32, hidden_size=64)
os.environ["PYTHONPATH"] = os.pathsep.join([{source!r}, str(world)])
sys.path.insert(0, str(world))
for host in ("processes", "ray"):
    engine, cluster = {{"name": "vllm", "max_num_seqs": 4}}, {{"host": host, "threads": 1}}
    model = {{"name": str(world / "model"), "dtype": "float32"}}
    launch.train(settings(world, world.parent / host, steps=3, engine=engine, cluster=cluster, model=model))
"""


@pytest.mark.skipif(not RAY, reason="COTERIE_RAY is not set; `python3 bootstrap.py cluster` sets it")
def test_in_a_ray_actor_it_has_the_numbers_of_a_child_process(tmp_path: Path) -> None:
    """In an interpreter that has vLLM, Ray and what a run needs, as every node of a cluster would have."""
    source = str(Path(launch.__file__).parents[1])
    code = RUN.format(paths=[source, str(Path(__file__).parents[1])], world=str(tmp_path / "world"), source=source)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.run([VLLM, "-c", code], env=kept, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stderr[-3000:]
    assert end_state(tmp_path / "processes" / "one") == end_state(tmp_path / "ray" / "one")


def test_an_engine_without_vllm_is_refused_before_anything_begins(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "runs": str(tmp_path),
            "engine": {"name": "vllm", "python": "no/such/python"},
            "cluster": {"host": "processes"},
        }
    )
    with pytest.raises(ConfigError, match="is no file; expected an interpreter that has vLLM"):
        launch.train(config)
