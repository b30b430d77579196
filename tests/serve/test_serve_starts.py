"""The ways to start the server: the command, Python, and the official client; and what keeps it from starting."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import coterie
from coterie.cli.main import app
from coterie.errors import ConfigError, RunError
from coterie.serve.endpoint import Endpoint, Limits
from runs_for_tests import make_model
from tiny import tiny_tokenizer
from tiny_models import tiny_model

QUESTION = [{"role": "user", "content": "how many legs 7?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "tiny")


def asked(address: str, **body: Any) -> Any:
    request = urllib.request.Request(
        address + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_a_seed_gives_what_sample_gives(model: Path) -> None:
    texts = coterie.sample(model, [QUESTION], n=3, seed=7, max_tokens=8, quiet=True)
    with coterie.serve(model, port=0, quiet=True, max_model_len=64) as endpoint:
        answer = asked(endpoint.address, messages=QUESTION, n=3, seed=7, max_tokens=8, temperature=0.7)
    assert [choice["message"]["content"] for choice in answer["choices"]] == texts[0]
    assert answer["model"] == str(model)


def test_a_loaded_model_is_served_and_stopped() -> None:
    tokenizer = tiny_tokenizer()
    endpoint = coterie.serve(
        tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer, port=0, quiet=True, max_num_seqs=2
    )
    try:
        assert (
            asked(endpoint.address, model="model", messages=QUESTION, max_tokens=2)["usage"]["completion_tokens"] <= 2
        )
    finally:
        endpoint.stop()
        endpoint.stop()
    with pytest.raises(OSError, match="refused"):
        asked(endpoint.address, messages=QUESTION)


def test_the_command_serves_until_it_is_interrupted(model: Path) -> None:
    command = [sys.executable, "-m", "coterie", "serve", str(model), "--port", "0", "--name", "tiny"]
    environment = os.environ | {"COTERIE_API_KEY": "geheim", "COTERIE_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        request = urllib.request.Request(address + "/models", headers={"authorization": "Bearer geheim"})
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait(timeout=30) == 130
        assert "Traceback" not in errors
        assert "interrupted" in errors


def test_what_keeps_it_from_starting(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} is in use by another program"):
            Endpoint(str(model), port=port)
    with pytest.raises(ConfigError, match="other machines could use the model; give an API key"):
        Endpoint(str(model), port=0, host="0.0.0.0")
    with pytest.raises(ConfigError, match="max_model_len = 10000, but the model's context is 256"):
        Endpoint(str(model), port=0, limits=Limits(max_model_len=10_000))
    with pytest.raises(ConfigError, match="max_queue = 0"):
        Limits(max_queue=0)
    with pytest.raises(TypeError, match="its limits are max_num_seqs, max_model_len"):
        coterie.serve(model, batch=3, quiet=True)
    monkeypatch.chdir(tmp_path)
    assert "there is no model 'nowhere'" in str(CliRunner().invoke(app, ["serve", "nowhere"]).exception)
    refused = CliRunner().invoke(app, ["serve", str(model), "--api-key", " "])
    assert "the API key is empty" in str(refused.exception)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ConfigError, match="the server needs a package that is not installed"):
        Endpoint(str(model), port=0)


def test_the_page_of_the_docs_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"```python session\n(.*?)```", page, re.DOTALL)
    exec(session.replace("smollm2-135m", str(model)), {})
    assert capsys.readouterr().out.strip()


def test_the_official_client(model: Path) -> None:
    openai = pytest.importorskip("openai")
    with coterie.serve(model, port=0, quiet=True, api_key="geheim", name="tiny") as endpoint:
        client = openai.OpenAI(base_url=endpoint.address, api_key="geheim", max_retries=0)
        assert [card.id for card in client.models.list()] == ["tiny"]
        settings: dict[str, Any] = {"model": "tiny", "seed": 3, "max_tokens": 6}
        whole = client.chat.completions.create(messages=QUESTION, logprobs=True, n=2, **settings)
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.choices[0].logprobs.content[0].logprob <= 0
        parts = list(client.chat.completions.create(messages=QUESTION, stream=True, **settings))
        assert "".join(part.choices[0].delta.content for part in parts) == whole.choices[0].message.content
        extra = {"return_token_ids": True}
        text = client.completions.create(prompt=[5, 9, 40], logprobs=0, extra_body=extra, **settings)
        assert len(text.choices[0].token_ids) == text.usage.completion_tokens
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.chat.completions.create(messages=QUESTION, model="gpt-9")
        with pytest.raises(openai.BadRequestError, match="not supported by this server"):
            client.chat.completions.create(messages=QUESTION, frequency_penalty=1.0, **settings)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=endpoint.address, api_key="falsch", max_retries=0).models.list()
