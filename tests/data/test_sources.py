"""Generated items, assets, the hub and the user's own functions as prompt sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coterie.config.data import AssetSource, DataConfig, HubSource, PythonSource, ReasoningGymSource
from coterie.data import assets, tasks
from coterie.data.chat import Chat
from coterie.data.prompts import PromptSet, load
from coterie.errors import AssetError, DataError
from tiny import tiny_tokenizer

CHAT = Chat(tiny_tokenizer())
LENIENT = DataConfig(max_bad_share=1)


def test_generated_items_keep_seed_and_index_in_the_id_and_drop_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    def items(name: str, params: dict[str, Any], size: int, seed: int) -> Iterator[tasks.Item]:
        for index in range(size):
            yield tasks.Item(
                index=index,
                question=f"q{index // 2}",
                answer=str(index),
                attributes={"reasoning_gym": {"index": index}},
            )

    monkeypatch.setattr(tasks, "items", items)
    source = ReasoningGymSource(type="reasoning_gym", name="leg_counting", size=6, seed=3)
    prompts = load([source], DataConfig(), CHAT)
    assert [prompt.id for prompt in prompts.prompts] == [f"leg_counting/3-{index}" for index in (0, 2, 4)]
    assert prompts.prompts[1].attributes == {"reasoning_gym": {"index": 2}}
    assert prompts.repeated == 3
    assert prompts.warnings == ["dropped 3 duplicate prompts"]
    assert len(load([source], DataConfig(), CHAT, limit=2).prompts) == 2


def test_question_assets_are_read_and_models_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "how many legs", "answer": "8", "id": "gsm8k-test-0013"}))
    monkeypatch.setattr(assets, "ensure", lambda name: path if name == "gsm8k-100" else tmp_path)
    prompts = load([AssetSource(type="asset", name="gsm8k-100")], DataConfig(), CHAT)
    assert prompts.prompts[0].id == "gsm8k-100/gsm8k-test-0013"
    with pytest.raises(DataError, match="the asset 'smollm2-135m' is a model, not questions"):
        load([AssetSource(type="asset", name="smollm2-135m")], DataConfig(), CHAT)


def test_an_unknown_asset_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    with pytest.raises(AssetError, match=r"no asset 'gsm8k'; .*did you mean 'gsm8k-100'"):
        load([AssetSource(type="asset", name="gsm8k")], DataConfig(), CHAT)


def test_a_hub_source_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="'openai/gsm8k' needs the package datasets: "):
        load([HubSource(type="hub", name="openai/gsm8k")], DataConfig(), CHAT)


def test_a_hub_source_is_read_and_its_errors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
            if split != "train":
                raise ValueError(f'Unknown split "{split}".\nlong story')
            return [{"question": "a", "answer": "b\n#### 4"}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    (prompt,) = load([HubSource(type="hub", name="openai/gsm8k", config="main")], DataConfig(), CHAT).prompts
    assert (prompt.id, prompt.answer) == ("gsm8k/1", "4")
    with pytest.raises(DataError, match=r"split 'tset'\) cannot be loaded: Unknown split \"tset\".; check the names"):
        load([HubSource(type="hub", name="openai/gsm8k", split="tset")], DataConfig(), CHAT)


def test_the_columns_of_a_hub_source_are_mapped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
            return [{"query": "2 + 2?", "response": {"text": "The answer is $\\boxed{4}$."}, "type": "GSM"}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    source = HubSource(type="hub", name="meta-math/MetaMathQA", prompt_column="query", answer_column="response.text")
    (prompt,) = load([source], DataConfig(), CHAT).prompts
    assert (prompt.messages[0]["content"], prompt.answer) == ("2 + 2?", "4")
    message = r"meta-math/MetaMathQA has no column `prompt`.* columns are query, response.text, type; .*\"query\""
    with pytest.raises(DataError, match=message):
        load([source.model_copy(update={"prompt_column": None})], DataConfig(), CHAT)


MODULE = """
def rows(count=2):
    for index in range(count):
        yield {"question": f"number {index}", "answer": index}
def wrong(): return {"question": "a"}
def other(): return [{"text": "a"}]
def mixed(): return [{"question": "a"}, 7]
def fails(): raise RuntimeError("no network")
def breaks():
    yield {"question": "a"}
    raise RuntimeError("half way")
constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_questions.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_questions", raising=False)
    return "my_questions"


def of_python(target: str, config: DataConfig = LENIENT, **options: Any) -> PromptSet:
    return load([PythonSource(type="python", target=target, **options)], config, CHAT)


def test_your_own_function_in_the_working_folder(module: str, tmp_path: Path) -> None:
    prompts = of_python(f"{module}:rows", params={"count": 5}, limit=3)
    assert [(prompt.id, prompt.answer) for prompt in prompts.prompts] == [
        ("rows/1", "0"),
        ("rows/2", "1"),
        ("rows/3", "2"),
    ]
    assert str(tmp_path) not in sys.path
    (bad,) = of_python(f"{module}:mixed").quarantined
    assert (bad.row, bad.reason) == (2, "is a int, expected a dict of columns")


@pytest.mark.parametrize(
    ("target", "params", "message"),
    [
        ("rows", {}, "'rows' is not of the form `module:function`"),
        ("nowhere_at_all:rows", {}, "found no module 'nowhere_at_all' in .* nor among the installed ones"),
        ("my_questions:row", {}, "'my_questions' has no function 'row'"),
        ("my_questions:constant", {}, "'my_questions' has no function 'constant'"),
        ("my_questions:fails", {}, "my_questions:fails raised RuntimeError: no network; it was called with {}"),
        ("my_questions:breaks", {}, "my_questions:breaks raised RuntimeError at row 2: half way"),
        ("my_questions:other", {}, "has no column `prompt`, .*its columns are text; set prompt_column .*text"),
        ("my_questions:wrong", {}, "my_questions:wrong returned a dict, expected an iterable of row dicts"),
        ("my_questions:rows", {"cuont": 1}, "raised TypeError: .*cuont.*called with {'cuont': 1}"),
    ],
)
def test_what_can_be_wrong_with_your_own_function(
    module: str, target: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        of_python(target, params=params)
