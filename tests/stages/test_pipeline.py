"""Pipelines: all stages on a tiny model, what is not made again, and what is refused; kills are in tests/faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from coterie.cli.main import app
from coterie.config.load import load_file
from coterie.config.pipeline import load_pipeline
from coterie.config.toml import dumps
from coterie.errors import ConfigError, DataError, RunError
from coterie.runs import parquet
from coterie.runs.inspect import summary
from coterie.stages import pipeline as stages
from coterie.stages.pipeline import plan_report, run_pipeline
from coterie.stages.rejection import resume
from runs_for_tests import Watch, fingerprint, importable, make_config


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(root: Path) -> dict[str, Any]:
    """R1's stages in small: a cold start, GRPO, the best of its rollouts, a fine-tuning on them, and GRPO again."""
    make_config(root)
    talks = [{"prompt": f"how many legs {k}?", "completion": "the a" + " a" * (k % 3)} for k in range(60, 100)]
    (root / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks), encoding="utf-8")
    unseen = [{"prompt": f"how many legs {k}?", "completion": "the a"} for k in range(100, 103)]
    (root / "unseen.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in unseen), encoding="utf-8")
    file = {"type": "file", "path": "train.jsonl"}
    heldout = {"data.heldout": [{"type": "file", "path": "heldout.jsonl"}]}
    return {
        "name": "tiny",
        "settings": {
            "model.name": "model", "threads": 1, "sampling.max_tokens": 8, "optim.lr": 1e-2,
            "collect": {"prompts_per_step": 4, "group_size": 4}, "checkpoint.every": 2, "data.train": [file],
            "rewards.functions": [{"name": "tiny_rewards:likes_a"}],
            "eval": {"samples": 1, "k": 1, "correct_threshold": 0.05},
        },
        "evaluation": [
            {"name": "legs", "settings": heldout},
            {"name": "last", "after": ["again"], "settings": heldout},
        ],
        "stage": [
            {
                "name": "cold", "kind": "sft",
                "settings": {"steps": 12, "sft.batch_size": 8, "data.train": [{"type": "file", "path": "talks.jsonl"}]},
            },
            {"name": "reason", "kind": "grpo", "model": "cold", "settings": {"steps": 3}},
            {"name": "kept", "kind": "rejection", "rollouts": ["reason"], "settings": {"rejection.per_prompt": 2}},
            {"name": "tuned", "kind": "sft", "data": ["kept"], "settings": {
                "steps": 4, "sft.batch_size": 4, "data.heldout": [{"type": "file", "path": "unseen.jsonl"}],
            }},
            {"name": "again", "kind": "grpo", "model": "tuned@best", "settings": {"steps": 2}},
        ],
    }  # fmt: skip


def short(content: dict[str, Any]) -> dict[str, Any]:
    """The first two stages in a few steps, without evaluations."""
    content["stage"], content["evaluation"] = content["stage"][:2], []
    for stage, steps in zip(content["stage"], (3, 2), strict=True):
        stage["settings"]["steps"] = steps
    return content


def write(root: Path, content: dict[str, Any]) -> Path:
    path = root / "pipeline.toml"
    path.write_text(dumps(content), encoding="utf-8")
    return path


def told(watch: Watch) -> list[str]:
    return [message for kind, message in watch.notes if kind == "pipeline"]


def actions(source: Path) -> list[str]:
    pipeline = stages.Pipeline(config=load_pipeline(source)[0], place=source.parent)
    return [action for _, action in pipeline.plan()]


def test_all_stages_and_what_is_not_made_again(root: Path) -> None:
    source = write(root, table(root))
    assert actions(source) == ["run"] * 5
    folder = run_pipeline(source, until="reason")
    assert actions(source) == ["done", "done", "run", "run", "run"]
    folder = run_pipeline(source)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for name in ("base", "cold", "reason", "tuned", "again"):
        assert f"\n| {name} |" in readme
    assert "| [kept](kept/README.md) | rejection | rollouts of reason | finished |" in readme
    assert (folder / "stages.png").exists()
    report = json.loads((folder / "report.json").read_text())
    assert [row["stage"] for row in report] == ["base", "cold", "reason", "tuned", "again"]
    assert [sorted(row["evaluations"]) for row in report] == [*[["legs"]] * 4, ["last", "legs"]]
    values = {row["stage"]: row["evaluations"]["legs"] for row in report}
    starts = {"cold": "base", "reason": "cold", "tuned": "base"}
    assert values["base"]["difference"] is values["again"]["difference"] is None  # started from `tuned@best`
    for stage, start in starts.items():  # paired by prompt: the difference of the means, with an interval around it
        difference, low, high = values[stage]["difference"]
        assert difference == pytest.approx(values[stage]["value"][0] - values[start]["value"][0])
        assert low <= difference <= high
        assert f"\n| {stage} | {start} | " in readme
    kept = pq.read_table(folder / "kept/data.parquet").to_pylist()
    assert all(row["run"] == "reason" and row["reward"] > 0.05 for row in kept)
    assert summary(folder / "kept").state == "finished"

    before = {name: fingerprint(folder / name) for name in ("cold", "reason", "tuned", "again")}
    watch = Watch()
    assert run_pipeline(source, watch) == folder
    assert watch.steps == []
    assert watch.evals == []
    assert all("done before" in line for line in told(watch))
    assert actions(source) == ["done"] * 5

    changed = table(root)
    changed["stage"][3]["settings"]["optim.lr"] = 2e-2
    source = write(root, changed)
    assert actions(source) == ["done", "done", "done", "run again: its inputs changed", "run again: tuned changes"]
    run_pipeline(source)
    assert fingerprint(folder / "reason") == before["reason"]
    assert fingerprint(folder / "tuned")["weights"] != before["tuned"]["weights"]
    assert fingerprint(folder / "tuned-replaced-1") == before["tuned"]  # nothing is overwritten

    config = folder / "cold/config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    with pytest.raises(RunError, match=r"cold/config\.toml was edited since stage 'cold' was finished; restore it, or"):
        run_pipeline(source)


def test_a_stage_and_all_after_it_again(root: Path) -> None:
    content = short(table(root))
    source = write(root, content)
    folder = run_pipeline(source)
    before = fingerprint(folder / "reason")
    watch = Watch()
    run_pipeline(source, watch, since="reason")
    assert told(watch)[0].startswith("stage cold (sft): done before")
    assert fingerprint(folder / "reason") == before
    assert (folder / "reason-replaced-1").exists()
    with pytest.raises(ConfigError, match="there is no stage 'absent'; expected one of cold, reason"):
        run_pipeline(source, since="absent")
    (weights,) = (folder / "reason/checkpoints").rglob("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        RunError, match=r"tiny/reason is not what stage 'reason' left: .*; restore it, or make the stage"
    ):
        run_pipeline(source)
    weights.unlink()
    with pytest.raises(RunError, match="tiny/reason is not what stage 'reason' left"):
        plan_report(source)


def test_settings_of_the_command_line_hold_for_all_stages_that_have_none_of_their_own(root: Path) -> None:
    content = short(table(root))
    del content["stage"][1]["settings"]["steps"]
    write(root, content)
    flags = ["--name", "second", "--runs", "elsewhere", "--seed", "3", "--steps=1"]
    done = CliRunner().invoke(app, ["pipeline", "@", "pipeline.toml", *flags])
    assert done.exit_code == 0, done.output
    configs = [load_file(root / f"elsewhere/second/{name}/config.toml").config for name in ("cold", "reason")]
    assert [(config.seed, config.steps) for config in configs] == [(3, 3), (3, 1)]
    for words, message in (
        ([], "expected one file of stages"),
        (["@", "pipeline.toml", "@", "pipeline.toml"], "expected one file of stages"),
        (["@", "pipeline.toml", "--stepz", "3"], "unknown setting stepz"),
        (["@", "pipeline.toml", "--seed", "three"], "seed"),
    ):
        refused = CliRunner().invoke(app, ["pipeline", *words])
        assert isinstance(refused.exception, ConfigError)
        assert message in str(refused.exception)


def test_an_adapter_that_is_merged_teaches_and_is_the_reference(root: Path) -> None:
    content = short(table(root))
    cold, reason = content["stage"]
    cold["settings"]["model.lora.rank"] = 2
    reason |= {"model": "whole", "reference": "whole"}
    reason["settings"]["objective.kl_beta"] = 0.1
    taught = {"name": "taught", "kind": "distill", "teacher": "reason", "settings": {"steps": 1}}
    content["stage"] = [cold, {"name": "whole", "kind": "merge", "model": "cold"}, reason, taught]
    source = write(root, content)
    assert plan_report(source).ok
    folder = run_pipeline(source)
    assert (folder / "whole/config.json").is_file()
    assert not list((folder / "whole").glob("adapter*"))
    settings = load_file(folder / "taught/config.toml").config
    assert settings.distill is not None
    assert settings.distill.teacher == str(folder / "reason/checkpoints/step_000002/model")
    assert load_file(folder / "reason/config.toml").config.reference.model == str(folder / "whole")
    assert actions(source) == ["done"] * 4
    reason["settings"]["optim.lr"] = 2e-2
    assert actions(write(root, content)) == [
        "done", "done", "run again: its inputs changed", "run again: reason changes"
    ]  # fmt: skip
    with (folder / "whole/config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RunError, match=r"whole/config\.json was edited since stage 'whole' was finished"):
        run_pipeline(source)
    taught.pop("teacher")
    with pytest.raises(ConfigError, match=r"distill\.teacher is missing"):
        run_pipeline(write(root, content))


def test_a_dry_run_tells_what_each_stage_would_do(root: Path) -> None:
    report = plan_report(write(root, table(root)))
    assert report.ok
    lines = {(subject, text) for _, subject, text in report.lines}
    assert ("cold", "sft: run") in lines
    assert ("kept", "its rows come from reason: not estimated") in lines
    assert {"cold: memory", "cold: time", "reason: memory", "again: time"} <= {subject for subject, _ in lines}
    assert not (root / "runs").exists()


def test_sampling_ends_with_enough_and_refuses_edited_rows_and_too_few(root: Path) -> None:
    content = table(root)
    settings: dict[str, Any] = {"rejection": {"min_reward": 0.0, "enough": 1}, "sampling.max_tokens": 24}
    settings["collect.prompts_per_step"] = 1  # of 12 prompts
    content["stage"] = [{"name": "more", "kind": "rejection", "settings": settings}]
    content["evaluation"] = []
    source = write(root, content)
    folder = run_pipeline(source)
    data = folder / "more/data.parquet"
    (row,) = pq.read_table(data).to_pylist()
    assert parquet.steps(folder / "more/rollouts") == list(range(1, row["step"] + 1))
    assert row["step"] < 12
    assert summary(folder / "more").state == "finished"
    with pytest.raises(RunError, match="is rejection sampling, which takes no option to resume"):
        resume(folder / "more", steps=3)
    pq.write_table(pq.read_table(data).slice(0, 0), data)
    with pytest.raises(RunError, match="tiny/more is not what stage 'more' left: its result has another hash; restore"):
        run_pipeline(source)
    data.unlink()
    with pytest.raises(RunError, match=r"tiny/more is not what stage 'more' left: .*; restore it, or make the stage"):
        run_pipeline(source)
    settings["rejection"] = {"min_reward": 0.0, "min_rows": 9}
    with pytest.raises(DataError, match=r"of 48 rollouts are kept, fewer than rejection\.min_rows = 9 \(.* cut by a"):
        run_pipeline(write(root, content))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (
            1,
            {"model": "tuned"},
            "stage 'reason' takes its model from 'tuned', which comes later; stages before it: cold",
        ),
        (1, {"model": "tuned@best"}, "takes its model from 'tuned', which comes later; stages before it: cold"),
        (1, {"reference": "again"}, "takes its reference from 'again', which comes later"),
        (1, {"kind": "distill", "teacher": "tuned"}, "takes its teacher from 'tuned', which comes later"),
        (2, {"rollouts": ["again"]}, "takes its rollouts from 'again', which comes later"),
        (0, {"data": ["kept"]}, "takes its data from 'kept', which comes later; stages before it: none"),
        (1, {"model": "absent"}, "takes its model from 'absent', which does not exist"),
        (3, {"data": ["reason"]}, "takes its data from 'reason', a stage of kind 'grpo'; expected rejection"),
        (
            4,
            {"model": "kept"},
            "takes its model from 'kept', a stage of kind 'rejection'; expected grpo, sft, distill or",
        ),
        (1, {"data": ["x"]}, "takes its data from 'x', which does not exist"),
        (1, {"teacher": "cold"}, "stage 'reason' is of kind 'grpo': teacher is for distill"),
        (3, {"reference": "cold"}, "stage 'tuned' is of kind 'sft': reference is for grpo and distill"),
        (4, {"kind": "merge", "model": None}, "stage 'again' merges an adapter: name its stage in model"),
        (4, {"name": "cold"}, "there are two stages 'cold'"),
        (4, {"name": "../x"}, "stage name '../x' is not usable"),
        (4, {"kind": "ppo"}, "stage.4.kind: Input should be 'grpo', 'sft', 'rejection', 'distill' or 'merge'"),
        (4, {"setings": {}}, "stage.4.setings"),
    ],
)
def test_pipelines_that_are_refused(root: Path, place: int, change: dict[str, Any], message: str) -> None:
    content = table(root)
    content["stage"][place] |= change
    with pytest.raises(ConfigError) as error:
        load_pipeline(write(root, content))
    assert message in str(error.value)


def test_an_evaluation_after_a_stage_without_a_model_is_refused(root: Path) -> None:
    content = table(root)
    content["evaluation"][1]["after"] = ["kept"]
    expected = "'last' is made after 'kept', which leaves no model; expected some of base, cold, reason, tuned, again"
    with pytest.raises(ConfigError, match=expected):
        load_pipeline(write(root, content))


def test_a_wrong_setting_of_a_late_stage_is_told_at_once(root: Path) -> None:
    content = table(root)
    content["stage"][4]["settings"] = {"stepz": 3}
    with pytest.raises(ConfigError, match="unknown setting stepz"):
        run_pipeline(write(root, content))
    assert not (root / "runs").exists()
