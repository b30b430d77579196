"""Whole runs with episodes of several turns: credit by turn, the same bits after a resume, and all of it stored."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie import launch
from coterie.batches.pack import continuation
from coterie.cli.main import main
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
from coterie.runs import rollouts
from coterie.runs.metrics import MetricsDB
from coterie.runs.rollouts import RolloutRecord
from runs_for_tests import Watch, fingerprint, importable, killed, make_config, stop_at

ENVIRONMENT = '''
from coterie.envs.base import Observation


def letters(prompt, turns=3):
    """Each turn earns the share of the letter a; the state is how often it was said at all."""
    said = yield Observation(messages=prompt.messages, state="start")
    seen = 0
    for turn in range(1, turns):
        seen += "a" in said
        again = ({"role": "user", "content": f"again {seen}"},)
        said = yield Observation(messages=again, state=(turn, seen), reward=said.count("a") / 24)
    return said.count("a") / 24
'''
REPLAY = {"groups": 1, "min_ratio": 0.01, "max_ratio": 100.0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_env.py").write_text(ENVIRONMENT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    return tmp_path


def settings(**changed: Any) -> dict[str, Any]:
    return {
        "environment": {"name": "tiny_env:letters", "max_tokens": 160},
        "rewards": {"functions": [{"name": "environment"}]},
        **changed,
    }


def config_for(root: Path, **changed: Any) -> RunConfig:
    return make_config(root, **settings(**changed))


def read(run: Path, step: int, folder: str = "rollouts") -> list[RolloutRecord]:
    return rollouts.read_step(run / folder, step)


def metrics(run: Path, step: int) -> dict[str, float]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return database.step_metrics(step)


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "gigpo": {"advantage": {"gigpo_weight": 1.0, "gamma": 0.9}},
    "mixture": {"grouping": {"preset": "mixture", "refit_every": 2, "min_weight": 4.0}, "replay": REPLAY},
    "per part": {
        "grouping": {"preset": "rloo", "per_reward": True},
        "rewards": {"functions": [{"name": "environment"}, {"name": "tiny_rewards:likes_a", "weight": 0.5}]},
    },
}


SLOW = ("grpo", "per part")  # the others go the same ways


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(changed, marks=pytest.mark.slow if name in SLOW else (), id=name)
        for name, changed in VARIANTS.items()
    ],
)
def test_it_resumes_to_the_same_bits(changed: dict[str, Any], root: Path) -> None:
    whole = launch.train(config_for(root, **changed))
    half = launch.train(config_for(root, name="two", **changed), stop_at(3, signal.SIGTERM))
    assert launch.resume(half) == half
    assert fingerprint(half) == fingerprint(whole)
    for turn in (turn for row in read(whole, 6) for turn in row.rollout.turns):
        assert turn.sampler_entropies is not None
        assert len(turn.sampler_entropies) == len(turn.tokens)
        assert min(turn.sampler_entropies, default=1) > 0
    step_metrics = metrics(whole, 6)
    assert step_metrics["grad_norm"] > 0
    assert all(math.isfinite(value) for value in step_metrics.values())
    if "replay" in changed:
        assert sum(metrics(whole, step).get("replay/groups", 0.0) for step in range(2, 7)) > 0


def test_killed_in_the_middle_of_an_episode_it_resumes_to_the_same_bits(root: Path) -> None:
    changed = settings(**VARIANTS["mixture"])
    assert killed(root, "decode", 45, changed=json.dumps(changed)) == -signal.SIGKILL
    run = launch.resume("one", runs=root / "runs")
    assert fingerprint(run) == fingerprint(launch.train(make_config(root, name="whole", **changed)))


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_episodes_loses_the_step_and_a_resume_repeats_it(root: Path) -> None:
    class Twice(Watch):
        """Sends this process two Ctrl-C while the fourth step's episodes are open."""

        def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
            if name == "sampling" and done and len(self.steps) == 3:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)

    short: dict[str, Any] = {"steps": 4, "eval": {"every": 0}}
    whole = launch.train(config_for(root, **short))
    with pytest.raises(KeyboardInterrupt, match=r"continues from the checkpoint of step 2 and trains step 3 again"):
        launch.train(config_for(root, name="two", **short), Twice())
    assert fingerprint(launch.resume("two", runs=root / "runs")) == fingerprint(whole)


def test_every_turn_is_stored_trained_and_judged(root: Path) -> None:
    changed = {"grouping": {"preset": "rloo", "weights": "none"}, "eval": {"every": 0}}
    model = {"name": str(root / "model"), "dtype": "float32"}
    run = launch.train(config_for(root, steps=2, model=model, **changed))
    rows = read(run, 2)
    for row in rows:
        turns = row.rollout.turns
        assert len(turns) == 3
        assert turns[0].state == "start"
        assert row.rollout.reward == pytest.approx(sum(turn.reward for turn in turns))
        assert [message["role"] for message in row.rollout.messages] == ["user", "assistant"] * 3
        _, trained, _ = continuation(row.rollout)
        assert row.logprobs is not None
        assert trained.sum() == len(row.logprobs) == row.rollout.context.completion_length
        sampled = [p for turn in turns for p in turn.sampler_logprobs]
        np.testing.assert_allclose(row.logprobs, sampled, atol=2e-4)  # the learner sees what the sampler saw
    credits = [row.credit for row in rows if row.credit is not None]
    by_turn = [credit for credit in credits if isinstance(credit.advantage, tuple)]
    assert by_turn
    assert all("state" in credit.contributions for credit in credits)
    assert metrics(run, 2)["grouping/scale/state"] > 0
    assert 0 < metrics(run, 2)["grouping/state/shared"] <= 1
    (record, *_) = read(run, 2, "evals")
    assert len(record.rollout.turns) == 3


def test_the_scale_can_be_left_out(root: Path) -> None:
    grouping = {"preset": "rloo", "ablate": ["state"]}
    run = launch.train(config_for(root, steps=2, grouping=grouping, eval={"every": 0}))
    credits = [row.credit for row in read(run, 2) if row.credit is not None]
    assert not any(isinstance(credit.advantage, tuple) or "state" in credit.contributions for credit in credits)
    assert "grouping/scale/state" not in metrics(run, 2)


def test_gigpo_says_what_states_gave(root: Path) -> None:
    run = launch.train(config_for(root, steps=1, **VARIANTS["gigpo"], eval={"every": 0}))
    credits = [row.credit for row in read(run, 1) if row.credit is not None]
    assert any("state" in credit.contributions for credit in credits)
    assert any(isinstance(credit.advantage, tuple) for credit in credits)


def test_episodes_are_shown_turn_by_turn(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for(root, steps=1)
    run = launch.train(config)
    text = (run / "README.md").read_text(encoding="utf-8")
    assert "\nuser: again " in text
    assert "\nassistant: " in text
    assert main(["experience", "one", "--columns", "messages", "--limit", "1"]) == 0
    assert "| user: again" in " ".join(capsys.readouterr().out.split())
    assert main(["rollout", str(run), "--count", "1"]) == 0
    assert "           user: again " in capsys.readouterr().out
    assert main(["rollout", str(run), "--count", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["turns"][0]["state"] == "start"
    assert [message["role"] for message in record["episode"]] == ["user", "assistant"] * 3


def test_validate_plays_some_episodes(root: Path) -> None:
    lines = {subject: (level, text) for level, subject, text in launch.validate(config_for(root)).lines}
    assert lines["environment"][0] == "ok"
    assert "16 episodes in which every turn says the gold answer have 3.0 turns" in lines["environment"][1]
    (root / "broken_env.py").write_text(ENVIRONMENT.replace('"a" in said', "said.count(1)"), encoding="utf-8")
    broken = config_for(root, environment={"name": "broken_env:letters"})
    lines = {subject: (level, text) for level, subject, text in launch.validate(broken).lines}
    assert lines["environment"][0] == "fail"
    assert "16 of 16 episodes failed" in lines["environment"][1]
    assert "raised TypeError" in lines["environment"][1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"collect": {"oversample": 2.0}}, "set collect.oversample = 1"),
        ({"environment": {"name": "retry", "max_tokens": 8}}, "leaves no room for a prompt"),
        ({"environment": {"name": "single_turn"}}, 'environment.name = "single_turn" gives nothing'),
        ({"advantage": {"gigpo_weight": 1.0, "scale": "bnpo"}}, 'set scale = "group_std" or "none"'),
        ({"environment": {"name": "single_turn", "params": {"turns": 2}}}, "takes no params"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(root, **changed)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"name": "retry", "params": {"turn": 2}}, "did you mean 'turns'"),
        ({"name": "tiny_env:lettres"}, "has no function 'lettres'"),
        ({"name": "tiny_env:Observation"}, "no generator function"),
        ({"max_tokens": 2048}, "more than the model's context of 256"),
        ({"max_tokens": 12}, "the longest prompt and one turn"),
    ],
)
def test_environments_that_cannot_be_had_leave_nothing_behind(
    environment: dict[str, Any], message: str, root: Path
) -> None:
    changed = {"environment": {**settings()["environment"], **environment}}
    with pytest.raises(ConfigError, match=message):
        launch.train(config_for(root, **changed))
    assert not (root / "runs").exists()
