"""Growth curves: what is asked of each point, the ideal line, and a real point of a tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.peers import growth, growth_step
from benchmarks.peers.growth import Point
from benchmarks.peers.growth_step import Sizes
from coterie.errors import CoterieError
from coterie.types import StopReason
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_model("smollm", dtype=torch.float32).save_pretrained(place)
    return str(place)


def point(x, tokens, **values):
    sizes = Sizes(prompts=1, group_size=1, prompt=tokens - 1, completion=1)
    point = {"generate": 1.0, "update": 1.0, "loaded": 10, "generate_peak": 20, "peak": 30}
    return Point(x=x, sizes=sizes, **(point | values))  # ty: ignore[invalid-argument-type]


def test_sizes_count_each_prompt_once():
    sizes = Sizes(prompts=3, group_size=4, prompt=10, completion=5)
    assert (sizes.rollouts, sizes.generated, sizes.tokens) == (12, 60, 90)


@pytest.mark.parametrize("quick", [True, False])
def test_each_curve_moves_one_size_only(quick):
    names = ("prompts", "group_size", "prompt", "completion")
    for curve, moving in zip(growth.curves(quick), names, strict=True):
        assert len(curve.xs) == len(curve.sizes) >= 3
        assert sorted(set(curve.xs)) == list(curve.xs)
        for name in names:
            values = {getattr(sizes, name) for sizes in curve.sizes}
            assert (len(values) > 1) == (name == moving)


def test_ideal_follows_the_tokens_and_memory_stays():
    points = [point(1, 10, generate=2.0), point(2, 30, generate=9.0, peak=40)]
    assert growth.ideal(points, "generate") == [2.0, 6.0]
    assert growth.ideal(points, "peak") == [30.0, 30.0]


def test_exponent_of_linear_and_quadratic_growth():
    assert growth.exponent([point(1, 10), point(2, 20, update=2.0)], "update") == pytest.approx(1)
    assert growth.exponent([point(1, 10), point(2, 20, update=4.0)], "update") == pytest.approx(2)


def test_a_step_trains_on_every_token(folder):
    policy = growth_step.load_policy(folder, "float32")
    sizes = Sizes(prompts=2, group_size=4, prompt=5, completion=3)
    asked = growth_step.requests(sizes, policy.head.weight.shape[0])
    turns = growth_step.engine_for(policy, sizes).generate(asked, growth_step.sampling(sizes.completion))
    assert {(len(turn.tokens), turn.stop_reason) for turn in turns} == {(3, StopReason.LENGTH)}
    packed = growth_step.packed(asked, turns)
    assert sum(len(batch.tokens) for batch in packed) == sizes.tokens
    assert sum(len(batch.targets) for batch in packed) == sizes.generated
    before = policy.head.weight.detach().clone()
    growth_step.learner_for(policy).update([packed])
    assert not torch.equal(before, policy.head.weight)


def test_run_writes_table_record_and_pictures(folder, tmp_path, monkeypatch, capsys):
    quick = growth.curves(True)[0]
    small = tuple(Sizes(prompts=n, group_size=2, prompt=4, completion=3) for n in (1, 2))
    curve = growth.Curve(name="rollouts", title=quick.title, axis=quick.axis, sizes=small, xs=(2, 4))
    monkeypatch.setattr(growth, "curves", lambda quick: (curve,))
    monkeypatch.setattr(growth, "use_threads", lambda: 1)  # this process has other tests to run
    real = growth.measure
    monkeypatch.setattr(growth, "measure", lambda x, sizes: real(x, sizes, folder))
    growth.run(tmp_path / "out", True)
    printed = capsys.readouterr().out
    assert "| rollouts | tokens | generate s |" in printed
    assert (tmp_path / "out" / "growth.md").read_text() in printed
    record = json.loads((tmp_path / "out" / "growth.json").read_text())["curves"]["rollouts"]
    assert [row["x"] for row in record] == [2, 4]
    assert all(0 < row["loaded"] <= row["generate_peak"] <= row["peak"] for row in record)
    assert (tmp_path / "out" / "growth_rollouts.png").read_bytes().startswith(b"\x89PNG")


def test_a_point_that_fails_says_why(tmp_path):
    with pytest.raises(CoterieError, match=r"exit code 1: .*the folder .*absent does not exist"):
        growth.measure(1, Sizes(prompts=1, group_size=2, prompt=4, completion=2), str(tmp_path / "absent"))
