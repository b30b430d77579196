from __future__ import annotations

import builtins
import struct
from dataclasses import replace

import pytest
from records import make_eval, make_prompt, make_rollout, make_run

from coterie.board import curve
from coterie.board.figure import centred_mean
from coterie.board.report import BeforeAfter, write_report
from coterie.errors import RunError
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import list_runs
from coterie.runs.metrics import MetricsDB
from coterie.types import Interval, Outcome

pytestmark = pytest.mark.pictures


def test_result_with_its_intervals(tmp_path):
    run = make_run(tmp_path, steps=40)
    text = write_report(run, machine="2 cores", seconds=341.0).read_text()
    assert "| legs | 6 × 4 | pass@1 | 16.7 % [" in text
    assert "**+70.8** [+" in text
    assert f"coterie train @ {run.config} --name demo-again" in text
    assert "Steps: 40 of 40" in text
    assert "5 min 41 s (900 tok/s in generate)" in text
    assert "| optim.lr | 1e-06 |" in text
    assert "| data.train.0.params.max_animals | 3 |" in text
    assert "![" in text
    width, height = struct.unpack(">II", run.curve.read_bytes()[16:24])
    assert (width, height) == (1200, 930)


def test_samples_stay_in_their_boxes(tmp_path):
    prompt = replace(make_prompt(text="``` # not a heading"), answer="`|<b>\n# x")
    before = replace(make_rollout(prompt, text="\x1b[31m````\n" + "x" * 3000), reward=0.0)
    after = replace(make_rollout(prompt), reward=None, outcome=Outcome.ENV_ERROR)
    run = make_run(tmp_path)
    sample = BeforeAfter(prompt=prompt, before=before, after=after)
    text = write_report(run, machine="m", seconds=4000, samples=[sample]).read_text()
    assert "````text\n``` # not a heading\n````" in text
    assert "`````text\n\\x1b[31m````\n" in text
    assert "more characters)" in text
    assert "(answer: `'|<b> # x`)" in text
    assert "**After**, env_error, 2 tokens" in text
    assert "1 h 06 min" in text


def test_without_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    run = make_run(tmp_path)
    assert "pip install matplotlib" in write_report(run, machine="m", seconds=1).read_text()
    assert not run.curve.exists()


@pytest.mark.parametrize("evals", [0, 1])
def test_a_run_that_hardly_began(tmp_path, evals):
    with RunDirectory.create(tmp_path, "", "x") as run:
        run.write_config({"name": "", "steps": 9})
        with MetricsDB(run.metrics) as database:
            for _ in range(evals):
                database.record_evals([make_eval(0, "le|gs $x$", [1, 2])[0]])
                database.event("stop", "Ctrl-C")
        text = write_report(run, machine="m", seconds=3).read_text()
    assert "Steps: 0 of 9" in text
    assert "--name" not in text
    assert run.curve.exists() == bool(evals)
    if evals:
        assert "| le\\|gs $x$ | 2 × 4 | pass@1 | 37.5 % [" in text
        assert "Unusual events: 1 × stop." in text
    else:
        assert "No held-out evaluation was recorded." in text


def test_many_steps_and_tasks(tmp_path):
    with RunDirectory.create(tmp_path, "", "x") as run:
        run.write_config({"steps": 50})
        with MetricsDB(run.metrics) as database:
            for step in range(0, 51, 25):
                made = [make_eval(step, task, [step // 25, 1, 2]) for task in ("a", "b")]
                pooled = replace(made[0][0], task="all", prompts=6)
                database.record_evals([made[0][0], made[1][0], pooled], [item for _, items in made for item in items])
            for step in range(1, 51):
                database.record(step, {"reward/mean": step / 50})
        text = write_report(run, machine="m", seconds=3).read_text()
    pooled_row = next(line for line in text.splitlines() if line.startswith("| all | 6 × 4 | pass@1"))
    assert "**+16.7**" in pooled_row
    assert run.curve.stat().st_size > 10_000


def test_time_runs_forward(tmp_path):
    with pytest.raises(RunError, match="time does not run backwards"):
        write_report(make_run(tmp_path), machine="m", seconds=-1)


EXACT = "give the same tokens, bit for bit"


@pytest.mark.parametrize(
    ("config", "versions", "exact"),
    [
        ("auto", [], True),
        ("auto", ["cpu"], True),
        ("cpu", ["cuda", "cpu"], True),
        ("auto", ["cpu", "cuda"], False),
        ("auto", ["cuda:1"], False),
        ("cuda:0", [], False),
    ],
)
def test_only_a_run_on_a_cpu_is_promised_to_repeat(tmp_path, config, versions, exact):
    with RunDirectory.create(tmp_path, "", "x") as run:
        run.write_config({"model": {"name": "m", "device": config}})
        with MetricsDB(run.metrics) as database:
            database.event("versions", "", data={"torch": "2"})
            for device in versions:
                database.event("versions", "", data={"torch": "2", "device": device})
    text = write_report(run, machine="m", seconds=1).read_text()
    assert (EXACT in text) == exact
    assert ("kernels there may differ in the last bits" in text) != exact


def graded_run(root, *, bounds=True):
    """Two tasks, one graded and one binary, whose evaluations at the start saw nothing but zeros; 40 steps."""
    with RunDirectory.create(root, "graded", "x") as run:
        run.write_config({"steps": 40, "model": {"name": "/some/long/path/qwen"}})
        with MetricsDB(run.metrics) as database:
            for step, mean in ((0, 0.0), (40, 0.4)):
                share, shares = make_eval(step, "share", [0, 0, 0])
                legs, pairs = make_eval(step, "legs", [step // 10, 0, step // 10])
                share = replace(share, reward=Interval(value=mean, low=mean, high=mean + 0.1))
                if step:
                    share = replace(share, pass_at_1=None, pass_at_k=None)
                shares = [replace(item, reward=mean) for item in shares]
                pairs = [replace(item, reward=item.correct / item.samples) for item in pairs]
                database.record_evals([share, replace(legs, reward=legs.pass_at_1)], [*shares, *pairs])
            for step in range(1, 41):
                ends = {"reward/min": 0.0, "reward/max": 0.9} if bounds else {}
                database.record(step, {"reward/mean": step / 42, "reward/std": 0.1, **ends})
    return run


def test_a_graded_task_is_reported_by_its_mean_reward(tmp_path):
    run = graded_run(tmp_path)
    rows = [line for line in write_report(run, machine="m", seconds=3).read_text().splitlines() if " × 4 |" in line]
    assert len(rows) == 3, "legs is binary, and its mean reward its pass@1"
    share = (
        "| share | 3 × 4 | reward | 0.000 [0.000, 0.100] | 0.400 [0.400, 0.500] | **+0.400** [+0.400, +0.400] | too few"
    )
    assert rows[0].startswith(share)
    assert rows[1].startswith("| legs | 3 × 4 | pass@1 | 0.0 % [0.0, 0.0] | 66.7 % [")
    assert "| **+66.7** points [+0.0, +100.0] |" in rows[1]
    assert rows[2].startswith("| legs | 3 × 4 | pass@4 | 0.0 % [0.0, 0.0] | 66.7 % [")
    lines = {line.name: line for line in list_runs(tmp_path)}
    assert lines["graded"].before is None, "two tasks and no pooled result"


@pytest.mark.parametrize("bounds", [True, False], ids=["recorded", "older run"])
def test_the_band_of_the_curve_stays_within_possible_rewards(tmp_path, monkeypatch, bounds):
    from matplotlib.axes import Axes

    drawn = []

    def fill_between(axis, x, low, high, **style):
        drawn.append((min(low), max(high)))

    monkeypatch.setattr(Axes, "fill_between", fill_between)
    titles = []
    monkeypatch.setattr(curve, "one_line", lambda text, width: titles.append(text) or text)
    write_report(graded_run(tmp_path, bounds=bounds), machine="m", seconds=3)
    assert drawn == [(0.0, 0.9 if bounds else 1.0)]
    assert titles[0] == "graded: qwen, 40 steps of GRPO"


def test_a_mean_around_each_point_does_not_lag():
    assert centred_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 5) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_reward_of_a_binary_task_has_a_row_where_other_parts_count(tmp_path):
    with RunDirectory.create(tmp_path, "", "x") as run:
        run.write_config({"steps": 40})
        with MetricsDB(run.metrics) as database:
            for step, correct in ((0, [0, 1, 0]), (40, [4, 3, 4])):
                result, items = make_eval(step, "legs", correct)
                reward = Interval(value=0.5 + step / 100, low=0.4, high=1.0)
                items = [replace(item, reward=0.5 + step / 100) for item in items]
                database.record_evals([replace(result, reward=reward)], items)
        text = write_report(run, machine="m", seconds=3).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| legs")]
    assert "| **+83.3** points [" in rows[0]
    assert rows[2].startswith(
        "| legs | 3 × 4 | reward | 0.500 [0.400, 1.000] | 0.900 [0.400, 1.000] | **+0.400** [+0.400,"
    )
