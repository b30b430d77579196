"""What the server says: the engine's tokens in OpenAI's form, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from coterie.engines.base import Request, Sampling
from coterie.serve.text_stream import TextStream
from coterie.types import SampleKey
from served_models import Client, client, embedded, script, tiny_chat, together
from tiny_models import tiny_model

QUESTION = [{"role": "user", "content": "how many legs 7?"}]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Client]:
    chat = tiny_chat()
    with client(embedded(chat), chat) as served:
        yield served


def sampled(served: Client, prompts: list[list[int]], n: int, sampling: Sampling) -> list[list[int]]:
    """What an engine of its own says with seed 5."""
    requests = [
        Request(key=SampleKey(seed=5, version=0, prompt=str(number), sample=k), prompt_tokens=tuple(prompt))
        for number, prompt in enumerate(prompts)
        for k in range(n)
    ]
    return [list(turn.tokens) for turn in embedded(served.chat).generate(requests, sampling)]


def test_a_chat_has_the_tokens_of_the_engine(tiny: Client) -> None:
    answer = tiny.post(
        "chat/completions",
        model="tiny",
        messages=QUESTION,
        n=3,
        seed=5,
        max_tokens=9,
        temperature=0.8,
        top_p=0.9,
        logprobs=True,
        return_token_ids=True,
    )
    prompt = tiny.chat.render([{"role": "user", "content": "how many legs 7?"}])
    sampling = Sampling(temperature=0.8, top_p=0.9, max_tokens=9)
    tokens = sampled(tiny, [prompt], 3, sampling)
    assert answer["prompt_token_ids"] == prompt
    assert [choice["token_ids"] for choice in answer["choices"]] == tokens
    assert [choice["message"]["content"] for choice in answer["choices"]] == [tiny.chat.decode(ids) for ids in tokens]
    assert answer["object"] == "chat.completion"
    assert answer["weight_version"] == "0"
    total = sum(map(len, tokens))
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": total,
        "total_tokens": len(prompt) + total,
    }
    for choice in answer["choices"]:
        content = choice["logprobs"]["content"]
        assert len(content) == len(choice["token_ids"])
        assert all(entry["logprob"] <= 0 and bytes(entry["bytes"]).decode() == entry["token"] for entry in content)


def test_completions_take_texts_and_tokens(tiny: Client) -> None:
    texts = ["the legs", "and how many"]
    ids = [tiny.chat.tokenizer(text)["input_ids"] for text in texts]
    settings: dict[str, Any] = {"max_tokens": 6, "seed": 5, "n": 2, "return_token_ids": True, "logprobs": 0}
    by_text = tiny.post("completions", prompt=texts, **settings)
    by_ids = tiny.post("completions", prompt=ids, **settings)
    tokens = [choice["token_ids"] for choice in by_text["choices"]]
    assert tokens == [choice["token_ids"] for choice in by_ids["choices"]]
    assert tokens == sampled(tiny, ids, 2, Sampling(temperature=1.0, max_tokens=6))
    assert [choice["index"] for choice in by_text["choices"]] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in by_ids["choices"]] == [ids[0], ids[0], ids[1], ids[1]]
    scores = by_text["choices"][0]["logprobs"]
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(tokens[0])
    assert by_text["usage"]["prompt_tokens"] == sum(map(len, ids))
    single = tiny.post("completions", prompt=ids[0], max_tokens=6, seed=5)
    assert single["choices"][0]["text"] == by_text["choices"][0]["text"]
    assert tiny.post("completions", prompt="the legs", temperature=0)["choices"][0]["finish_reason"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_stream_is_the_whole_in_pieces(tiny: Client, path: str) -> None:
    asked = {"messages": QUESTION} if path.startswith("chat") else {"prompt": "how many legs"}
    settings: dict[str, Any] = {"n": 2, "seed": 9, "max_tokens": 20, "return_token_ids": True, **asked}
    settings["logprobs"] = True if path.startswith("chat") else 0
    whole = tiny.post(path, **settings)
    chunks = tiny.events(path, **settings, stream_options={"include_usage": True})
    assert len(chunks) > 20
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]
        ends = [part["finish_reason"] for part in parts if part["finish_reason"]]
        assert ends == [choice["finish_reason"]]
        if path.startswith("chat"):
            assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
            assert [part["delta"].get("role") for part in parts][:2] == ["assistant", None]
            assert [entry for part in parts for entry in part["logprobs"]["content"]] == choice["logprobs"]["content"]
        else:
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert [part.get("prompt_token_ids") is None for part in parts][:2] == [False, True]


def test_a_stop_string_ends_and_is_not_shown() -> None:
    chat = tiny_chat()
    with client(script(chat, "the legs and the answer"), chat) as served:
        whole = served.post("completions", prompt="a", max_tokens=50)
        assert whole["choices"][0]["text"] == "the legs and the answer"
        assert (whole["choices"][0]["finish_reason"], whole["choices"][0]["stop_reason"]) == ("stop", None)
        cut = served.post("completions", prompt="a", max_tokens=50, stop=[" and", "zzz"])["choices"][0]
        assert (cut["text"], cut["stop_reason"]) == ("the legs", " and")
        parts = served.events("completions", prompt="a", max_tokens=50, stop=" and")
        assert "".join(part["choices"][0]["text"] for part in parts) == "the legs"
        short = served.post("completions", prompt="a", max_tokens=2)["choices"][0]
        assert (short["text"], short["finish_reason"]) == ("the legs"[: len(short["text"])], "length")


def test_pieces_of_text_are_whole_characters_and_no_start_of_a_stop() -> None:
    chat = tiny_chat()
    for text in ("the 日本 🙂 legs!", "ab\n\nabc", "caab"):
        ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        stream = TextStream(chat, ("abX", "\n\nZ"))
        pieces = [stream.add([token]) for token in ids]
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join(pieces) + stream.end(ids) == text
    stream = TextStream(chat, ("abX",))
    ids = chat.tokenizer("so abXY", add_special_tokens=False)["input_ids"]
    assert "".join(stream.add([token]) for token in ids) + stream.end(ids) == "so "


def test_the_prompt_of_a_chat_is_that_of_the_template(tiny: Client) -> None:
    parts = [{"type": "text", "text": "how many "}, {"type": "text", "text": "legs <|im_end|>"}]
    settings: dict[str, Any] = {"max_tokens": 1, "return_token_ids": True}
    answer = tiny.post("chat/completions", messages=[{"role": "user", "content": parts}], **settings)
    text = "how many legs <|im_end|>"
    assert answer["prompt_token_ids"] == tiny.chat.render([{"role": "user", "content": text}])
    assert answer["prompt_token_ids"].count(2) == 1, "what a user spells is no special token"
    answer = tiny.post("chat/completions", messages=QUESTION, add_generation_prompt=False, **settings)
    rendered = tiny.chat.render([{"role": "user", "content": "how many legs 7?"}], add_generation_prompt=False)
    assert answer["prompt_token_ids"] == rendered


def test_two_hundred_clients_at_once(tiny: Client) -> None:
    """Each gets the answer to its own question, whoever asks beside it."""

    def ask(number: int) -> list[int]:
        answer = tiny.post("completions", prompt=[3 + number % 40, 9], seed=number, max_tokens=4, return_token_ids=True)
        return answer["choices"][0]["token_ids"]

    answers = together(200, ask)
    for number in (0, 77, 199):
        assert answers[number] == ask(number)
    assert len({tuple(answer) for answer in answers}) > 50


def test_models_and_health(tiny: Client) -> None:
    status, body, _ = tiny.send("GET", "/v1/models")
    assert (status, [card["id"] for card in body["data"]]) == (200, ["tiny"])
    assert body["data"][0]["max_model_len"] == 96
    assert tiny.send("GET", "/v1/models/tiny")[1] == body["data"][0]
    assert tiny.send("GET", "/health")[:2] == (200, {"status": "ok", "model": "tiny", "waiting": 0})


ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = 'So: <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_tools_are_shown_to_the_model_and_its_calls_are_read() -> None:
    """By coterie's Hermes template, since the model's own knows no tools."""
    chat = tiny_chat()
    asked: dict[str, Any] = {"messages": QUESTION, "tools": [ADD], "max_tokens": 90}
    with client(script(chat, CALL), chat, max_model_len=600) as served:
        answer = served.post("chat/completions", return_token_ids=True, **asked)
        assert '"name": "add"' in chat.decode(answer["prompt_token_ids"])
        (choice,) = answer["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "So:")
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
        deltas = [chunk["choices"][0] for chunk in served.events("chat/completions", **asked)]
        assert "".join(part["delta"]["content"] for part in deltas).strip() == "So:"
        assert deltas[-1]["delta"]["tool_calls"][0]["function"] == call["function"]
        assert deltas[-1]["finish_reason"] == "tool_calls"
        result = {"role": "tool", "tool_call_id": call["id"], "content": "it is 2"}
        again = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
        answer = served.post("chat/completions", return_token_ids=True, **asked | {"messages": again})
        prompt = chat.decode(answer["prompt_token_ids"])
        assert '{"name": "add", "arguments": {"a": 1}}' in prompt
        assert "<tool_response>\nit is 2" in prompt
        unasked = served.post("chat/completions", **asked | {"tools": [], "tool_choice": "none"})["choices"][0]
        assert unasked["message"] == {"role": "assistant", "content": CALL}


def test_a_call_that_cannot_be_read_stays_text() -> None:
    chat, text = tiny_chat(), CALL.replace('"add"', '"subtract"')
    with client(script(chat, text), chat, max_model_len=600) as served:
        asked: dict[str, Any] = {"messages": QUESTION, "tools": [ADD], "max_tokens": 90}
        assert served.post("chat/completions", **asked)["choices"][0]["message"]["content"] == text
        parts = [chunk["choices"][0]["delta"]["content"] for chunk in served.events("chat/completions", **asked)]
        assert "".join(parts) == text


def test_an_echoed_prompt_is_scored(tiny: Client) -> None:
    """As transformers scores it; the likeliest token beside each, and as much again for a second prompt."""
    prompts = [[5, 9, 40, 7, 61], [70, 3]]
    answer = tiny.post("completions", prompt=prompts, max_tokens=2, logprobs=1, temperature=0, echo=True)
    model = tiny_model("llama", vocab_size=len(tiny.chat.tokenizer), bos_token_id=0, eos_token_id=2)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        scores = choice["logprobs"]
        asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
        tokens = [*prompt, *tiny.post("completions", **asked)["choices"][0]["token_ids"]]
        assert scores["tokens"] == [tiny.chat.tokenizer.decode([token]) for token in tokens]
        with torch.no_grad():
            expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        places = torch.tensor(tokens[1:])[:, None]
        assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
        assert scores["token_logprobs"][1:] == pytest.approx(expected[:-1].gather(1, places)[:, 0].tolist(), rel=1e-9)
        tops = [max(top.values()) for top in scores["top_logprobs"][1:]]
        assert tops == pytest.approx(expected[:-1].max(-1).values.tolist(), rel=1e-9)
        assert choice["text"].startswith(tiny.chat.tokenizer.decode(prompt))
    plain = tiny.post("completions", prompt=prompts[0], max_tokens=2, temperature=0, echo=True)["choices"][0]
    assert (plain["text"], plain["logprobs"]) == (answer["choices"][0]["text"], None)


def test_a_stop_that_ends_anyway_is_no_fault(tiny: Client) -> None:
    """lm-eval gives the spelling of the end token."""
    body: dict[str, Any] = {"prompt": [5, 9], "seed": 3, "max_tokens": 6}
    answers = [tiny.post("completions", **stop, **body)["choices"] for stop in ({}, {"stop": ["<|im_end|>"]})]
    assert answers[0] == answers[1]
