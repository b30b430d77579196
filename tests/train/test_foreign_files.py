"""Files in the shape that other trainers and data sets have, trained on for a step without a line of Python."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie import launch
from coterie.config.schema import RunConfig
from coterie.errors import RewardError
from coterie.runs import rollouts
from runs_for_tests import make_config

COUNT = 6


def asked(number: int) -> str:
    return f"how many legs have {number} cats?"


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def gsm8k(folder: Path) -> Path:
    rows = [
        {"question": asked(k), "answer": f"4 * {k} = <<4*{k}={4 * k}>>{4 * k}\n#### {4 * k},000"} for k in range(COUNT)
    ]
    (folder / "gsm8k.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "gsm8k.jsonl"


def trl(folder: Path) -> Path:
    rows = [{"prompt": [user(k)], "solution": f"$\\boxed{{{4 * k}}}$"} for k in range(COUNT)]
    return parquet(folder / "trl.parquet", rows)


def verl(folder: Path) -> Path:
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [user(k)],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(4 * k)},
            "extra_info": {"split": "train", "index": k, "question": asked(k), "answer": f"so\n#### {4 * k}"},
        }
        for k in range(COUNT)
    ]
    return parquet(folder / "verl.parquet", rows)


def open_r1(folder: Path) -> Path:
    rows = [
        {
            "problem": asked(k),
            "solution": f"## Step 1\nCount.\n\n## Step 2\nThere are ${4 * k}$.",
            "answer": str(4 * k),
            "source": "olympiads",
            "generations": ["<think>\n", "so"],
        }
        for k in range(COUNT)
    ]
    home = folder / "OpenR1-Math"
    parquet(home / "data" / "train-00000-of-00002.parquet", rows[:4])
    parquet(home / "data" / "train-00001-of-00002.parquet", rows[4:])
    (home / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Math\n"
    )
    return home


def sharegpt(folder: Path) -> Path:
    rows = [
        {
            "id": f"identity_{k}",
            "conversations": [{"from": "human", "value": asked(k)}, {"from": "gpt", "value": str(4 * k)}],
        }
        for k in range(COUNT)
    ]
    (folder / "sharegpt.json").write_text(json.dumps(rows, indent=2))
    return folder / "sharegpt.json"


def alpaca(folder: Path) -> Path:
    rows = [{"instruction": "how many legs?", "input": f"{k} cats", "output": str(4 * k)} for k in range(COUNT)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return folder / "alpaca.json"


def user(number: int) -> dict[str, str]:
    return {"role": "user", "content": asked(number)}


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "GSM8K": (gsm8k, "compare with what stands there"),
    "TRL": (trl, "read as TRL's layout: prompt from `prompt`, answer from `solution`"),
    "verl": (verl, "read as verl's layout: prompt from `prompt`, answer from `reward_model.ground_truth`"),
    "open-r1": (open_r1, "read as open-r1's layout: prompt from `problem`, answer from `answer`"),
    "ShareGPT": (sharegpt, "read as ShareGPT's layout: prompt from `conversations`, answer from the last reply"),
    "Alpaca": (alpaca, "read as Alpaca's layout: prompt from `instruction`, answer from `output`"),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(root: Path, path: Path, **changed: Any) -> RunConfig:
    data = {"train": [{"type": "file", "path": str(path), **changed}], "heldout": []}
    return make_config(
        root, steps=1, data=data, rewards={"functions": [{"name": "task"}]}, eval={"every": 0}, checkpoint={"every": 0}
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_trainer_is_validated_and_trained_on(name: str, root: Path) -> None:
    make, note = FILES[name]
    config = of(root, make(root))
    report = launch.validate(config)
    assert report.ok, report.lines
    assert any(note in text for _, _, text in report.lines)
    assert ("ok", "reward task", f"gold answers score 1, garbage 0 ({COUNT} prompts)") in report.lines
    run = launch.train(config)
    (stored, *_) = rollouts.read_step(run / "rollouts", 1)
    assert stored.rollout.error is None
    assert stored.prompt.answer is not None


def test_a_file_that_nothing_can_judge_is_refused_by_validate_and_before_the_model_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(root / "odd.parquet", [{"prompt": asked(k), "meta": {"gold_number": 4 * k}} for k in range(COUNT)])
    config = of(root, path)
    said = (
        f"6 of 6 prompts of {path} cannot be scored: task needs a gold answer, and they have none; its columns are "
        'prompt, meta.gold_number; set answer_column on this source, e.g. answer_column = "meta.gold_number", or add a '
        "reward that needs no gold answer"
    )
    assert ("fail", "rewards", said) in launch.validate(config).lines
    with monkeypatch.context() as patch:
        patch.setattr(launch, "policy_for", lambda *_: pytest.fail("the model was loaded"))
        with pytest.raises(RewardError) as error:
            launch.train(config)
    assert str(error.value) == said
    assert not (root / "runs" / "one").exists()
    assert launch.validate(of(root, path, answer_column="meta.gold_number")).ok


def test_a_held_out_file_without_answers_is_refused_too(root: Path) -> None:
    config = of(root, trl(root))
    held = parquet(root / "held.parquet", [{"question": f"{k} dogs?", "label": str(k)} for k in range(4)])
    heldout = [{"type": "file", "path": str(held)}]
    config = config.model_copy(
        update={"data": config.data.model_validate({**config.data.model_dump(), "heldout": heldout})}
    )
    failed = [text for level, _, text in launch.validate(config).lines if level == "fail"]
    assert len(failed) == 1
    assert 'e.g. answer_column = "label"' in failed[0]


def test_a_reward_that_needs_a_missing_column_is_refused_before_the_model_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "needy_rewards.py").write_text(
        "def needy(completions, ground_truth):\n    return [1.0] * len(completions)\n"
    )
    config = of(root, trl(root)).model_copy(
        update={
            "rewards": RunConfig.model_validate({"rewards": {"functions": [{"name": "needy_rewards:needy"}]}}).rewards
        }
    )
    monkeypatch.setattr(launch, "policy_for", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(
        RewardError, match=r"fails on every prompt.*needs 'ground_truth', but the prompts only have .*solution"
    ):
        launch.train(config)


def test_a_column_named_like_an_argument_of_rewards_is_told(root: Path) -> None:
    path = parquet(
        root / "odd.parquet", [{"prompt": asked(k), "answer": k, "completions": "mine"} for k in range(COUNT)]
    )
    told = [
        text
        for level, subject, text in launch.validate(of(root, path)).lines
        if (level, subject) == ("warn", "rewards")
    ]
    assert len(told) == 1
    assert re.match(r"the column 'completions' of the data does not reach reward functions", told[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "1", "utterances": ["hi"]}\n' * 10, r"its columns are id, utterances; set prompt_column"),
        (
            '{"id": "1", "conversations": []}\n' * 10,
            r"none of the 10 rows .* can be used; its columns are id, conversations",
        ),
    ],
)
def test_files_without_a_usable_row_name_their_columns(text: str, said: str, root: Path) -> None:
    (root / "talk.jsonl").write_text(text)
    report = launch.validate(of(root, root / "talk.jsonl"))
    assert not report.ok
    (line,) = [text for level, subject, text in report.lines if level == "fail"]
    assert re.search(said, line)
    assert "max_bad_share" not in line
