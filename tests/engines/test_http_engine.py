"""Training from a server: the tokens of a run, weights and their versions, and servers that fail."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import coterie
from coterie.config.schema import EngineConfig, LoraConfig
from coterie.engines.base import Request, Sampling
from coterie.engines.completion_client import CompletionClient
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.http_engine import HttpEngine
from coterie.engines.scripted import ScriptedEngine
from coterie.errors import ConfigError, EngineError
from coterie.launch import train
from coterie.policy import shared_weights
from coterie.rng import seed_of
from coterie.runs import rollouts
from coterie.serve import prompt_tokens
from coterie.serve.engine_thread import new_fingerprint
from coterie.types import SampleKey
from runs_for_tests import importable, make_config
from served_models import Client, client, embedded, script, tiny_chat
from tiny_models import tiny_policy

SAMPLING = Sampling(temperature=0.9, max_tokens=6)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_API_KEY", "key")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Client]:
    """A tiny model that takes weights from `tmp_path`."""
    chat = tiny_chat()
    engine = embedded(chat)
    with client(engine, chat, api_key="key", weights=(tmp_path, engine._policy)) as serving:
        yield serving


def address(server: Client) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


def learner(seed: int = 5, **sizes: Any) -> Any:
    size = len(tiny_chat().tokenizer)
    return tiny_policy(
        "llama", dtype=torch.float64, seed=seed, vocab_size=size, bos_token_id=0, eos_token_id=2, **sizes
    )


def engine_of(server: Client, policy: Any, folder: Path | None, **settings: Any) -> HttpEngine:
    completions = CompletionClient(base_url=address(server), retry_s=settings.pop("retry_s", 5.0))
    return HttpEngine(policy, completions, weights_folder=folder, **settings)


def asked(version: int = 0, sample: int = 0) -> Request:
    key = SampleKey(seed=3, version=version, prompt="a", sample=sample)
    return Request(key=key, prompt_tokens=(5, 9, 40))


def test_a_run_from_a_server_is_the_run_from_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32; token for token, through two updates, an evaluation, and a resume."""
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, steps=3, model={"dtype": "float32"}, eval={"every": 2})
    train(config)
    with coterie.serve(
        config.model.name, port=0, quiet=True, api_key="key", dtype="float32", weights_folder=weights, max_model_len=64
    ) as endpoint:
        engine = {"name": "http", "base_url": endpoint.address, "weights_folder": str(weights), "max_num_seqs": 5}
        other = config.model_copy(update={"name": "other", "steps": 2, "engine": EngineConfig.model_validate(engine)})
        train(other)
        coterie.resume(str(Path(config.runs) / "other"), steps=3, quiet=True)
    runs = Path(config.runs)
    for folder, steps in (("rollouts", (1, 2, 3)), ("evals", (0, 2, 3))):
        for step in steps:
            pairs = zip(
                rollouts.read_step(runs / "one" / folder, step),
                rollouts.read_step(runs / "other" / folder, step),
                strict=True,
            )
            for ours, theirs in pairs:
                assert [turn.tokens for turn in ours.rollout.turns] == [turn.tokens for turn in theirs.rollout.turns]
    assert list(weights.iterdir()) == [], "nothing is left in the folder"


def test_weights_have_the_version_of_the_policy(served: Client, tmp_path: Path) -> None:
    policy = learner()
    engine = engine_of(served, policy, tmp_path)
    local = EmbeddedEngine(policy, served.chat, version=7)
    engine.commit(7)
    (turn,), (expected,) = engine.generate([asked(7)], SAMPLING), local.generate([asked(7)], SAMPLING)
    assert turn.tokens == expected.tokens
    assert turn.version == 7
    card = served.send("GET", "/v1/models", authorization="Bearer key")[1]["data"][0]
    assert card["weight_version"] == "7"
    assert len(list(tmp_path.iterdir())) == 1
    with torch.no_grad():
        policy.head.weight.mul_(-1)
    engine.commit(8)
    local.commit(8)
    assert engine.generate([asked(8)], SAMPLING)[0].tokens == local.generate([asked(8)], SAMPLING)[0].tokens
    assert [path.name.endswith("-8.safetensors") for path in tmp_path.iterdir()] == [True], "the old file is gone"


def test_weights_of_an_adapter_are_merged(tmp_path: Path) -> None:
    policy = tiny_policy("llama", lora=LoraConfig(rank=2, alpha=4.0))
    for name, parameter in policy.parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    shared_weights.write(policy, tmp_path / "a.safetensors")
    plain = tiny_policy("llama", seed=1)
    shared_weights.read_into(plain, tmp_path / "a.safetensors")
    turns = [EmbeddedEngine(source, tiny_chat()).generate([asked()], SAMPLING)[0] for source in (plain, policy)]
    assert turns[0].tokens == turns[1].tokens
    assert turns[0].sampler_logprobs == pytest.approx(turns[1].sampler_logprobs, rel=1e-10)


def test_a_server_that_lost_the_weights_gets_them_again(
    served: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of other weights is thrown away; a server that loses them without end is named."""
    engine = engine_of(served, learner(), tmp_path)
    first = engine.generate([asked()], SAMPLING)
    with torch.no_grad():
        served.engine._policy.head.weight.zero_()  # ty: ignore[missing-attribute]
    served.thread.fingerprint = "fp_of_another_process"
    assert engine.generate([asked()], SAMPLING)[0].tokens == first[0].tokens
    sampling = prompt_tokens.Renderer.sampling

    def losing(*arguments: Any) -> Sampling:
        served.thread.fingerprint = new_fingerprint()
        return sampling(*arguments)

    monkeypatch.setattr(prompt_tokens.Renderer, "sampling", losing)
    with pytest.raises(EngineError, match="lost the weights of policy version 0 5 times"):
        engine.generate([asked()], SAMPLING)


def test_a_server_that_comes_back_goes_on(tmp_path: Path) -> None:
    """It is stopped while it samples; another one, with other weights, takes its port."""
    chat, policy = tiny_chat(), learner()
    requests = [asked(sample=sample) for sample in range(6)]
    sampling = replace(SAMPLING, max_tokens=40)
    expected = EmbeddedEngine(policy, chat).generate(requests, sampling)

    def serving(port: int = 0) -> Client:
        engine = embedded(chat)
        return Client(engine, chat, api_key="key", weights=(tmp_path, engine._policy), port=port)

    server = serving()
    engine = engine_of(server, policy, tmp_path, retry_s=30.0)
    ids = [engine.submit(request, sampling) for request in requests]
    turns = dict(engine.step())
    back: list[Client] = []

    def restart() -> None:
        server.stop()
        time.sleep(0.3)
        back.append(serving(server.port))

    thread = threading.Thread(target=restart)
    thread.start()
    while engine.unfinished:
        turns.update(engine.step())
    thread.join()
    back[0].stop()
    assert [turns[number].tokens for number in ids] == [turn.tokens for turn in expected]


def test_a_server_that_stays_away_is_named(served: Client, tmp_path: Path) -> None:
    engine = engine_of(served, learner(), tmp_path, retry_s=0.3)
    engine.submit(asked(), replace(SAMPLING, max_tokens=40))
    served.stop()
    with pytest.raises(EngineError, match=r"has not answered for 0.3 s \(last: .*coterie resume"):
        engine.step()
    assert engine.unfinished == 0
    with pytest.raises(EngineError, match="start it first, and give its key in COTERIE_API_KEY"):
        engine_of(served, learner(), tmp_path)


def test_a_server_whose_weights_stay_serves_its_own_version() -> None:
    chat = tiny_chat()
    engine = embedded(chat)
    engine.commit(4)
    with client(engine, chat, api_key="key") as served:
        fixed = engine_of(served, learner(), None)
        with pytest.raises(EngineError, match="has weight version 4, and version 0 is to be sampled"):
            fixed.generate([asked()], SAMPLING)
        fixed.commit(4)
        assert fixed.generate([asked(4)], SAMPLING)[0].version == 4
        taking = engine_of(served, learner(), Path("weights"))
        with pytest.raises(EngineError, match="cannot write the weights to weights"):
            taking.generate([asked()], SAMPLING)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("../a.safetensors", b"", "is no \\*.safetensors file in the folder"),
        ("/etc/hostname", b"", "is no \\*.safetensors file in the folder"),
        ("link.safetensors", b"", "is no \\*.safetensors file in the folder"),
        ("absent.safetensors", b"", "is no \\*.safetensors file in the folder"),
        ("a\0.safetensors", b"", "is no \\*.safetensors file in the folder"),
        ("short.safetensors", b"\x08\0\0\0\0\0\0\0{", "cannot be read"),
        ("other.safetensors", None, "is of another model: .* has the shape"),
    ],
)
def test_files_that_are_no_weights(
    served: Client, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    (tmp_path.parent / "a.safetensors").write_bytes(b"")
    (tmp_path / "link.safetensors").symlink_to(tmp_path.parent / "a.safetensors")
    (tmp_path / "short.safetensors").write_bytes(content or b"")
    shared_weights.write(learner(intermediate_size=40), tmp_path / "other.safetensors")
    weights = shared_weights.weights_of(served.engine._policy)  # ty: ignore[missing-attribute]
    before = {key: tensor.clone() for key, tensor in weights.items()}
    body = {"model_path": name, "weight_version": "3"}
    status, answer, _ = served.send("POST", "/update_weights_from_disk", body, authorization="Bearer key")
    assert status == 400
    assert re.search(message, answer["error"]["message"])
    assert all(torch.equal(before[key], tensor) for key, tensor in weights.items())
    assert served.engine.version == 0


def test_weights_are_for_those_with_the_key_and_between_requests(served: Client, tmp_path: Path) -> None:
    body = {"model_path": "a.safetensors", "weight_version": "1"}
    assert served.send("POST", "/update_weights_from_disk", body)[0] == 401
    wrong = body | {"weight_version": "latest"}
    assert served.send("POST", "/update_weights_from_disk", wrong, authorization="Bearer key")[0] == 400
    shared_weights.write(learner(), tmp_path / "a.safetensors")
    engine = engine_of(served, learner(), tmp_path)
    engine.submit(asked(), replace(SAMPLING, max_tokens=80))
    engine.step()
    while True:
        status, answer, _ = served.send("POST", "/update_weights_from_disk", body, authorization="Bearer key")
        if status == 200 or engine.unfinished == 0:
            break
        assert (status, answer["error"]["code"]) == (409, "requests_are_open")
    stale = {"prompt": [5, 9], "sample_key": {"seed": 1, "version": 0, "prompt": "a", "sample": 0}}
    status, answer, _ = served.send("POST", "/v1/completions", stale, authorization="Bearer key")
    assert (status, answer["error"]["code"]) == (409, "weight_version_mismatch")
    twice = stale | {"n": 2}
    assert served.send("POST", "/v1/completions", twice, authorization="Bearer key")[0] == 400
    chat = tiny_chat()
    with client(script(chat, "a"), chat) as closed:
        assert closed.send("POST", "/update_weights_from_disk", body)[0] == 404


def test_answers_that_do_not_fit_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny_chat()
    with client(ScriptedEngine(lambda request: [7, 8, 2], vocabulary=400), chat, max_model_len=20) as served:
        engine = engine_of(served, learner(), None)
        with pytest.raises(EngineError, match="more than the 20 of the server's sequences"):
            engine.submit(asked(), replace(SAMPLING, max_tokens=30))
        with pytest.raises(EngineError, match="at most 20 tokens, and the longest of this run 30"):
            engine_of(served, learner(), None, longest=30)
        with pytest.raises(EngineError, match="has no model 'gpt-9'; expected of tiny"):
            engine_of(served, learner(), None, model="gpt-9")
        encoded = prompt_tokens.Renderer.prompts
        monkeypatch.setattr(
            prompt_tokens.Renderer, "prompts", lambda self, call: [(0, *prompt) for prompt in encoded(self, call)]
        )
        with pytest.raises(EngineError, match="answered another prompt than it was asked"):
            engine.generate([asked()], SAMPLING)


def test_an_address_that_is_none() -> None:
    for address_ in ("", "127.0.0.1:8000", "ftp://a/v1", "http://user:secret@a/v1"):
        with pytest.raises(ConfigError, match="base_url = ") as refused:
            CompletionClient(base_url=address_)
        assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match='expected name = "http" with the address'):
        EngineConfig(name="http")
    with pytest.raises(ValueError, match='expected name = "http" with the address'):
        EngineConfig(base_url="http://a/v1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        completions = CompletionClient(base_url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.1)
        with pytest.raises(EngineError, match="timed out"):
            HttpEngine(learner(), completions)


class Unreliable(BaseHTTPRequestHandler):
    """Another server than coterie's: no version, no fingerprint; its first answers break off after a token."""

    tokens = (7, 9, 2)
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self.answered(b'{"object": "list", "data": [{"id": "other", "max_model_len": 90}]}')

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        count = 1 if len(self.asked) < 3 else 3
        events = b""
        for place, token in enumerate(self.tokens[:count]):
            scores = {"token_logprobs": [-0.5 * len(self.asked)]}
            end = "stop" if place == 2 else None
            choice = {"index": 0, "token_ids": [token], "logprobs": scores, "finish_reason": end}
            events += b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        self.answered(events, missing=1000 if count == 1 else 0)

    def answered(self, data: bytes, missing: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + missing))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line a request."""


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    """Nothing of it is used; another server gets a seed in place of the stream's name."""
    Unreliable.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Unreliable) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        engine = HttpEngine(
            learner(), CompletionClient(base_url=f"http://127.0.0.1:{server.server_port}/v1", retry_s=9.0)
        )
        (turn,) = engine.generate([asked()], SAMPLING)
        assert (turn.tokens, turn.sampler_logprobs) == (Unreliable.tokens, (-1.5, -1.5, -1.5))
        assert [body["seed"] for body in Unreliable.asked] == [seed_of(asked().key)] * 3
        assert not any("sample_key" in body for body in Unreliable.asked)
        engine.commit(1)
        with pytest.raises(EngineError, match="has weight version None, and version 1 is to be sampled"):
            engine.generate([asked(1)], SAMPLING)
        server.shutdown()
        thread.join()
