"""Cases, rewards, prompts, ratios, tables and gradients of the peer benchmark, by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.peers import prompts, rewards
from benchmarks.peers.cases import CASES, HEADLINE, Case, select
from benchmarks.peers.gradients import compare
from benchmarks.peers.plot import draw
from benchmarks.peers.summary import Spread, ratios, spread
from benchmarks.peers.tables import cell, markdown, number
from benchmarks.peers.worker import PeerError
from coterie.data.chat import Chat
from coterie.errors import ConfigError
from tiny import tiny_tokenizer


def test_cases_cover_what_is_promised():
    assert len({case.name for case in CASES}) == len(CASES)
    assert HEADLINE.rollouts == 64
    assert {64, 512, 2048} <= {case.prompt_tokens for case in CASES}
    assert {64, 256} <= {case.max_tokens for case in CASES}
    assert {(8, 8), (4, 16)} <= {(case.prompts, case.group_size) for case in CASES}
    assert any(case.lora_rank for case in CASES)
    assert {case.kl_beta for case in CASES} == {0.0, 0.04}
    assert all(case.group_size >= 2 for case in CASES)


def test_cases_are_chosen_by_name_or_shape():
    assert select(None) == CASES
    assert [case.name for case in select("kl,headline")] == ["kl", "headline"]
    assert select("2x3:64:8")[0] == Case(name="2x3:64:8", prompts=2, group_size=3, prompt_tokens=64, max_tokens=8)


@pytest.mark.parametrize("name", ["nonsense", "2x1:64:8", "2x2:64", "0x2:64:8", "ax2:64:8"])
def test_unknown_cases_are_refused(name):
    with pytest.raises(ConfigError, match="expected some of headline"):
        select(name)


def test_rewards_are_a_rule():
    once = rewards.draw(8, 8, seed=3)
    np.testing.assert_array_equal(once, rewards.draw(8, 8, seed=3))
    assert (once != rewards.draw(8, 8, seed=4)).any()
    assert set(np.unique(once)) <= {0.0, 1.0}
    for size in (4, 8, 16):
        many = rewards.attempt_at(20_000, size, np.random.default_rng(0))
        assert rewards.zero_variance_share(many) == pytest.approx(rewards.expected_share(size), abs=0.01)


@pytest.mark.parametrize(("count", "size", "zero"), [(8, 8, 3), (4, 16, 1), (2, 8, 1), (2, 2, 1), (1, 2, 0)])
def test_every_round_has_the_expected_share_and_something_to_train(count, size, zero):
    for seed in range(20):
        assert round(rewards.zero_variance_share(rewards.draw(count, size, seed=seed)) * count) == zero


def test_advantages_are_ours_but_for_the_epsilon():
    values = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    got = rewards.advantages(values)
    np.testing.assert_allclose(got[0], (values[0] - values[0].mean()) / (values[0].std(ddof=1) + 1e-6), rtol=3e-4)
    assert (got[1] == 0).all()
    assert got[0, 1] == pytest.approx(-0.75 / (0.5 + 1e-4))


def test_prompts_are_distinct_and_about_as_long_as_wanted():
    chat = Chat(tiny_tokenizer())
    rows = [{"question": f"how many legs has {k}?", "worked": "The answer is " + "4" * k} for k in range(9)]
    short = len(chat.render(prompts._messages(rows[0], [])))
    for length in (short, short + 200):
        case = Case(name="c", prompts=4, group_size=2, prompt_tokens=length, max_tokens=4)
        built = prompts.build(case, chat, rows)
        assert len(set(built)) == 4
        assert all(length - 80 <= len(ids) <= length + 10 for ids in built)
    asked = chat.decode(built[0])
    assert asked.count("Answer:") >= 1
    assert "Question: how many legs has" in asked.rsplit("Question:", 1)[0]


def test_ratios_are_taken_within_a_round():
    # The machine was twice as slow in the second round: the ratio does not notice.
    assert ratios([10.0, 20.0], [5.0, 10.0]) == Spread(median=2.0, low=2.0, high=2.0)
    assert spread([4.0, 1.0]) == Spread(median=2.5, low=1.0, high=4.0)


def test_cells():
    assert cell(None) == "–"
    assert cell(spread([2.0]), "×") == "2×"
    assert cell(spread([1.0, 2.0, 30.0]), "×") == "2× (1–30)"
    assert number(1234.5) == "1234"


def result(**changed: Any) -> dict[str, Any]:
    side: dict[str, Any] = {
        "trl": {"tokens": 8, "generate_s": 8.0, "update_s": 6.0, "update_tokens": 8, "step_s": 14.0, "lengths": [4, 4]},
        "coterie": {"tokens": 6, "generate_s": 2.0, "step_s": 4.0, "lengths": [2, 4], "zero_variance": 0.5},
        "coterie_update": {"update_s": 2.0, "update_tokens": 8, "trained_tokens": 4},
    }
    record = {
        "case": {"name": "headline"},
        "title": "8×8",
        "prompt_lengths": [60, 64],
        "rounds": [side],
        "peak": {"coterie": 2e9, "trl": 6e9},
        "gradient": {"cosine": 0.99999, "relative_error": 1e-5, "rollouts": 16},
        "errors": [],
    }
    return record | changed


def report(*results: dict[str, Any], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    settings = {"in effect": {"gradient_checkpointing": True}}
    return {
        "date": "2026-01-01",
        "command": "coterie bench",
        "machine": "a machine",
        "model_name": "m",
        "dtype": "bfloat16",
        "threads": 2,
        "rounds": 1,
        "notes": list(notes),
        "sides": {
            "coterie": {"versions": {"torch": "2"}},
            "trl": {"versions": {"trl": "1.16.0"}, "settings": settings},
        },
        "cases": list(results),
    }


def test_the_table_says_what_was_measured():
    text = markdown(report(result(), notes=("without vLLM: no network",)))
    assert "| case | what | coterie | TRL | better than TRL |" in text
    assert "| 8×8 | generation, tok/s | 3 | 1 | 3× |" in text
    assert "|  | update, same rollouts, s | 2 | 6 | 3× |" in text
    assert "|  | update, same rollouts, tok/s | 4 | 1.33 | 3× |" in text
    assert "|  | whole step, s | 4 | 14 | 3.5× |" in text
    assert "|  | peak memory, GB | 2 | 6 | 3× |" in text
    assert "cosine 0.999990000, relative error 1.00e-05" in text
    assert "50% of the groups without variance; 50% of the tokens trained" in text
    assert "Note: without vLLM: no network" in text
    assert "TRL's in effect: `gradient_checkpointing` True" in text


def test_a_failed_case_is_told_not_hidden():
    failed = result(rounds=[], errors=["the trl worker was killed"])
    del failed["gradient"], failed["peak"]
    text = markdown(report(result(), failed))
    assert "8×8: the trl worker was killed" in text
    assert json.dumps(report(failed))


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert draw(report(result()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert not draw(report(result(rounds=[])), tmp_path / "none.png")


def write(path: Any, **arrays: list[float]) -> Any:
    save_file({name: np.array(values, dtype=np.float32) for name, values in arrays.items()}, path)
    return path


def test_gradients_are_compared_over_all_parameters(tmp_path):
    ours = write(tmp_path / "a", w=[3.0, 0.0], b=[4.0])
    theirs = write(tmp_path / "b", w=[0.0, 3.0], b=[4.0])
    comparison = compare(ours, theirs)
    assert comparison["cosine"] == pytest.approx(16 / 25)
    assert comparison["relative_error"] == pytest.approx(np.sqrt(18) / 5)
    assert comparison["norms"] == [5.0, 5.0]
    assert comparison["worst"] == {"parameter": "w", "relative_error": pytest.approx(np.sqrt(2))}
    assert comparison["numbers"] == 3
    same = compare(theirs, theirs)
    assert (same["cosine"], same["relative_error"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"w": [1.0]}, "e.g. b"), ({"w": [1.0], "b": [1.0, 2.0]}, "e.g. b"), ({"w": [0.0], "b": [0.0]}, "is zero")],
)
def test_incomparable_gradients_are_refused(tmp_path, other, message):
    ours = write(tmp_path / "a", w=[1.0], b=[1.0])
    with pytest.raises(PeerError, match=message):
        compare(ours, write(tmp_path / "b", **other))
