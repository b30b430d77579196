"""The verbs, over stand-ins for what trains: words in, calls and exit codes and text out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import coterie
from coterie import machine
from coterie.cli.main import main
from coterie.errors import DataError
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import EvalItem, MetricsDB
from coterie.types import Context, EvalResult, Interval, Outcome, Prompt, Rollout, StopReason

PROMPTS = "".join(f'[[data.{part}]]\ntype = "file"\npath = "legs.jsonl"\n' for part in ("train", "heldout"))


class Checks:
    def __init__(self, *lines: tuple[str, str, str]) -> None:
        self.lines = list(lines)
        self.ok = all(level != "fail" for level, _, _ in lines)


def interval(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def a_rollout() -> tuple[Prompt, Rollout]:
    prompt = Prompt(id="t/1", messages=({"role": "user", "content": "2+2?"},), answer="4", task="t")
    context = Context(
        prompt_id="t/1",
        task="t",
        difficulty=None,
        version=0,
        prompt_length=1,
        completion_length=1,
        stop_reason=StopReason.STOP,
    )
    return prompt, Rollout(
        id="t/1#0@0",
        sample=0,
        turns=(),
        completion="\x1b[31m4",
        reward=1.0,
        reward_parts={"task": 1.0},
        outcome=Outcome.OK,
        context=context,
    )


@pytest.fixture
def launch(monkeypatch, tmp_path) -> list[tuple[str, Any]]:
    """A stand-in for `coterie.launch`; the list collects (function, arguments)."""
    calls: list[tuple[str, Any]] = []
    fake: Any = types.ModuleType("coterie.launch")

    def train(config, callback):
        calls.append(("train", config))
        callback.on_event("warning", "slow")
        callback.on_end(Path("runs/x"), "done")
        return Path("runs/x")

    def evaluate(target, config, callback):
        calls.append(("evaluate", (target, config)))
        result = EvalResult(
            step=3,
            task="t",
            prompts=1,
            samples=1,
            k=1,
            pass_at_1=interval(0.5),
            pass_at_k=interval(0.5),
            mean_length=2.0,
            truncated=0.0,
        )
        callback.on_evaluate([result])
        return [result]

    def sample(config, count, target=None, callback=None) -> Iterator[tuple[Prompt, Rollout]]:
        calls.append(("sample", (config, count, target)))
        for _ in range(count):
            yield a_rollout()

    class Session:
        def reply(self, text: str) -> str:
            return f"you said {text}\x07"

    def refuse(run, callback, *, runs, fresh=False, steps=None, accept_reward_change=False):
        raise DataError(f"{run} has bad rows:\x1b[2J 7")

    fake.train, fake.evaluate, fake.sample, fake.resume = train, evaluate, sample, refuse

    def chat(target, *, system=None, temperature=0.7, max_tokens=512, callback=None):
        calls.append(("chat", (target, system, temperature, max_tokens)))
        return Session()

    fake.chat = chat
    fake.validate = lambda config: Checks(("ok", "gold", "scores 1"), ("warn", "rows", "2 bad\x1b"))
    fake.dry_run = lambda config: Checks(("ok", "model", "is here"), ("fail", "reward", "garbage scores 1"))
    fake_demo: Any = types.ModuleType("coterie.demo")
    fake_demo.run_demo = lambda callback, *, task, seed, overrides: calls.append(
        ("demo", (task, seed, list(overrides)))
    )
    monkeypatch.setitem(sys.modules, "coterie.demo", fake_demo)
    monkeypatch.setitem(sys.modules, "coterie.launch", fake)
    monkeypatch.setattr(coterie, "launch", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    return calls


def test_train_hands_over_settings_and_sources(launch, capsys):
    assert main(["train", "--optim.lr", "1e-4", "steps=3", "--no-objective.mask-truncated"]) == 0
    [(_, config)] = launch
    assert (config.optim.lr, config.steps, config.objective.mask_truncated) == (1e-4, 3, False)
    out = capsys.readouterr().out
    assert "warning: slow" in out
    assert out.splitlines() == ["loading PyTorch and transformers …", "warning: slow", "done"]


def test_settings_and_options_mix(launch, capsys):
    assert main(["train", "--steps", "3", "--dry-run", "--optim.lr", "-1"]) == 2
    assert "optim.lr = -1.0 (from --optim.lr): expected more than 0" in capsys.readouterr().err
    assert main(["train", "--steps", "3", "--dry-run"]) == 1
    assert capsys.readouterr().out.splitlines() == ["ok    model   is here", "fail  reward  garbage scores 1"]
    assert launch == []


def test_demo(launch):
    assert main(["demo", "--seed", "3", "--steps", "2", "optim.lr=1"]) == 0
    assert main(["demo", "--task", "sums"]) == 0
    assert launch == [("demo", ("search", 3, ["--steps", "2", "optim.lr=1"])), ("demo", ("sums", 0, []))]


def test_reports_as_json(launch, capsys):
    assert main(["validate", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["checks"][0] == {"level": "ok", "subject": "gold", "text": "scores 1"}
    assert main(["train", "--steps", "3", "--dry-run", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["checks"][1]["level"]) == (False, "fail")
    assert main(["train", "--steps", "3", "--json"]) == 2
    assert "coterie show RUN --json" in capsys.readouterr().err


def test_the_list_of_presets_as_json_has_values(capsys):
    assert main(["algo", "ls", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["grpo"]["settings"] == {}
    assert rows["dapo"]["settings"] == {
        "objective.clip_high": 0.28,
        "objective.loss_agg_mode": "token-mean",
        "collect.dynamic_sampling": True,
    }


def test_validate(launch, capsys):
    assert main(["validate"]) == 0
    assert capsys.readouterr().out.splitlines() == ["ok    gold  scores 1", "warn  rows  2 bad\\x1b"]


def a_run(tmp_path: Path, name: str) -> Path:
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    (run / "config.toml").write_text("steps = 5\n")
    return run


def test_errors_are_one_clean_line(launch, capsys, tmp_path):
    a_run(tmp_path, "legs")
    assert main(["resume", "legs"]) == 1
    assert capsys.readouterr().err == "error: legs has bad rows:\\x1b[2J 7\n"


def test_what_is_missing_or_taken_is_told_before_anything_is_loaded(launch, capsys, tmp_path):
    taken = a_run(tmp_path, "taken")
    (taken / "rollouts").mkdir()
    (taken / "rollouts/step_000001.parquet").touch()
    for words, code, text in (
        (["resume", "nope"], 1, "no run 'nope'"),
        (["train", "--name", "a/b"], 1, "name = 'a/b' is not a folder name"),
        (["train", "--name", "taken"], 1, "runs/taken exists, and a run is never overwritten"),
        (["train", 'data.train=[{"type": "file", "path": "none.jsonl"}]'], 1, "none.jsonl does not exist"),
    ):
        assert main(words) == code
        output = capsys.readouterr()
        assert text in output.err
        assert output.out == ""  # not even that something is being loaded
    assert launch == []


def test_the_first_line_comes_before_what_takes_seconds():
    program = "import sys; from coterie.cli.main import main; sys.modules['torch'] = None; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, "chat", "a/m"], capture_output=True, text=True)
    assert done.stderr.startswith("loading PyTorch and transformers …\n")
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("words", [["train"], ["eval", "a/m"], ["rollout", "a/m"], ["chat", "a/m"], ["demo"]])
def test_ctrl_c_says_so(launch, capsys, monkeypatch, words):
    def interrupt(*args, **options):
        raise KeyboardInterrupt("step 3 is saved" if words == ["train"] else "")

    for name in ("train", "evaluate", "sample", "chat"):
        monkeypatch.setattr(sys.modules["coterie.launch"], name, interrupt)
    monkeypatch.setattr(sys.modules["coterie.demo"], "run_demo", interrupt)
    assert main(words) == 130
    detail = ": step 3 is saved" if words == ["train"] else ""
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted{detail}"


def test_eval_of_a_model_and_of_a_run(launch, capsys, tmp_path):
    assert main(["eval", "some/model", "--eval.samples", "8"]) == 0
    assert "held-out t at step 3: pass@1 50.0 % [50.0, 50.0]" in capsys.readouterr().out
    run = tmp_path / "runs/legs"
    (run / "checkpoints/step_000010").mkdir(parents=True)
    (run / "checkpoints/step_000010/model").mkdir()
    (run / "checkpoints/step_000010/model/config.json").write_text("{}")
    (run / "config.toml").write_text(f"seed = 7\n{PROMPTS}")
    for target in ("legs", "runs/legs", "runs/legs/checkpoints/step_000010"):
        assert main(["eval", target, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["pass_at_1"]["value"] == 0.5
    assert main(["eval", "@", str(run)]) == 0
    assert [(target, config.seed) for _, (target, config) in launch] == [
        ("some/model", 0),
        ("legs", 7),
        ("runs/legs", 7),
        ("runs/legs/checkpoints/step_000010", 7),
        (None, 7),
    ]
    assert main(["eval", "runs/nothing"]) == 2
    assert "runs/nothing does not exist" in capsys.readouterr().err


def test_a_name_that_means_no_model_is_told_before_anything_is_loaded(launch, capsys, tmp_path):
    (tmp_path / "runs/legs").mkdir(parents=True)
    (tmp_path / "runs/legs/config.toml").write_text("seed = 7")
    for verb in ("eval", "drift", "rollout", "chat"):
        assert main([verb, "smollm2-135"]) == 2
        assert "there is no model 'smollm2-135' (did you mean 'smollm2-135m'?)" in capsys.readouterr().err
        assert main([verb, "lgs"]) == 2
        assert "(did you mean 'legs'?)" in capsys.readouterr().err
        assert main([verb, "/no/such/folder"]) == 2
        assert "the folder /no/such/folder does not exist" in capsys.readouterr().err
        assert main([verb, "legs"]) == 1
        assert "has no checkpoint yet" in capsys.readouterr().err
    for verb in ("eval", "drift", "rollout"):
        assert main([verb]) == 2
        assert f"coterie {verb} needs a run or a model" in capsys.readouterr().err
    assert launch == []


def test_rollout(launch, capsys, tmp_path):
    (tmp_path / "c.toml").write_text(PROMPTS)
    assert main(["rollout", "@", "c.toml", "--count", "2", "--sampling.max-tokens", "9"]) == 0
    out = capsys.readouterr().out
    assert out.count("completion \\x1b[31m4") == 2
    assert main(["rollout", "@", "c.toml", "--count", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion"] == "\x1b[31m4"
    assert [(config.sampling.max_tokens, count) for _, (config, count, _) in launch] == [(9, 2), (128, 1)]
    assert main(["rollout", "some/model", "--count", "1"]) == 0
    assert launch[-1][1][2] == "some/model"
    assert main(["rollout", "--count", "0"]) == 2


def test_chat(launch, capsys, monkeypatch):
    lines = iter(["hello", "/reset", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", "a/m"]) == 0
    out, err = capsys.readouterr()
    assert out == "you said hello\\x07\n"
    assert "/reset is not a command" in err
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert main(["chat", "a/m", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9"]) == 0
    assert launch == [("chat", ("a/m", None, 0.7, 512)), ("chat", ("a/m", "Be brief.", 0.0, 9))]
    for wrong in (["--temperature", "-1"], ["--max-tokens", "0"]):
        assert main(["chat", "a/m", *wrong]) == 2


def test_bugs_keep_their_traceback(launch, monkeypatch, tmp_path):
    a_run(tmp_path, "x")

    def broken(run, callback, *, runs, fresh=False, steps=None, accept_reward_change=False):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["coterie.launch"], "resume", broken)
    with pytest.raises(ZeroDivisionError):
        main(["resume", "x"])


def test_config_verbs(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    assert main(["config", "init", str(file)]) == 0
    assert main(["config", "init", str(file)]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert main(["config", "init", str(tmp_path / "no/where.toml")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert main(["config", "init"]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert main(["config", "print", "@", str(file), "--steps", "3"]) == 0
    assert f"# {file}" in capsys.readouterr().out
    assert main(["config", "print", "--json", "--steps", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["steps"] == "--steps"
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "RunConfig"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--version"], 0, f"coterie {coterie.__version__}"),
        (["--help"], 0, "Commands:"),
        (["train", "--help"], 0, "--collect.group-size        completions per prompt (num_generations); default 8"),
        (["train", "--help"], 0, "--help-all"),
        (["train", "--help-all"], 0, "--collect.group-size   int >= 1; default 8"),
        (["train", "@", "no.toml", "--help-all"], 0, "--dry-run"),
        (["train", "--help"], 0, "--dry-run"),
        (["eval", "--help"], 0, "[RUN_OR_MODEL]"),
        ([], 2, "Usage: coterie"),
        (["trian"], 2, "train"),
        (["init"], 2, "`coterie config init FILE.toml` writes a config file"),
        (["runs"], 2, "No such command 'runs': `coterie ls` lists runs"),
        (["merge"], 2, "is a PEFT adapter"),
        (["config", "show"], 2, "`coterie config print @ FILE.toml` prints every setting"),
        (["show"], 2, "Missing argument 'RUN'"),
        (["ls", "--jsn"], 2, "--jsn"),
        (["train", "--optim.lrr", "1"], 2, "did you mean optim.lr?"),
        (["train", "@", "none.toml"], 2, "none.toml does not exist"),
    ],
)
def test_asking(words, code, text, capsys):
    assert main(words) == code
    output = capsys.readouterr()
    assert text in output.out + output.err
    assert bool(output.err) == (code != 0)


@pytest.mark.parametrize("verb", ["train", "demo", "eval", "rollout", "drift", "validate", "sweep"])
def test_help_fits_a_screen(verb, capsys):
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 55
    assert max(map(len, lines)) <= 100
    assert main([verb, "--help-all"]) == 0
    assert "--optim.max-grad-norm   float > 0" in capsys.readouterr().out


def test_help_is_fast():
    """Processor time of the fastest of three: other work on the machine does not count."""
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "coterie", "--help"], check=True, capture_output=True)
        after = os.times()
        spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(spent) < 0.5


@pytest.fixture
def two_runs(tmp_path) -> Path:
    """Two folders of runs with settings alone, as a run stopped before its first step leaves them."""
    for name, lr in (("legs-001", "1e-6"), ("legs-002", "2e-6")):
        (tmp_path / name).mkdir()
        text = f'steps = 5\noptim.lr = {lr}\nmodel.name = "m"\n'
        (tmp_path / name / "config.toml").write_text(text)
    return tmp_path


def test_ls(two_runs, capsys):
    assert main(["ls", "--runs", str(two_runs)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["name", "state"]
    assert [row.split()[0] for row in rows] == ["legs-001", "legs-002"] * 2
    assert rows[2] == f"legs-001 was stopped; coterie resume {two_runs}/legs-001 starts over: no step was finished"
    assert main(["ls", "--runs", str(two_runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["name"] == "legs-002"
    assert main(["ls", "--runs", str(two_runs / "none")]) == 0
    assert "coterie demo" in capsys.readouterr().out


def test_show(two_runs, capsys):
    assert main(["show", "legs-001", "--runs", str(two_runs)]) == 0
    assert "legs-001" in capsys.readouterr().out
    assert main(["show", str(two_runs / "legs-002"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    assert main(["show", "legs-007", "--runs", str(two_runs)]) == 1
    assert "legs-007" in capsys.readouterr().err


def test_diff(two_runs, capsys):
    words = ["diff", "legs-001", "legs-002", "--runs", str(two_runs)]
    assert main(words) == 0
    assert capsys.readouterr().out.split() == ["config", "legs-001", "legs-002", "optim.lr", "1e-06", "2e-06"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"config": {"optim.lr": [1e-6, 2e-6]}}
    assert main(["diff", "legs-001", "legs-001", "--runs", str(two_runs)]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_assets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    assert main(["assets", "ls"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "state", "MB", "licence", "what"]
    assert first.split()[:3] == ["smollm2-135m", "model", "absent"]
    assert main(["assets", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "smollm2-135m"
    assert main(["assets", "fetch", "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no asset 'nope'")


def test_doctor(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu(name="H100", memory=80 * machine.GIB)])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    subjects = [line.split()[0] for line in lines]
    assert {"cpu", "memory", "gpu", "[train]", "[gpu]", "asset", "selected"} <= set(subjects)
    assert "gpu        H100 (80 GiB)" in lines
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"][0]["name"] == "H100"


def test_doctor_asks_for_nothing_that_is_of_no_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "gpus", list)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "gpu        none" in out
    assert "[gpu]" not in out


def test_doctor_survives_a_broken_torch(tmp_path, monkeypatch, capsys):
    def broken() -> list[machine.Gpu]:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "gpus", broken)
    assert main(["doctor"]) == 0
    assert "torch cannot be loaded: libcudart.so.13" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["doctor"], ["validate"], ["rollout", "--count", "1"], ["ls"], ["resume", "x"]])
def test_no_color_is_obeyed_everywhere(words, launch, two_runs, monkeypatch):
    monkeypatch.setenv("COTERIE_HOME", str(two_runs))
    monkeypatch.setattr(machine, "gpus", lambda: [])
    words = [*words, "--runs", str(two_runs)] if words == ["ls"] else words
    outputs = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        with CliRunner().isolation(color=True) as (out, err, _):
            main(words)
            outputs.append(out.getvalue() + err.getvalue())
    assert b"\x1b[" in outputs[0]
    assert b"\x1b" not in outputs[1]


@pytest.fixture
def measured(tmp_path) -> Path:
    """Two runs of one setting but the learning rate, evaluated on the same prompts."""
    for name, lr, right in (("one", 1e-6, [1, 2, 4, 0]), ("two", 2e-6, [4, 4, 4, 0])):
        with RunDirectory.create(tmp_path, name, "x") as run:
            run.write_config({"steps": 2, "optim": {"lr": lr}})
            with MetricsDB(run.metrics) as database:
                for step, correct in ((0, [0, 0, 1, 0]), (2, right)):
                    result = EvalResult(
                        step=step,
                        task="t",
                        prompts=4,
                        samples=4,
                        k=4,
                        pass_at_1=interval(sum(correct) / 16),
                        pass_at_k=interval(0.5),
                        mean_length=2.0,
                        truncated=0.0,
                    )
                    items = [
                        EvalItem(task="t", prompt_id=f"t/{k}", correct=c, samples=4) for k, c in enumerate(correct)
                    ]
                    database.record_evals([result], items)
    return tmp_path


def test_show_tests_the_difference(measured, capsys):
    assert main(["show", "one", "--runs", str(measured)]) == 0
    out = capsys.readouterr().out
    line = r"  task t  pass@1 \+37\.5 points \[\+\d+\.\d, \+\d+\.\d\]  p too few prompts for a test"
    assert re.search(rf"^after minus before\n{line}$", out, re.M)
    assert main(["show", "one", "--runs", str(measured), "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["paired"]["t"]
    assert test["difference"] == 0.375
    assert set(test) == {"difference", "low", "high", "p_value", "metric", "prompts"}


def test_diff_tests_the_difference(measured, capsys):
    assert main(["diff", "one", "two", "--runs", str(measured)]) == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["task", "pass@1", "p"]
    assert table[1].startswith("t     +31.2 points [")
    assert main(["diff", "two", "one", "--runs", str(measured), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paired"]["t"]["difference"] == -0.3125


def test_diff_does_not_compare_what_was_measured_in_different_ways(measured, capsys):
    config = measured / "two" / "config.toml"
    config.write_text(config.read_text() + '[[rewards.functions]]\nname = "exact"\nweight = 1.0\n')
    assert main(["diff", "one", "two", "--runs", str(measured)]) == 0
    out = capsys.readouterr().out
    assert "held-out t not comparable: rewards.functions differ" in out
    assert "points" not in out
    assert main(["diff", "one", "two", "--runs", str(measured), "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)
    assert sections["not_comparable"] == {"t": ["rewards.functions"]}
    assert "paired" not in sections


def test_ls_takes_the_folder_as_an_argument(measured, capsys):
    assert main(["ls", str(measured)]) == 0
    assert "one" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [(1,), (1, 2)], ids=["stdout", "both"])
def test_output_that_was_closed_before_the_start_harms_nothing(closed: tuple[int, ...]) -> None:
    """As `coterie … >&-` does it."""
    words = [sys.executable, "-m", "coterie", "algo", "ls"]
    code = f"import os\nfor handle in {closed}:\n    os.close(handle)\nos.execv({words[0]!r}, {words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
