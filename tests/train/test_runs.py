"""Whole runs of a tiny model: it learns, it can be killed anywhere, it can be read, resumed, repeated and sampled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coterie import launch
from coterie.build.learner import warnings_of
from coterie.build.reading import read_inputs
from coterie.build.run import policy_for
from coterie.callbacks import Callback
from coterie.config.algorithms import stored
from coterie.config.load import load
from coterie.config.optim import OptimConfig
from coterie.config.schema import RunConfig
from coterie.errors import CheckpointError, ConfigError, DataError, ModelError, RewardError, RunError
from coterie.runs.metrics import MetricsDB
from coterie.train.evaluate import EVALUATING
from coterie.types import Prompt, Rollout
from runs_for_tests import Watch, fingerprint, killed, make_config, stop_at


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@pytest.mark.parametrize(("lora", "steps"), [(None, 25), ({"rank": 4, "alpha": 8.0}, 41)])
def test_it_learns_and_leaves_everything_behind(root: Path, lora: dict[str, Any] | None, steps: int) -> None:
    watch = Watch()
    optim = {"lr": 5e-2 if lora else 1e-2}  # an adapter that starts at zero needs a larger rate, and longer
    run = launch.train(make_config(root, steps=steps, model={"lora": lora}, optim=optim), watch)
    rewards = [step["reward/mean"] for step in watch.steps]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert {result.step for result in watch.evals} == {*range(0, steps, 3), steps}
    assert watch.message == f"training finished, {steps} steps; results and checkpoint are in {run}"
    names = {path.name for path in run.iterdir()}
    assert {"config.toml", "metrics.sqlite", "rollouts", "evals", "checkpoints", "logs", "README.md"} <= names
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        f"step_{steps - 1:06}",
        f"step_{steps:06}",
    ]
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert database.last_step() == steps
        assert database.step_metrics(1)["ratio/max"] == 1.0


def test_a_run_is_never_overwritten(root: Path) -> None:
    config = make_config(root, steps=1)
    launch.train(config)
    with pytest.raises(RunError, match="one"):
        launch.train(config)


def test_the_stored_settings_repeat_the_run_to_the_bit(root: Path) -> None:
    first = launch.train(make_config(root))
    again = launch.train(load(["@", str(first / "config.toml"), "--name", "again"]).config)
    assert fingerprint(again) == fingerprint(first)
    other = launch.train(make_config(root, name="other", seed=1))
    assert fingerprint(other)["rollouts"] != fingerprint(first)["rollouts"]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("golden")
    before = Path.cwd()
    os.chdir(root)
    try:
        return fingerprint(launch.train(make_config(root)))
    finally:
        os.chdir(before)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("decode", 30),
        ("optimizer", 5),
        ("rollout-file", 4),
        ("publish", 1),
        pytest.param("optimizer", 1, marks=SLOW),
        pytest.param("metrics", 3, marks=SLOW),
        pytest.param("evaluation", 2, marks=SLOW),
        pytest.param("fsync", 9, marks=SLOW),
        pytest.param("publish", 2, marks=SLOW),
        pytest.param("prune", 2, marks=SLOW),
    ],
)
def test_killed_anywhere_it_resumes_to_the_same_bits(root: Path, golden: dict[str, Any], point: str, nth: int) -> None:
    assert killed(root, point, nth) == -signal.SIGKILL  # a point that is never reached would prove nothing
    run = launch.resume("one", runs=root / "runs")
    assert fingerprint(run) == golden


def test_killed_twice_the_second_time_while_resuming(root: Path, golden: dict[str, Any]) -> None:
    assert killed(root, "optimizer", 4) == -signal.SIGKILL
    assert killed(root, "metrics", 1, verb="resume") == -signal.SIGKILL
    assert fingerprint(launch.resume("one", runs=root / "runs")) == golden


def test_resuming_a_finished_run_changes_nothing(root: Path, golden: dict[str, Any]) -> None:
    run = launch.train(make_config(root))
    watch = Watch()
    launch.resume(run, watch)
    assert watch.steps == []
    assert fingerprint(run) == golden


def test_one_interrupt_checkpoints_and_stops_and_resume_finishes(root: Path, golden: dict[str, Any]) -> None:
    watch = stop_at(3, signal.SIGINT)
    run = launch.train(make_config(root), watch)
    assert watch.message == f"stopped after step 3 of 6; continue with: coterie resume {run}"
    plan = "finishing the current step, saving a checkpoint, then stopping; press Ctrl-C again to quit now"
    assert ("stop", f"interrupted by SIGINT: {plan}") in watch.notes
    assert fingerprint(launch.resume(run))["weights"] == golden["weights"]


def test_two_interrupts_stop_now(root: Path, golden: dict[str, Any]) -> None:
    lost = r"runs/one continues from the checkpoint of step 2 and trains step 3 again, which no checkpoint holds"
    with pytest.raises(KeyboardInterrupt, match=lost):
        launch.train(make_config(root), stop_at(3, signal.SIGINT, times=2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fingerprint(launch.resume("one", runs=root / "runs")) == golden


class StopInEvaluation(Watch):
    """Sends this process a Ctrl-C in the middle of the nth evaluation."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left, self.activity = nth, ""

    def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        begins = name == EVALUATING and self.activity != EVALUATING
        self.activity = name
        self.left -= begins
        if begins and self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        super().on_step(step, metrics, sample)
        self.activity = ""


def test_an_interrupt_abandons_an_evaluation_and_resume_makes_it_again(root: Path, golden: dict[str, Any]) -> None:
    watch = StopInEvaluation(2)
    run = launch.train(make_config(root), watch)
    assert watch.message == f"stopped after step 3 of 6; continue with: coterie resume {run}"
    assert {result.step for result in watch.evals} == {0}
    plan = "abandoning the evaluation, saving a checkpoint, then stopping; press Ctrl-C again to quit now"
    assert ("stop", f"interrupted by SIGINT: {plan}") in watch.notes
    finished = fingerprint(launch.resume(run))
    assert finished["weights"] == golden["weights"]
    assert finished["evals"] == golden["evals"]


def test_an_interrupt_of_the_last_evaluation_leaves_that_alone_to_do(root: Path, golden: dict[str, Any]) -> None:
    watch = StopInEvaluation(3)
    run = launch.train(make_config(root), watch)
    assert watch.message == f"stopped before the last evaluation; continue with: coterie resume {run}"
    later = Watch()
    launch.resume(run, later)
    assert later.steps == []
    assert {result.step for result in later.evals} == {6}
    assert fingerprint(run)["weights"] == golden["weights"]


def test_a_run_that_never_stored_a_step_does_not_use_up_its_name(root: Path, golden: dict[str, Any]) -> None:
    watch = StopInEvaluation(1)
    launch.train(make_config(root, seed=5), watch)
    assert watch.message == "stopped before the first step was finished; start again with the same command"
    assert fingerprint(launch.train(make_config(root))) == golden


def test_a_finished_run_goes_on_to_more_steps_to_the_same_bits(root: Path, golden: dict[str, Any]) -> None:
    run = launch.train(make_config(root, steps=3))
    watch = Watch()
    launch.resume(run, watch, steps=6)
    assert len(watch.steps) == 3
    assert fingerprint(run) == golden
    with pytest.raises(RunError, match=r"--steps 5: .*one has 6 steps already"):
        launch.resume(run, steps=5)


def test_a_longer_run_with_a_linear_schedule_says_what_its_rate_is(root: Path) -> None:
    run = launch.train(make_config(root, steps=2, optim={"schedule": "linear"}, eval={"every": 0}))
    watch = Watch()
    launch.resume(run, watch, steps=3)
    (warning,) = [text for kind, text in watch.notes if kind == "warning" and "schedule" in text]
    assert warning.startswith("optim.schedule = 'linear': from step 3 on the learning rate is that of a run of 3 steps")


def test_a_damaged_checkpoint_is_skipped_by_name(root: Path, golden: dict[str, Any]) -> None:
    run = launch.train(make_config(root))
    path = run / "checkpoints" / "step_000006" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    watch = Watch()
    launch.resume(run, watch)
    assert any(kind == "warning" and "step_000006" in text for kind, text in watch.notes)
    assert fingerprint(run) == golden


def test_a_resume_says_what_its_record_lacks_and_goes_on_to_the_same_bits(root: Path, golden: dict[str, Any]) -> None:
    run = launch.train(make_config(root), stop_at(3, signal.SIGINT))
    for name in ("metrics.sqlite", "metrics.sqlite-wal", "metrics.sqlite-shm"):
        (run / name).unlink(missing_ok=True)
    cut = run / "rollouts" / "step_000001.parquet"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (run / "rollouts" / "step_000002.parquet").unlink()
    watch = Watch()
    launch.resume(run, watch)
    warnings = [text for kind, text in watch.notes if kind == "warning"]
    assert any("no metrics of steps 1 to 3" in text and "metrics.sqlite-wal" in text for text in warnings)
    assert any("no evaluation of step 0" in text for text in warnings)
    assert any("no rollouts of step 2: " in text for text in warnings)
    assert any("the rollouts of step 1 cannot be read" in text for text in warnings)
    cut.unlink()
    assert fingerprint(run)["weights"] == golden["weights"]
    page = (run / "README.md").read_text(encoding="utf-8")
    assert "The evaluation before training (step 0) is not on record" in page
    assert "| before" not in page
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert {event.message for event in database.events("warning")} >= set(warnings)


def test_a_resume_of_a_whole_record_warns_of_nothing(root: Path) -> None:
    run = launch.train(make_config(root, steps=4), stop_at(2, signal.SIGINT))
    watch = Watch()
    launch.resume(run, watch)
    assert [text for kind, text in watch.notes if kind == "warning"] == []


def test_other_settings_do_not_continue_a_run(root: Path) -> None:
    run = launch.train(make_config(root, steps=2))
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace("lr = 0.01", "lr = 0.02"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="made with other settings"):
        launch.resume(run)


def test_a_reward_that_raises_ends_the_run_with_its_name_and_row(root: Path) -> None:
    config = make_config(root, rewards={"functions": [{"name": "bad_rewards:broken"}]})
    (root / "bad_rewards.py").write_text(
        "def broken(prompts, completions, **columns):\n    return [1 / (len(text) < 3) for text in completions]\n",
        encoding="utf-8",
    )
    with pytest.raises(RewardError, match=r"rollouts ended in an error .*broken.*ZeroDivisionError"):
        launch.train(config)  # gold answers have two characters at most


def test_a_reward_that_always_raises_leaves_no_run_behind(root: Path) -> None:
    config = make_config(root, rewards={"functions": [{"name": "bad_rewards:broken"}]})
    (root / "bad_rewards.py").write_text("def broken(completions):\n    return [1 / 0]\n", encoding="utf-8")
    with pytest.raises(RewardError, match=r"fails on every prompt looked at .*broken.*ZeroDivisionError"):
        launch.train(config)
    assert not (root / "runs" / "one").exists()


def test_bad_data_leaves_no_run_behind(root: Path) -> None:
    config = make_config(root)
    (root / "train.jsonl").write_text('{"prompt": null}\n', encoding="utf-8")
    with pytest.raises(DataError):
        launch.train(config)
    assert not (root / "runs" / "one").exists()


def test_minibatches_and_kl_resume_too(root: Path) -> None:
    extra: dict[str, Any] = {"optim": {"lr": 1e-2, "minibatches": 3, "epochs": 2}, "objective": {"kl_beta": 0.1}}
    whole = fingerprint(launch.train(make_config(root, name="whole", **extra)))
    cut = launch.train(make_config(root, name="cut", steps=6, **extra), stop_at(2, signal.SIGTERM))
    assert fingerprint(launch.resume(cut))["weights"] == whole["weights"]


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}])
def test_what_a_run_learned_can_be_evaluated_sampled_and_talked_to(root: Path, lora: dict[str, Any] | None) -> None:
    config = make_config(root, steps=2, model={"lora": lora})
    watch = Watch()
    run = launch.train(config, watch)
    results = launch.evaluate(str(run), config)
    assert [result.task for result in results] == ["heldout"]
    drawn = list(launch.sample(config, 3, str(run)))
    assert len(drawn) == 3
    assert all(rollout.reward is not None for _, rollout in drawn)
    assert isinstance(launch.chat(str(run)).reply("how many legs?"), str)


def test_the_saved_model_opens_with_transformers_alone(root: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = launch.train(make_config(root, steps=1))
    folder = run / "checkpoints" / "step_000001" / "model"
    assert "coterie" not in json.loads((folder / "config.json").read_text(encoding="utf-8")).values()
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("how many", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_dry_run_and_validate_report_and_create_nothing(root: Path) -> None:
    config = make_config(root)
    report = launch.dry_run(config)
    subjects = [subject for _, subject, _ in report.lines]
    assert {"data, train", "batch", "memory", "time"} <= set(subjects)
    assert "3 prompts × 4 rollouts = 12 rollouts a step" in next(t for _, s, t in report.lines if s == "batch")
    (root / "train.jsonl").write_text("not json\n", encoding="utf-8")
    assert not launch.validate(config).ok
    assert not (root / "runs").exists()


def test_prompts_that_changed_do_not_continue_a_run(root: Path) -> None:
    run = launch.train(make_config(root, steps=2))
    rows = (root / "train.jsonl").read_text(encoding="utf-8")
    (root / "train.jsonl").write_text(rows.replace('"answer": "3"', '"answer": "4"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="made with other prompts, answers or chat template"):
        launch.resume(run)


def test_another_thread_count_is_said_on_resume(root: Path) -> None:
    run = launch.train(make_config(root, steps=4), stop_at(2, signal.SIGTERM))
    with MetricsDB(run / "metrics.sqlite") as database:
        facts = dict(database.events("versions")[-1].data)
        database.event("versions", "made up", 2, facts | {"threads": "7"})
    watch = Watch()
    launch.resume(run, watch)
    assert any(kind == "warning" and "threads was 7" in text and "is 1 now" in text for kind, text in watch.notes)


def test_a_deadline_is_reported_and_never_a_reward(root: Path) -> None:
    watch = Watch()
    config = make_config(root, steps=1, sampling={"timeout_s": 1e-9}, collect={"max_error_share": 1.0})
    run = launch.train(config, watch)
    assert any("truncated by sampling.timeout_s" in text for kind, text in watch.notes if kind == "warning")
    assert any("counted as wrong" in text for kind, text in watch.notes if kind == "warning")
    assert "groups/mixed" not in watch.steps[0]
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert all(item.correct == 0 for item in database.eval_items(0))


def test_an_evaluation_that_judges_nothing_is_refused(root: Path) -> None:
    config = make_config(root, rewards={"functions": [{"name": "tiny_rewards:likes_a"}, {"name": "shy:never"}]})
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"reward": "never"})})
    (root / "shy.py").write_text("def never(prompts, completions):\n    return [None for _ in completions]\n")
    with pytest.raises(DataError, match="'never' applies to none of the 4 held-out prompts"):
        launch.train(config)


def test_a_reward_that_cannot_be_imported_leaves_no_run_behind(root: Path) -> None:
    with pytest.raises(RewardError, match="no_such_module"):
        launch.train(make_config(root, rewards={"functions": [{"name": "no_such_module:reward"}]}))
    assert not (root / "runs" / "one").exists()


def test_a_cut_sampler_may_be_sampled_but_not_trained(root: Path) -> None:
    config = make_config(root, sampling={"top_p": 0.5})
    with pytest.raises(ConfigError, match=r"train with top_p = 1 and top_k = 0"):
        launch.train(config)
    assert len(list(launch.sample(config, 2))) == 2


@pytest.mark.parametrize("stop", ["<|im_end|>", "a" * 200])
def test_stop_strings_that_never_match_are_refused(root: Path, stop: str) -> None:
    with pytest.raises(ConfigError, match=r"can never match"):
        launch.train(make_config(root, sampling={"stop": [stop]}))


def test_prompts_that_outgrow_the_context_are_refused_before_the_run(root: Path) -> None:
    with pytest.raises(DataError, match=r"more than the model's context of 256; lower data\.max_prompt_tokens"):
        launch.train(make_config(root, sampling={"max_tokens": 250}))
    assert not (root / "runs" / "one").exists()


def test_prompt_and_completion_may_fill_the_context_to_its_last_token(root: Path) -> None:
    config = make_config(root)
    inputs = read_inputs(config, Callback())
    room = 256 - inputs.longest()
    for budget in (room, room + 1):
        asked = config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_tokens": budget})})
        with pytest.raises(DataError, match="context of 256") if budget > room else nullcontext():
            policy_for(asked, inputs)


def test_evaluating_a_checkpoint_repeats_the_runs_own_number(root: Path) -> None:
    watch = Watch()
    config = make_config(root)
    run = launch.train(config, watch)
    (again,) = launch.evaluate(str(run), config)
    assert again == watch.evals[-1]


def test_a_longer_goal_continues_a_finished_run(root: Path) -> None:
    run = launch.train(make_config(root, steps=2))
    config = run / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("steps = 2", "steps = 4"), encoding="utf-8")
    watch = Watch()
    launch.resume(run, watch)
    assert len(watch.steps) == 2
    assert watch.message.startswith("training finished, 4 steps")


def test_an_adapter_is_sampled_as_trained_and_its_start_follows_the_seed(root: Path) -> None:
    lora: dict[str, Any] = {"lora": {"rank": 2, "alpha": 4.0}}
    first = launch.train(make_config(root, name="first", steps=2, model=lora))
    again = launch.train(make_config(root, name="again", steps=2, model=lora))
    assert fingerprint(first)["weights"] == fingerprint(again)["weights"]
    folder = launch.model_of(str(first))
    base = json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((root / "model").resolve())
    with pytest.raises(
        ModelError, match=r"made with model\.lora\.rank = 2, .*say model\.lora\.rank = 3.*coterie export"
    ):
        launch.train(make_config(root, name="second", model={"name": folder, "lora": {"rank": 3, "alpha": 4.0}}))
    with pytest.raises(ModelError, match=r"without model\.lora there is nothing to train"):
        launch.train(make_config(root, name="third", model={"name": folder}))
    assert not (root / "runs/second").exists()
    assert not (root / "runs/third").exists()


def test_an_adapter_is_trained_further_by_the_name_of_its_run(root: Path) -> None:
    """From a run's newest checkpoint, with the KL to what the adapter was then; and it resumes to the same bits."""
    lora: dict[str, Any] = {"dtype": "float32", "lora": {"rank": 2, "alpha": 4.0}}
    launch.train(make_config(root, name="first", steps=2, model=lora))
    start = launch.model_of("first", root / "runs")
    more: dict[str, Any] = {"steps": 4, "model": lora | {"name": "first"}, "objective": {"kl_beta": 0.1}}
    whole = launch.train(make_config(root, name="whole", **more))
    stored = tomllib.loads((whole / "config.toml").read_text())
    assert stored["model"]["name"] == start
    with MetricsDB.reader(whole / "metrics.sqlite") as database:
        assert database.step_metrics(1)["kl/ref"] == pytest.approx(0.0, abs=1e-8)
        assert database.step_metrics(4)["kl/ref"] > 1e-6
    folders = Path(start), Path(launch.model_of(str(whole)))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    cut = shutil.copytree(whole, root / "runs/cut")
    shutil.rmtree(cut / "checkpoints/step_000004")
    launch.resume(cut)
    assert fingerprint(cut)["weights"] == fingerprint(whole)["weights"]


def test_an_adapter_at_the_rate_of_full_training_is_warned_of(root: Path) -> None:
    lora: dict[str, Any] = {"lora": {"rank": 2, "alpha": 4.0}}
    chosen = make_config(root, model=lora)
    left = chosen.model_copy(update={"optim": OptimConfig.model_validate({"warmup": 2})})
    assert warnings_of(chosen) == []
    assert warnings_of(make_config(root)) == []
    (warning,) = warnings_of(left)
    assert "optim.lr was left at 1e-06" in warning
    assert ("warn", "settings", warning) in launch.dry_run(left).lines
    assert warnings_of(RunConfig.model_validate(stored(left))) == []  # told once: a stored run says all its settings


def test_no_room_for_its_checkpoints_is_said_before_the_first_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.runs import durable

    free = durable.shutil.disk_usage(root)._replace(free=1_000_000)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda folder: free)
    watch = Watch()
    with pytest.raises(
        RunError, match=r"no room for the checkpoints .*3 more of .* 1,000,000 are free .*checkpoint\.keep"
    ):
        launch.train(make_config(root), watch)
    assert watch.steps == []


def test_the_estimate_of_a_checkpoint_is_near_its_size(root: Path) -> None:
    config = make_config(root, steps=1)
    run = launch.train(config)
    inputs = launch.read_inputs(config, Callback())
    estimate = launch._checkpoint_size(config, launch.policy_for(config, inputs))
    real = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*.safetensors"))
    assert estimate == pytest.approx(real, rel=0.1)


def test_a_judge_that_refuses_the_gold_answers_is_not_trained_on(root: Path) -> None:
    config = make_config(root, rewards={"functions": [{"name": "number"}]})
    rows = (root / "train.jsonl").read_text(encoding="utf-8")
    (root / "train.jsonl").write_text(re.sub(r'"answer": "\d+"', '"answer": "many"', rows), encoding="utf-8")
    with pytest.raises(RewardError, match=r"misjudges gold answers or garbage.*no reward part applies"):
        launch.train(config)
    assert not (root / "runs" / "one").exists()


def test_a_run_through_a_curriculum_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"prompt": "how many wings {k}?", "answer": "{k}"}}\n' for k in range(6))
    (tmp_path / "later.jsonl").write_text(rows, encoding="utf-8")
    train = [
        {"type": "file", "path": str(tmp_path / "train.jsonl"), "until": 10},
        {"type": "file", "path": str(tmp_path / "later.jsonl"), "after": 8},
    ]
    data = {"train": train, "rehearsal": 0.25}
    grouping = {"preset": "empirical_bayes", "allocate": True, "candidates": 1}
    whole = launch.train(make_config(tmp_path, data=data, grouping=grouping))
    half = launch.train(make_config(tmp_path, data=data, name="two", grouping=grouping), stop_at(3, signal.SIGTERM))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(whole)
    with sqlite3.connect(whole / "metrics.sqlite") as database:
        stages = [value for (value,) in database.execute("SELECT value FROM metrics WHERE name = 'stage'").fetchall()]
    assert stages == [0, 0, 1, 2, 2, 2]


def test_a_stage_with_too_few_prompts_for_a_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "how many wings?", "answer": "2"}\n', encoding="utf-8")
    config = make_config(tmp_path)
    train = [{**config.data.train[0].model_dump(), "until": 10}, {"type": "file", "path": str(tmp_path / "few.jsonl")}]
    with pytest.raises(DataError, match="has 1 usable prompts after 10 drawn ones, fewer than the 3"):
        launch.train(make_config(tmp_path, data={"train": train}))
