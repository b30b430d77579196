"""Good rows become prompts, bad ones are quarantined with row and reason, and too many stop the load."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.config.data import DataConfig, FileSource, ReasoningGymSource
from coterie.data.chat import Chat
from coterie.data.columns import BadRowError, read_columns
from coterie.data.prompts import PromptSet, load
from coterie.errors import DataError
from coterie.types import Message
from tiny import tiny_tokenizer

CHAT = Chat(tiny_tokenizer())
LENIENT = DataConfig(max_bad_share=1)


def write(path: Path, *lines: object) -> str:
    """A .jsonl file: strings and bytes are lines as they are, the rest becomes JSON."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return str(path)


def of_lines(tmp_path: Path, *lines: object, config: DataConfig = LENIENT, **options: Any) -> PromptSet:
    return load([FileSource(type="file", path=write(tmp_path / "q.jsonl", *lines), **options)], config, CHAT)


def good(number: int = 1) -> dict[str, Any]:
    return {"question": f"how many legs {number}", "answer": number}


def reasons(prompts: PromptSet) -> dict[int, str]:
    return {bad.row: bad.reason for bad in prompts.quarantined}


def test_a_file_becomes_prompts_with_ids_answers_and_attributes(tmp_path: Path) -> None:
    prompts = of_lines(
        tmp_path,
        {"question": "one and one?", "answer": "2", "difficulty": 1.5, "tags": ["sum", {"deep": None}]},
        {"prompt": "two and two?", "answer": 4, "id": "second"},
    )
    first, second = prompts.prompts
    assert (first.id, first.task, first.answer) == ("q/1", "q", "2")
    assert first.messages == ({"role": "user", "content": "one and one?"},)
    assert first.attributes == {"question": "one and one?", "difficulty": 1.5, "tags": ["sum", {"deep": None}]}
    assert second.attributes == {"id": "second", "answer": 4, "gold_answer": "4"}
    assert (second.id, second.answer) == ("q/second", "4")
    assert prompts.token_ids["q/1"] == tuple(CHAT.render(first.messages))
    assert prompts.quarantined == ()
    assert prompts.warnings == []


def test_progress_is_told_row_by_row(tmp_path: Path) -> None:
    told: list[int] = []
    path = write(tmp_path / "q.jsonl", good(1), {"bad": 1}, good(2))
    load([FileSource(type="file", path=path)], LENIENT, CHAT, told=told.append)
    assert told == [1, 2, 3]


def test_system_comes_first_and_the_instruction_last(tmp_path: Path) -> None:
    config = DataConfig(system="Be brief.")
    prompts = of_lines(tmp_path, good(), config=config, instruction="Only the number.", task="legs")
    (prompt,) = prompts.prompts
    assert prompt.id == "legs/1"
    assert prompt.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how many legs 1\nOnly the number."},
    )


def test_a_rows_own_messages_and_system_message_stay(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "legs?"},
    ]
    prompts = of_lines(
        tmp_path, {"prompt": talk, "answer": None}, config=DataConfig(system="Ours."), instruction="Now."
    )
    (prompt,) = prompts.prompts
    assert prompt.messages == (*talk[:3], {"role": "user", "content": "legs?\nNow."})
    assert prompt.answer is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5 * 2 = <<5*2=10>>10\n#### 10", "10"),
        ("so\n#### $1,234.50", "1234.50"),
        ("#### -3", "-3"),
        ("#### 3 apples", "3 apples"),
        ("so\n#### 10,\\!080", "10080"),
        ("so\n#### 1{,}234.50", "1234.50"),
        ("so\n#### −5", "-5"),
        ("so\n#### 1/2", "1/2"),
        ("  42 ", "42"),
        ("1,234", "1,234"),
        (7, "7"),
        (7.0, "7"),
        (2.5, "2.5"),
        (-(10**30), str(-(10**30))),
    ],
)
def test_gold_answers(answer: object, gold: str) -> None:
    question = read_columns({"question": "?", "answer": answer})
    assert question.answer == gold
    same = answer == gold
    assert question.attributes == {"question": "?"} | ({} if same else {"answer": answer, "gold_answer": gold})


@pytest.mark.parametrize(
    "answer",
    [
        "#### Summary\nWe add both: 42.\n\n#### Check\nDone.",
        "#### Sum\n40 + 2\n#### Check",
        "see\n##### 42",
        "#### 42\nDone.",
    ],
)
def test_headings_are_no_gold_answers(answer: str) -> None:
    assert read_columns({"question": "?", "answer": answer}).answer == answer


BAD_LINES: dict[str, tuple[object, str]] = {
    "no prompt": ({"answer": "1"}, "has no prompt; expected text in `prompt` or `question`"),
    "null prompt": ({"prompt": None}, "has no prompt"),
    "null question": ({"question": None}, "has no question"),
    "number as prompt": ({"prompt": 7}, "has a int as prompt, expected text or a list of messages: 7"),
    "object as prompt": ({"prompt": {"a": 1}}, "has a dict with the keys a as prompt, .* prompt_column = .prompt.a"),
    "empty prompt": ({"prompt": ""}, "has an empty prompt"),
    "white prompt": ({"prompt": " \n\t "}, "has an empty prompt"),
    "empty list": ({"prompt": []}, "has an empty list as prompt"),
    "no message": ({"prompt": ["hi"]}, r"has a str at prompt\[0\], expected a message"),
    "wrong role": (
        {"prompt": [{"role": "robot", "content": "x"}]},
        r"has the role 'robot' at prompt\[0\], expected system",
    ),
    "no role": ({"prompt": [{"content": "x"}]}, "has the role None"),
    "picture": (
        {"prompt": [{"role": "user", "content": [{"image": "a.png"}]}]},
        "has a list as content .* expected text",
    ),
    "empty message": ({"prompt": [{"role": "user", "content": " "}]}, r"has an empty prompt\[0\]"),
    "assistant last": (
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "ends in a message of the role 'assistant', expected 'user'",
    ),
    "late system": (
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "system", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        },
        r"has a system message at prompt\[1\]; it must come first",
    ),
    "empty answer": ({"prompt": "a", "answer": " "}, "has an empty answer"),
    "list answer": ({"prompt": "a", "answer": ["1", "2"]}, "has a list as answer, expected text or a number"),
    "bool answer": ({"prompt": "a", "answer": True}, "has a bool as answer"),
    "NUL": ({"prompt": "a\x00b"}, "has a NUL character in prompt"),
    "lone surrogate": ('{"prompt": "a\\ud800b"}', "has a lone surrogate or broken UTF-8 in prompt .character 1."),
    "surrogate elsewhere": ('{"prompt": "a", "note": ["\\udfff"]}', "has a lone surrogate or broken UTF-8 in note"),
    "NaN": ('{"prompt": "a", "answer": NaN}', "is not valid JSON: NaN is not a JSON number"),
    "infinity": ('{"prompt": "a", "x": -Infinity}', "is not valid JSON: -Infinity is not a JSON number"),
    "huge number": ('{"prompt": "a", "answer": 1e999}', "is not valid JSON: 1e999 is too large for a number"),
    "endless integer": ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "is not valid JSON: Exceeds the limit"),
    "cut off": ('{"prompt": "a', "is not valid JSON: unterminated string .character 12 of the line."),
    "not an object": ("[1, 2]", "is a JSON array; each line must be one object with columns"),
    "latin-1": (b'{"prompt": "caf\xe9"}', "is not UTF-8 .byte 15 of the line."),
    "deep": ('{"prompt": "a", "x": ' + "[" * 100 + "]" * 100 + "}", "is nested more than 64 deep in x"),
    "deeper": ("[" * 200_000, "is nested too deeply|is not valid JSON"),
    "long": ({"prompt": "many legs " * 600}, r"has \d+ prompt tokens, more than data.max_prompt_tokens = 1024"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_rows_are_quarantined_with_row_and_reason(name: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[name]
    prompts = of_lines(tmp_path, {**good(1), "id": "first"}, line, "", good(3))
    assert [prompt.id for prompt in prompts.prompts] == ["q/first", "q/4"]
    assert list(reasons(prompts)) == [2]
    assert re.match(reason, prompts.quarantined[0].reason)
    assert prompts.warnings == [f"1 bad row left out; first: {tmp_path / 'q.jsonl'} row 2 {reasons(prompts)[2]}"]


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "question", "answer", "id", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_any_row_is_usable_or_refused_with_a_reason(row: dict[str, Any]) -> None:
    try:
        question = read_columns(row)
    except BadRowError:
        return
    assert question.messages[-1]["role"] == "user"
    assert question.answer is None or question.answer.strip()
    json.dumps(question.attributes, allow_nan=False).encode()


def test_a_byte_order_mark_windows_lines_and_right_to_left_text_are_fine(tmp_path: Path) -> None:
    prompts = of_lines(tmp_path, b'\xef\xbb\xbf{"prompt": "one"}\r', '{"prompt": "\u202eabc\x7f"}', "  ")
    assert [prompt.messages[0]["content"] for prompt in prompts.prompts] == ["one", "\u202eabc\x7f"]


def test_too_many_bad_rows_stop_the_load_and_name_the_first(tmp_path: Path) -> None:
    lines = [good(0), *[{"prompt": ""}] * 7]
    message = (
        r"(?s)7 of 8 rows of .*q.jsonl are bad, more than data.max_bad_share = 0.05 allows.*row 2 has an empty.*2 more"
    )
    with pytest.raises(DataError, match=message):
        of_lines(tmp_path, *lines, config=DataConfig())
    assert len(of_lines(tmp_path, *lines).prompts) == 1


def test_the_share_counts_each_source_by_itself(tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", *map(good, range(40)))
    short = write(tmp_path / "short.jsonl", {"prompt": "a"}, {"prompt": ""})
    with pytest.raises(DataError, match=r"1 of 2 rows of .*short"):
        load([FileSource(type="file", path=path) for path in (long, short)], DataConfig(), CHAT)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no prompt of .*q.jsonl is left: 1 of 1 rows are bad, 0 also occur in training"
    ):
        of_lines(tmp_path, {"prompt": ""})
    with pytest.raises(DataError, match=r"there are no prompt sources; add a \[\[data.train\]\] table"):
        load([], DataConfig(), CHAT)
    with pytest.raises(DataError, match=r"q.jsonl has no rows"):
        of_lines(tmp_path, "", "")


def test_held_out_rows_that_are_trained_on_are_left_out(tmp_path: Path) -> None:
    train = of_lines(tmp_path, good(1), good(2))
    path = write(tmp_path / "h.jsonl", good(2), good(3), good(4))
    evaluation = load([FileSource(type="file", path=path)], DataConfig(), CHAT, exclude=train.prompts)
    assert [prompt.id for prompt in evaluation.prompts] == ["h/2", "h/3"]
    assert evaluation.excluded == 1
    assert evaluation.warnings == ["dropped 1 held-out prompt (also in the training data)"]
    with pytest.raises(DataError, match=r"0 of 2 rows are bad, 2 also occur in training, .* change seed"):
        load([FileSource(type="file", path=str(tmp_path / "q.jsonl"))], DataConfig(), CHAT, exclude=train.prompts)


def test_two_sources_of_one_task_keep_their_ids_apart(tmp_path: Path) -> None:
    first = FileSource(type="file", path=write(tmp_path / "a.jsonl", good(1)), task="legs")
    second = FileSource(type="file", path=write(tmp_path / "b.jsonl", good(2)), task="legs")
    prompts = load([first, second], DataConfig(), CHAT)
    assert [prompt.id for prompt in prompts.prompts] == ["legs/1", "legs.2/1"]
    evaluation = load(
        [FileSource(type="file", path=write(tmp_path / "c.jsonl", good(3)), task="legs")],
        DataConfig(),
        CHAT,
        prompts.prompts,
    )
    assert [prompt.id for prompt in evaluation.prompts] == ["legs.3/1"]
    assert {prompt.task for prompt in (*prompts.prompts, *evaluation.prompts)} == {"legs"}


def test_two_difficulties_of_one_generator_are_two_tasks() -> None:
    def sums(digits: int, task: str | None) -> ReasoningGymSource:
        params = {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}
        return ReasoningGymSource(type="reasoning_gym", name="chain_sum", size=3, seed=digits, params=params, task=task)

    prompts = load([sums(1, "small sums"), sums(2, None)], DataConfig(), CHAT)
    assert [prompt.task for prompt in prompts.prompts] == ["small sums"] * 3 + ["chain_sum"] * 3
    assert {prompt.source for prompt in prompts.prompts} == {"reasoning_gym:chain_sum"}


def test_limits(tmp_path: Path) -> None:
    assert len(of_lines(tmp_path, *map(good, range(9)), limit=4).prompts) == 4
    path = write(tmp_path / "l.jsonl", {"prompt": ""}, *map(good, range(9)))
    prompts = load([FileSource(type="file", path=path)], LENIENT, CHAT, limit=3)
    assert [prompt.id for prompt in prompts.prompts] == ["l/2", "l/3", "l/4"]


def test_an_empty_set_has_nothing() -> None:
    assert PromptSet.empty().prompts == ()
    assert PromptSet.empty().warnings == []


def test_a_prompt_of_just_the_limit_is_kept_and_one_token_more_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"prompt": "how many legs have nine cats"}, good(1))
    source = [FileSource(type="file", path=path)]
    longest = max(map(len, load(source, LENIENT, CHAT).token_ids.values()))
    for limit, bad in ((longest, []), (longest - 1, [1])):
        prompts = load(source, LENIENT.model_copy(update={"max_prompt_tokens": limit}), CHAT)
        assert list(reasons(prompts)) == bad


def test_a_prompt_that_the_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    template = (
        "{% if 'cat' in messages[-1].content %}{{ raise_exception('no cats') }}{% endif %}{{ messages[-1].content }}"
    )
    chat = Chat(tiny_tokenizer(template=template))
    path = write(tmp_path / "q.jsonl", {"prompt": "a cat"}, {"prompt": "a dog"})
    prompts = load([FileSource(type="file", path=path)], LENIENT, chat)
    assert reasons(prompts)[1].startswith(
        "cannot be rendered: the model's chat template refuses these messages (user): no cats"
    )


def test_a_whole_set_is_excluded_without_rendering_it_again(tmp_path: Path) -> None:
    class Counting(Chat):
        rendered = 0

        def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
            self.rendered += 1
            return super().render(messages, add_generation_prompt=add_generation_prompt)

    train = of_lines(tmp_path, good(1), good(2))
    source = FileSource(type="file", path=write(tmp_path / "h.jsonl", good(2), good(3)))
    outcomes = []
    for exclude in (train, train.prompts):
        chat = Counting(tiny_tokenizer())
        before = chat.rendered
        evaluation = load([source], DataConfig(), chat, exclude)
        outcomes.append((chat.rendered - before, [prompt.id for prompt in evaluation.prompts], evaluation.excluded))
    assert outcomes == [(2, ["h/2"], 1), (4, ["h/2"], 1)]
    again = load([FileSource(type="file", path=write(tmp_path / "x.jsonl", good(9)), task="q")], LENIENT, CHAT, train)
    assert [prompt.id for prompt in again.prompts] == ["q.2/1"]


def test_no_task_is_named_like_the_pooled_result(tmp_path: Path) -> None:
    message = "task name 'all', which is reserved for the result over all tasks"
    with pytest.raises(DataError, match=message):
        of_lines(tmp_path, good(), task="all")
    with pytest.raises(DataError, match=message):
        load([FileSource(type="file", path=write(tmp_path / "all.jsonl", good()))], DataConfig(), CHAT)
    prompts = load([FileSource(type="file", path=str(tmp_path / "all.jsonl"), task="mine")], DataConfig(), CHAT)
    assert prompts.prompts[0].task == "mine"


def test_duplicates_are_dropped_with_a_note_within_and_across_sources(tmp_path: Path) -> None:
    lines = [good(k % 4) for k in range(20)] + [{**good(1), "answer": 7}]
    first = FileSource(type="file", path=write(tmp_path / "a.jsonl", *lines))
    second = FileSource(type="file", path=write(tmp_path / "b.jsonl", good(3), good(4)))
    third = FileSource(type="file", path=write(tmp_path / "c.jsonl", good(4)))
    prompts = load([first, second, third], DataConfig(), CHAT)
    assert [prompt.id for prompt in prompts.prompts] == ["a/1", "a/2", "a/3", "a/4", "b/2"]
    assert (prompts.repeated, prompts.quarantined) == (19, ())
    assert prompts.warnings == [
        f"{tmp_path / 'a.jsonl'}: 1 dropped duplicate had another gold answer than the prompt that is kept",
        "dropped 19 duplicate prompts",
    ]
    with pytest.raises(DataError, match=r"no prompt of .*c.jsonl is left: 0 of 1 rows are bad, .* 1 are duplicates"):
        load([second, third.model_copy(update={"after": 5})], DataConfig(), CHAT)


def test_a_question_that_a_file_repeats_is_rendered_once(tmp_path: Path) -> None:
    class Counting(Chat):
        rendered = 0

        def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
            self.rendered += 1
            return super().render(messages, add_generation_prompt=add_generation_prompt)

    chat = Counting(tiny_tokenizer())
    before = chat.rendered
    load([FileSource(type="file", path=write(tmp_path / "a.jsonl", *[good(1), good(2)] * 50))], DataConfig(), chat)
    assert chat.rendered - before == 2


def test_ids_that_repeat_or_cannot_be_used_are_no_reason_to_drop_a_row(tmp_path: Path) -> None:
    ids = ["x", "x", [1], "a\nb", 2.5, "x"]
    prompts = of_lines(tmp_path, *({**good(k), "id": name} for k, name in enumerate(ids)), config=DataConfig())
    assert [prompt.id for prompt in prompts.prompts] == ["q/x", "q/row-2", "q/3", "q/4", "q/5", "q/row-6"]
    assert [prompt.attributes["id"] for prompt in prompts.prompts] == ids
    assert prompts.warnings[0].endswith("2 rows have an id that an earlier row has; they are named by number")


def test_a_source_without_a_column_for_the_prompt_names_its_columns(tmp_path: Path) -> None:
    row = {"id": "1", "query": "2 + 2?", "meta": {"answer": "4"}}
    message = r"q.jsonl has no column `prompt`, .* its columns are id, query, meta.answer; .* prompt_column = \"query\""
    with pytest.raises(DataError, match=message):
        of_lines(tmp_path, *[row] * 10)
    prompts = of_lines(tmp_path, row, prompt_column="query", answer_column="meta.answer")
    assert (prompts.prompts[0].messages[0]["content"], prompts.prompts[0].answer) == ("2 + 2?", "4")
    assert prompts.warnings == []
    message = r"has no column 'meta.anwser' \(answer_column\); its columns are .*; did you mean 'meta.answer'"
    with pytest.raises(DataError, match=message):
        of_lines(tmp_path, row, prompt_column="query", answer_column="meta.anwser")


def test_where_every_row_is_bad_nobody_is_told_to_train_without_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of the 10 rows of .*q.jsonl can be used.*columns are prompt, n"
    ) as error:
        of_lines(tmp_path, *[{"prompt": "", "n": 1}] * 10, config=DataConfig())
    assert "max_bad_share" not in str(error.value)


def test_what_was_recognised_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k}?", "solution": f"$\\boxed{{{k}}}$", "completions": []} for k in range(2)]
    unmarked = {"prompt": "2?", "solution": "First.\nSecond."}
    prompts = of_lines(tmp_path, *rows, unmarked)
    name = tmp_path / "q.jsonl"
    assert prompts.warnings == [
        f"{name}: read as TRL's layout: prompt from `prompt`, answer from `solution` (2 rows)",
        f"{name}: read prompt from `prompt`, no gold answer (`solution` ends neither in a box nor in a `####` line) "
        "(1 row)",
    ]
    (note,) = of_lines(tmp_path, {"question": "?", "answer": "so\n#### 4"}).warnings
    assert note.endswith("compare with what stands there, the column `gold_answer`")
    (columns,) = prompts.sources
    assert columns.columns == ("prompt", "solution", "completions")
    assert (columns.unmarked, columns.prompts) == (1, {"q/1", "q/2", "q/3"})


def test_a_file_in_one_cell_is_refused_before_it_is_tokenised(tmp_path: Path) -> None:
    class Never(Chat):
        def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
            assert len(messages[0]["content"]) < 100
            return super().render(messages, add_generation_prompt=add_generation_prompt)

    path = write(tmp_path / "q.jsonl", good(1), {"prompt": "x" * 200_000})
    prompts = load([FileSource(type="file", path=path)], LENIENT, Never(tiny_tokenizer()))
    assert reasons(prompts) == {2: "has 200,000 characters, more than data.max_prompt_tokens = 1024 can hold"}


def test_a_folder_is_a_task_of_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "OpenR1-Math.1"
    folder.mkdir()
    write(folder / "train-0.jsonl", {"problem": "one?", "answer": "1"})
    write(folder / "train-1.jsonl", {"problem": "two?", "answer": "2"})
    prompts = load([FileSource(type="file", path=str(folder))], DataConfig(), CHAT)
    assert [(prompt.id, prompt.task, prompt.source) for prompt in prompts.prompts] == [
        ("OpenR1-Math.1/1", "OpenR1-Math.1", "file:OpenR1-Math.1"),
        ("OpenR1-Math.1/2", "OpenR1-Math.1", "file:OpenR1-Math.1"),
    ]
    assert prompts.warnings == [
        f"{folder}: split train: 2 files (train-0.jsonl …)",
        f"{folder}: read as open-r1's layout: prompt from `problem`, answer from `answer`",
    ]
