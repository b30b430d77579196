"""Conversations become turns by the chat template's own words; the assistant's tokens are trained and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coterie.batches.pack import continuation
from coterie.config.data import DataConfig
from coterie.config.imitation import SftConfig
from coterie.data.chat import PLAIN, Chat
from coterie.errors import DataError
from coterie.train.demonstrations import DemonstrationSet, read_demonstrations
from coterie.types import Prompt
from tiny import CHATML, tiny_tokenizer

TRIMMED = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{% if m['role'] == 'assistant' %}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Trims what is said, writes a space behind the header and ends only the assistant's turns."""
THOUGHTLESS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes an empty thought before the last reply, as Qwen 3 does, and leaves every other thought out."""
OPENED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'].split('</think>')[-1] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""Opens a thought in the prompt and drops it from turns that are over, as DeepSeek's distilled models do."""
TALK = [
    {"role": "system", "content": "the system"},
    {"role": "user", "content": "how many legs"},
    {"role": "assistant", "content": "4 and 2"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "6 legs"},
]


def read(tmp_path: Path, rows: list[dict[str, Any]], chat: Chat | None = None, **settings: Any) -> DemonstrationSet:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    heldout = settings.pop("heldout", ())
    data = settings.pop("data", {})
    config = DataConfig.model_validate({"train": [{"type": "file", "path": str(path)}]} | data)
    sft = SftConfig.model_validate({"heldout_share": 0} | settings)
    return read_demonstrations(config, sft, chat or Chat(tiny_tokenizer()), heldout=heldout, seed=0)


def parts(demonstrations: DemonstrationSet, chat: Chat, which: int = 0) -> list[tuple[str, bool]]:
    """The conversation of a row as (text of tokens in a row, whether they are trained), special tokens spelt out."""
    rollout = demonstrations.train[which].rollout
    prompt = rollout.turns[0].prompt_tokens
    tokens, trained, _ = continuation(rollout)
    pieces: list[tuple[list[int], bool]] = [(list(prompt), False)]
    for token, mark in zip(tokens.tolist(), trained.tolist(), strict=True):
        if pieces[-1][1] is not mark:
            pieces.append(([], mark))
        pieces[-1][0].append(token)
    return [(chat.tokenizer.decode(ids), mark) for ids, mark in pieces]


def test_only_the_assistants_turns_are_trained(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer())
    demonstrations = read(tmp_path, [{"messages": TALK}], chat)
    before = "<|im_start|>system\nthe system<|im_end|>\n<|im_start|>user\nhow many legs<|im_end|>\n"
    assert parts(demonstrations, chat) == [
        (f"{before}<|im_start|>assistant\n", False),
        ("4 and 2<|im_end|>", True),
        ("\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n", False),
        ("6 legs<|im_end|>", True),
    ]  # fmt: skip
    whole = "".join(text for text, _ in parts(demonstrations, chat))
    assert whole + "\n" == chat.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert demonstrations.train[0].tokens == len(chat.tokenizer(whole, add_special_tokens=False)["input_ids"])


def test_the_last_turn_alone(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer())
    (prompt, trained), reply = parts(read(tmp_path, [{"messages": TALK}], chat, turns="last"), chat)
    assert not trained
    assert "4 and 2<|im_end|>" in prompt
    assert reply == ("6 legs<|im_end|>", True)


@pytest.mark.parametrize(
    ("template", "eos", "reply", "expected"),
    [
        (CHATML, "<|im_end|>", "4 legs", "4 legs<|im_end|>"),
        (CHATML, "<|endoftext|>", "4 legs\n", "4 legs\n<|im_end|>"),
        (PLAIN, "<|endoftext|>", "4 legs", " 4 legs<|endoftext|>"),
        (TRIMMED, "<|im_end|>", "  4 legs \n", " 4 legs<|im_end|>"),
        (THOUGHTLESS, "<|im_end|>", "4 legs", "<think>\n\n</think>\n\n4 legs<|im_end|>"),
        (THOUGHTLESS, "<|im_end|>", "<think>\n2\n</think>\n4", "<think>\n2\n</think>\n4<|im_end|>"),
        (OPENED, "<|im_end|>", "<think>\n2 and 2\n</think>\n4 legs", "2 and 2\n</think>\n4 legs<|im_end|>"),
        (OPENED, "<|im_end|>", "2 and 2</think>4 legs", "2 and 2</think>4 legs<|im_end|>"),
        (CHATML, "<|im_end|>", "say <|im_end|>", "say <|im_end|><|im_end|>"),
    ],
)
def test_awkward_templates(tmp_path: Path, template: str, eos: str, reply: str, expected: str) -> None:
    chat = Chat(tiny_tokenizer(template=template, eos=eos))
    rows = [{"prompt": "how many", "completion": reply}]
    demonstrations = read(tmp_path, rows, chat)
    assert parts(demonstrations, chat)[1] == (expected, True)
    (turn,) = demonstrations.train[0].rollout.turns
    assert list(turn.prompt_tokens) == chat.render([{"role": "user", "content": "how many"}])
    ends = [token for token in turn.tokens if token in chat.stop_ids]
    assert ends == [turn.tokens[-1]]  # nothing in the words ends the turn
    spoken = chat.decode(turn.tokens)
    assert (
        spoken.strip() == expected.replace("<|im_end|>", "").replace("<|endoftext|>", "").strip()
        or "<|im_end|>" in reply
    )


def test_a_tag_that_is_a_token_stays_one(tmp_path: Path) -> None:
    tags = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    chat = Chat(tiny_tokenizer(specials=tags))
    demonstrations = read(tmp_path, [{"prompt": "how many", "completion": "<think>2</think>4<|im_start|>"}], chat)
    tokens = demonstrations.train[0].rollout.turns[0].tokens
    assert tokens.count(3) == tokens.count(4) == 1
    assert 1 not in tokens
    assert chat.decode(tokens) == "<think>2</think>4<|im_start|>"


def test_annotated_steps_are_kept_as_boundaries(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer())
    rows: list[dict[str, Any]] = [
        {"prompt": "how many", "steps": ["2 and 2 is 4", "the answer is é"], "answer": 4},
        {"prompt": "how many?", "steps": ["2 and 2", "is 4"], "completion": "the:  2 and 2\n\nis 4. 4"},
        {"prompt": "how many legs", "completion": "4"},
    ]
    demonstrations = read(tmp_path, rows, chat, layout="<think>{steps}</think>{answer}")
    written = [chat.decode(demo.rollout.turns[0].tokens) for demo in demonstrations.train]
    assert written[0] == "<think>2 and 2 is 4\nthe answer is é</think>4"
    for demo, text in zip(demonstrations.train[:2], written, strict=False):
        tokens = demo.rollout.turns[0].tokens
        upto = [chat.decode(tokens[: step.end + 1]) for step in demo.rollout.step_rewards]
        steps = rows[demo.row - 1]["steps"]
        assert [text_so_far.endswith(step) for text_so_far, step in zip(upto, steps, strict=True)] == [True, True], text
    assert not demonstrations.train[2].rollout.step_rewards
    assert "2 have annotated steps" in demonstrations.notes[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": TALK[:2]}, "row 1 has no turn of the assistant; expected one among its messages"),
        ({"prompt": "how many"}, "has no turn of the assistant"),
        ({"prompt": "how many", "steps": ["a"]}, "has steps, but neither a completion nor an answer"),
        ({"prompt": "how", "steps": "a", "answer": "b"}, "has 'a' as steps, expected a list of texts"),
        ({"prompt": "how", "steps": ["2", "3"], "completion": "2 or 3"}, "step 2, '3', does not stand after step 1"),
        ({"prompt": "how", "steps": ["5"], "completion": "2 or 3"}, "step 1, '5', does not stand in it"),
        ({"prompt": "how", "completion": "the " * 300}, "more than sft.max_tokens = 200; nothing is cut"),
        ({"prompt": "how", "completion": " "}, "has an empty completion"),
        ({"completion": "4"}, "has no messages and no prompt"),
        ({"messages": [*TALK, TALK[0]]}, "has a system message at messages[5]; it must come first"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, [row], max_tokens=200)
    assert reason in str(error.value)
    good = [{"prompt": f"how {k}", "completion": "4"} for k in range(99)]
    demonstrations = read(tmp_path, [*good, row], max_tokens=200)
    assert [bad.row for bad in demonstrations.quarantined] == [100]
    assert len(demonstrations.train) == 99


def test_a_thought_without_an_end_is_a_bad_row(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer(template=OPENED))
    with pytest.raises(DataError, match="has a reply without '</think>', but the model's chat template opens"):
        read(tmp_path, [{"prompt": "how", "completion": "4"}], chat)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "how many", "completion": "4"},
        {"prompt": "How many  ", "steps": ["2 and 2"], "answer": "4"},
        {"prompt": [TALK[0], {"role": "user", "content": "how MANY"}], "completion": "4"},
        {"messages": [TALK[0], {"role": "user", "content": "how many"}, *TALK[2:]]},
    ],
)
def test_held_out_items_are_refused_with_the_row(tmp_path: Path, row: dict[str, Any]) -> None:
    heldout = Prompt(id="held/3", messages=({"role": "user", "content": "How  many"},), answer="4", task="held")
    rows = [{"prompt": "how", "completion": "4"}, row]
    with pytest.raises(DataError, match=r"rows\.jsonl row 2 answers the held-out prompt 'held/3'"):
        read(tmp_path, rows, heldout=[heldout])


def test_the_share_set_aside_keeps_a_prompts_answers_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"how {k // 2}", "completion": f"{k}"} for k in range(40)]
    demonstrations = read(tmp_path, rows, heldout_share=0.25)
    texts = [{demo.prompt.messages[-1]["content"] for demo in demos} for demos in (demonstrations.train, demonstrations.heldout)]  # fmt: skip  # noqa: E501
    assert (len(demonstrations.train), len(demonstrations.heldout)) == (30, 10)
    assert not texts[0] & texts[1]


def test_a_generator_holds_nothing_to_imitate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the generator 'leg_counting', whose items hold no answers"):
        read(tmp_path, [], data={"train": [{"type": "reasoning_gym", "name": "leg_counting"}]})
