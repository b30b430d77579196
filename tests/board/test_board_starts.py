"""The ways to start the board: the command, Python, beside a training; the export; the tokens' texts."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shown_runs import make_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

import coterie
from coterie.board import server
from coterie.board.server import Board, beside
from coterie.board.token_text import TokenTexts, token_texts
from coterie.cli.main import app
from coterie.errors import ConfigError, RunError


def opened(address: str) -> str:
    """The text at an address with a token, which an opener without cookies cannot follow: of the first answer."""
    token = address.partition("?token=")[2].partition("#")[0]
    request = urllib.request.Request(address.split("?")[0] + "api/runs", headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def test_the_command_prints_its_address_and_serves(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    command = [sys.executable, "-m", "coterie", "board", str(tmp_path / "runs"), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert '"shown"' in opened(address)
        process.terminate()
    assert "shows the runs in" in process.stdout.read() if not process.stdout.closed else True


def test_beside_a_training_it_ends_with_it(tmp_path: Path) -> None:
    with beside(tmp_path / "runs") as address:
        assert '"runs": []' in opened(address)
        make_run(tmp_path / "runs")
        time.sleep(0.6)
        assert '"shown"' in opened(address)
    with pytest.raises(urllib.error.URLError):
        opened(address)


def test_a_board_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HOST", "256.0.0.1")
    with pytest.raises(RunError, match="port 0 cannot be used"):
        Board(tmp_path, 0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="the board did not start: it said nothing"), beside(tmp_path):
        pass


def test_without_its_packages_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    for words in (["board", str(tmp_path)], ["board", "export", "run", str(tmp_path / "a.html")]):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, ConfigError)
        assert "board" in str(result.exception)
        assert "install" in str(result.exception)


@pytest.mark.parametrize(
    "words", [["board", "nowhere"], ["board", "export", "nobody", "x.html"], ["board", "export", "shown", "there.html"]]
)
def test_wrong_names_are_refused(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    (tmp_path / "there.html").write_text("mine")
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, RunError)
    assert (tmp_path / "there.html").read_text() == "mine"


def test_the_page_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    page = (Path(__file__).parents[2] / "docs/board.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"```python session\n(.*?)```", page, re.DOTALL)
    exec(session, {})
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_from_python_a_run_opens_at_its_page(tmp_path: Path) -> None:
    run = coterie.load_run(make_run(tmp_path / "runs"))
    board = coterie.board(run, port=0)
    try:
        assert board.address.endswith("#/run/shown")
        assert board.address in board._repr_html_()
        assert json.loads(opened(board.address))["runs"][0]["name"] == "shown"
    finally:
        board.stop()


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are single bytes, so that a letter may need four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_pieces_of_tokens_make_the_text() -> None:
    tokenizer = byte_tokenizer()
    texts = TokenTexts(lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    for text in ("7 · 8 = 56", "日本 🙂!", "plain\nlines"):
        ids = tokenizer.encode(text).ids
        pieces = texts.pieces(ids, 0, len(ids))
        assert len(pieces) == len(ids)
        assert "".join(piece or "" for piece in pieces) == text
    ids = tokenizer.encode("ab🙂").ids
    assert texts.pieces(ids, 0, len(ids))[-4:] == ["", "", "", "🙂"]
    assert texts.pieces(ids, 0, 4)[-1] == "\ufffd"  # cut in the midst of a letter
    assert texts.pieces(tokenizer.encode("a\u202eb").ids, 0, 5)[3] == "\\u202e"
    assert TokenTexts().pieces([1, 2], 0, 2) == [None, None]


def test_the_tokenizer_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    folder = run / "checkpoints" / "step_000004" / "model"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("not JSON")
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(
        config.replace('name = "smollm2-135m"', 'name = "nobody/nothing"'), encoding="utf-8"
    )
    assert token_texts(run).decode is None
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    assert token_texts(run).pieces(byte_tokenizer().encode("7!").ids, 0, 2) == ["7", "!"]
    assert token_texts(run).pieces([10**12, -1], 0, 2) == ["", "\ufffd"]


def test_a_page_that_is_open_does_not_hold_up_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its stream of changes ends with the board, without a word of the server's."""
    (tmp_path / "runs").mkdir()
    board = Board(tmp_path / "runs", 0).start()
    connection = http.client.HTTPConnection("127.0.0.1", board.port or 0, timeout=30)
    connection.request("GET", "/api/changes", headers={"authorization": f"Bearer {board.token}"})
    with closing(connection), connection.getresponse() as stream:
        assert stream.readline() == b"event: hello\n"
        board.stop()
        assert stream.read().strip() == b"data: {}"
    assert capfd.readouterr().err == ""
