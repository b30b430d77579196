"""The scorer against functions that misbehave: innocent rows keep their scores, guilty ones get a named error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster_hosts import alive
from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import ConfigError, RewardError
from coterie.rewards.pool import Scorer
from coterie.rewards.process import PATIENCE
from coterie.types import Prompt

DEADLINE = 0.5
SLACK = 0.5


def prompt(name="p", answer="4", **attributes):
    return Prompt(
        id=name, messages=({"role": "user", "content": "2+2?"},), answer=answer, task="sums", attributes=attributes
    )


def scorer(*names, workers=1, timeout_s=DEADLINE, load_timeout_s=30.0, weights=None, **params):
    weights = weights or [1.0] * len(names)
    parts = [RewardConfig(name=n, weight=w, params=params) for n, w in zip(names, weights, strict=True)]
    return Scorer(RewardsConfig(functions=parts, workers=workers, timeout_s=timeout_s), load_timeout_s=load_timeout_s)


def score(names, completions, prompts=None, **options):
    with scorer(*([names] if isinstance(names, str) else names), **options) as pool:
        return pool.score(prompts or [prompt(f"p/{k}") for k in range(len(completions))], completions)


def gone(pid, seconds=3.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    """One pool for all deeds: after each it must be whole again."""
    with contextlib.chdir(tmp_path_factory.mktemp("act")):
        pool = scorer("unruly:act")
    with pool:
        pool.start()
        yield pool


@pytest.mark.parametrize("kind", ["none", "number", "text", "tensor", "mapping", "generator", "empty", "one", "long"])
def test_bad_return_blames_every_row(kind):
    scores = score("unruly:bad_return", ["a", "b", "c"], kind=kind)
    for row, row_score in enumerate(scores):
        assert row_score.reward is None
        assert f"reward 'unruly:bad_return', row {row} (prompt p/{row}): returned" in row_score.error
        assert "expected" in row_score.error


def test_short_list_is_never_stretched():
    scores = score("unruly:bad_return", ["a", "b", "c"], kind="short")
    assert ["returned 0 values for 1 completions" in row_score.error for row_score in scores] == [True] * 3


def test_skipped_row_is_found():
    scores = score("unruly:skips", ["a", "bad", "c"])
    assert [row_score.reward for row_score in scores] == [1.0, None, 1.0]
    assert "row 1 (prompt p/1): returned 0 values" in scores[1].error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "returned nan"),
        ("inf", "returned inf"),
        ("minus_inf", "returned -inf"),
        ("text", "returned '1.0' (a str)"),
        ("nested", "returned [1.0] (a list)"),
        ("tensor", "returned <unruly.Tensor object"),
        ("complex", "returned 1j (a complex)"),
        ("huge", "returned 1e+30, beyond ±1e+12"),
        ("huge_int", "returned inf"),
    ],
)
def test_bad_value_blames_its_row_alone(kind, message):
    scores = score("unruly:bad_value", ["a", "bad", "c"], kind=kind)
    assert [row_score.reward for row_score in scores] == [1.0, None, 1.0]
    assert [row_score.parts for row_score in scores] == [{"bad_value": 1.0}, {"bad_value": None}, {"bad_value": 1.0}]
    assert f"reward 'unruly:bad_value', row 1 (prompt p/1): {message}" in scores[1].error
    assert "expected a finite number" in scores[1].error


def test_good_values():
    scores = score("unruly:good_values", ["true", "false", "int", "float", "zero", "none"])
    assert [row_score.reward for row_score in scores] == [1.0, 0.0, 3.0, -0.5, 0.0, None]
    assert str(scores[4].reward) == "0.0"
    assert "no reward part applies (of good_values)" in scores[5].error


@pytest.mark.parametrize("guilty", [0, 2])
def test_exception_in_first_and_last_row(guilty):
    completions = ["a", "b", "c"]
    completions[guilty] = "bad"
    scores = score("unruly:raises", completions)
    assert [row_score.reward is None for row_score in scores] == [row == guilty for row in range(3)]
    assert scores[guilty].error.startswith(
        f"reward 'unruly:raises', row {guilty} (prompt p/{guilty}): raised KeyError: 'bad' (in unruly.py, line "
    )
    assert scores[guilty].error.endswith(": raise KeyError(completion))")


def test_odd_exceptions():
    (rude,) = score("unruly:raises_badly", ["a"])
    assert "raised RudeError: …" in rude.error
    (deep,) = score("unruly:recurses", ["a"])
    assert "raised RecursionError" in deep.error
    (method,) = score("unruly:judge.fail", ["a"])
    assert "raised ValueError: no (in unruly.py, line " in method.error


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("leave", "ended its worker process with exit code 7; it last printed 'last words'"),
        ("crash", "ended its worker process by SIGSEGV"),
        ("sys_exit", "raised SystemExit: 3"),
        ("interrupt", "raised KeyboardInterrupt"),
        ("fork_and_die", "ended its worker process with exit code 3"),
        ("close_everything", "ended its worker process with exit code 1"),
        ("corrupt", "wrote into the channel of its worker process"),
    ],
)
def test_deadly_deeds(act, deed, message):
    scores = act.score([prompt()] * 3, ["a", deed, "c"])
    assert [row_score.reward for row_score in scores] == [1.0, None, 1.0]
    assert f"reward 'unruly:act', row 1 (prompt p): {message}" in scores[1].error
    assert len(act.pids) == 1


@pytest.mark.parametrize("deed", ["flood", "wander", "fork_and_return"])
def test_rude_but_harmless_deeds(act, deed):
    before = (os.getcwd(), os.environ.get("OMP_NUM_THREADS"))
    assert [row_score.reward for row_score in act.score([prompt()] * 3, ["a", deed, "c"])] == [1.0] * 3
    assert before == (os.getcwd(), os.environ.get("OMP_NUM_THREADS"))


@pytest.mark.parametrize("deed", ["sleep", "spin", "backtrack", "stubborn"])
def test_hanging_deeds(act, deed):
    act.start()
    started = time.monotonic()
    (row_score,) = act.score([prompt()], [deed])
    # What it waits for a processor is not held against it, up to a bound.
    assert DEADLINE <= time.monotonic() - started < (1 + PATIENCE) * DEADLINE + SLACK
    assert (
        row_score.error == f"reward 'unruly:act', row 0 (prompt p): did not return within {DEADLINE:g} s and was killed"
    )
    assert [next_score.reward for next_score in act.score([prompt()], ["a"])] == [1.0]


def test_hanging_row_does_not_hurt_its_neighbours():
    scores = score("unruly:act", ["a", "sleep", "c"], timeout_s=0.3)
    assert [row_score.reward for row_score in scores] == [1.0, None, 1.0]


def test_gives_up_after_three_hanging_rows():
    started = time.monotonic()
    scores = score("unruly:act", ["sleep"] * 6, timeout_s=0.2)
    assert time.monotonic() - started < 4 * 0.2 * (1 + PATIENCE) + 2.0
    assert ["did not return" in row_score.error for row_score in scores] == [True] * 3 + [False] * 3
    assert all(
        "was not asked: 3 rows before this one hung or crashed it" in row_score.error for row_score in scores[3:]
    )


@pytest.mark.parametrize("deed", ["breed", "fork_and_die"])
def test_children_of_functions_die_too(deed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with scorer("unruly:act") as pool:
        pool.score([prompt()], [deed])
        child = int((tmp_path / "child.pid").read_text())
    assert gone(child)


def test_several_workers_share_the_rows_and_keep_the_order():
    completions = [str(k) * k for k in range(1, 8)]
    with scorer("unruly:later", workers=3) as pool:
        scores = pool.score([prompt()] * 7, completions)
        assert len(set(pool.pids)) == 3
        assert [row_score.reward for row_score in scores] == [float(k) for k in range(1, 8)]
        assert [row_score.reward for row_score in pool.score([prompt()], ["abc"])] == [3.0]
        pids = pool.pids
    assert all(gone(pid) for pid in pids)


def test_columns():
    prompts = [prompt("a", answer=None, level=10), prompt("b", other="x"), prompt("c", level=30)]
    scores = score(["unruly:echo", "unruly:narrow"], ["1", "22", "333"], prompts)
    assert [row_score.parts for row_score in scores] == [
        {"echo": 11.0, "narrow": 10.0},
        {"echo": 2.0, "narrow": None},
        {"echo": 33.0, "narrow": 30.0},
    ]
    assert [row_score.reward for row_score in scores] == [21.0, 2.0, 63.0]


def test_weights_labels_and_params():
    parts = [
        RewardConfig(name="unruly:echo", weight=2.0, label="long", params={"scale": 0.5}),
        RewardConfig(name="unruly:judge", weight=-1.0),
        RewardConfig(name="exact", weight=0.0),
    ]
    with Scorer(RewardsConfig(functions=parts)) as pool:
        (row_score,) = pool.score([prompt(answer="", level=0)], ["abcd"])
    assert row_score.parts == {"long": 2.0, "judge": 2.0, "exact": 0.0}
    assert row_score.reward == 2.0
    assert row_score.error is None


def test_parts_without_weight_do_not_count():
    (row_score,) = score(["exact"], ["4"], weights=[0.0])
    assert row_score.parts == {"exact": 1.0}
    assert "no reward part applies" in row_score.error


def test_missing_column_is_named():
    (row_score,) = score("unruly:narrow", ["a"], [prompt(difficulty=3)])
    assert (
        "needs 'level', but the prompts only have answer, completion_length, completion_opening, completions, "
        "difficulty, prompts, task" in row_score.error
    )


def test_built_in_settings_are_out_of_reach_of_columns():
    (row_score,) = score("exact", ["YES"], [prompt(answer="yes", casefold=True)])
    assert row_score.reward == 0.0


def test_attribute_that_is_no_json():
    prompts = [prompt("a"), prompt("b", when=object())]
    scores = score("exact", ["4", "4"], prompts)
    assert scores[0].reward == 1.0
    assert "row 1 (prompt b): the column 'when' is not valid JSON" in scores[1].error
    assert all("not valid JSON" in row_score.error for row_score in score("exact", ["4"], [prompts[1]]))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("no_such_module:f", {}, "found no module 'no_such_module' in "),
        ("unruly:rasies", {}, "unruly has no 'rasies'; did you mean 'raises'?"),
        ("unruly:not_callable", {}, "is a int; expected a function"),
        ("unruly:narrow", {"levle": 3}, "takes no param 'levle'; expected one of: level; did you mean 'level'?"),
        ("number", {"strickt": True}, "takes no param 'strickt'; expected one of: strict, tolerance; did you mean"),
        ("number", {"answer": "4"}, "takes no param 'answer'"),
        ("unruly_import:f", {}, "its module raised ZeroDivisionError: division by zero (in unruly_import.py, line 1"),
    ],
)
def test_functions_that_cannot_be_loaded(name, params, message, tmp_path, monkeypatch):
    (tmp_path / "unruly_import.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError) as caught:
        score(name, ["a"], **params)
    assert message in str(caught.value)
    assert caught.value.function == name
    assert caught.value.row is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("import time; time.sleep(99)", "did not return within 0.5 s"), ("import os; os._exit(2)", "with exit code 2")],
)
def test_hanging_and_deadly_imports(text, message, tmp_path, monkeypatch):
    (tmp_path / "unruly_import.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=message):
        score("unruly_import:f", ["a"], load_timeout_s=0.5)


def test_functions_come_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def ones(completions, **columns):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert score("mine:ones", ["a"])[0].reward == 1.0


@pytest.mark.parametrize(("name", "message"), [("exakt", "did you mean 'exact'"), ("foo", "`module:function`")])
def test_unknown_names(name, message):
    with pytest.raises(ConfigError, match=message):
        scorer(name)


def test_params_that_cannot_be_sent():
    with pytest.raises(ConfigError, match="params of reward 'format' are not valid JSON"):
        scorer("format", pattern=object())


def test_nothing_to_score_starts_nothing():
    with scorer("exact") as pool:
        assert pool.score([], []) == []
        assert pool.pids == []


def test_a_worker_that_died_while_idle_blames_nobody():
    with scorer("unruly:act") as pool:
        pool.start()
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert pool.score([prompt()], ["a"])[0].reward == 1.0


def test_a_folder_that_a_function_left_is_entered_again():
    with scorer("unruly:act", "unruly:at_home") as pool:
        assert [row_score.reward for row_score in pool.score([prompt()] * 2, ["wander", "a"])] == [2.0, 2.0]


def test_an_interrupt_leaves_no_stale_answer(monkeypatch):
    with scorer("unruly:later") as pool:
        pool.start()
        pids = pool.pids

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("coterie.rewards.pool.wait_for_any", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.score([prompt()], ["a"])
        assert gone(pids[0])
        assert pool.score([prompt()], ["abc"])[0].reward == 3.0


PARENT = """
import os, sys
from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.rewards.pool import Scorer
from coterie.types import Prompt
scorer = Scorer(RewardsConfig(functions=[RewardConfig(name="unruly:act")]))
scorer.start()
print(scorer.pids[0], flush=True)
prompt = Prompt(id="p", messages=(), answer=None, task="t")
scorer.score([prompt], [sys.argv[1]])
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "spin"])
def test_workers_die_with_their_parent(state):
    path = os.pathsep.join([str(Path(__file__).parent)])
    command = [sys.executable, "-c", PARENT, state]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone(pid)


def test_worker_starts_fast_and_without_torch(tmp_path, monkeypatch):
    (tmp_path / "lean.py").write_text(
        "import os, sys\n"
        "def ok(completions):\n"
        "    heavy = {'torch', 'transformers', 'pydantic', 'asyncio', 'sympy'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
        "    assert os.environ['OMP_NUM_THREADS'] == '1' and os.getpgrp() == os.getpid()\n"
        "    return [1.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    fastest = 9.0
    for _ in range(3):
        started = time.monotonic()
        with scorer("lean:ok", "number", "exact") as pool:
            assert pool.score([prompt()], ["4"])[0].reward == 3.0
        fastest = min(fastest, time.monotonic() - started)
    assert fastest < 1.0


def test_half_megabyte_rows():
    completions = ["x" * 500_000] * 8
    assert [row_score.reward for row_score in score("length", completions, maximum=1, timeout_s=10)] == [-1.0] * 8


def test_lone_surrogates_survive():
    assert score("exact", ["\ud800"], [prompt(answer="\ud800")])[0].reward == 1.0


def test_columns_of_the_whole_data_are_there_in_every_call():
    with scorer("unruly:narrow", "unruly:counts") as pool:
        pool.start([prompt("a", level=1), prompt("b", other=2)])
        pool.start([prompt("h", shape="round")])
        without, with_level = pool.score([prompt("b", other=2), prompt("c", level=3, new=1)], ["x", "y"])
        (alone,) = pool.score([prompt("b", other=2)], ["x"])
    assert without.parts == alone.parts | {"counts": 2.0}
    assert with_level.parts["narrow"] == 3.0
    assert alone.parts == {"narrow": None, "counts": 1.0}
    assert alone.error is None


def test_no_call_has_more_rows_than_its_deadline_can_stand():
    with scorer("unruly:counts") as pool:
        scores = pool.score([prompt()] * 600, ["a"] * 600)
    assert [row_score.reward for row_score in scores] == [200.0] * 600


def test_slow_rows_are_not_killed_because_there_are_many():
    """Half a deadline for a piece, more than one for all of them."""
    scores = score("unruly:slow", ["a"] * 768, timeout_s=0.8)
    assert [row_score.reward for row_score in scores] == [1.0] * 768


def test_a_function_that_always_hangs_is_given_up_before_every_piece_was_tried():
    started = time.monotonic()
    scores = score("unruly:hangs", ["a"] * 2560, timeout_s=0.2)
    assert time.monotonic() - started < 4 * 0.2 + 2.0
    assert all(row_score.reward is None for row_score in scores)
    assert "was not asked: 3 rows before this one hung" in scores[-1].error
