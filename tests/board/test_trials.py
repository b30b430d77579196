"""A checkpoint asked beside its base: the queue, the process with the models, and who may ask."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shown_runs import ECHO, HOSTILE, ask, make_run

from coterie import launch
from coterie.board import trials
from coterie.board.server import Board
from coterie.board.trial_request import TrialRequest, parsed
from coterie.board.trials import FullError, Trials
from coterie.callbacks import Callback
from coterie.errors import DataError, RunError
from coterie.inference.trial import LoadedRun, TrialCancelledError
from coterie.rewards.pool import Scorer
from coterie.text import safe_text
from runs_for_tests import importable, make_config


def typed(text: str, **fields: Any) -> TrialRequest:
    conversation = {"model": [{"role": "user", "content": text}]}
    return TrialRequest.model_validate({"run": "shown", "messages": conversation, "beside": False, **fields})


def until(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What a look gives once it gives something."""
    end = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


def ended(queue: Trials, name: str) -> dict[str, Any]:
    return until(lambda: (trial := queue.find(name))["state"] in ("done", "failed", "cancelled") and trial)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "runs", steps=2, text=HOSTILE)
    for step in (1, 2):
        (run / f"checkpoints/step_{step:06d}").mkdir(parents=True)
        (run / f"checkpoints/step_{step:06d}/manifest.json").write_text("{}")
    return run


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, "-c", ECHO))


@pytest.fixture
def queue(echo: None) -> Iterator[Trials]:
    made = Trials(idle_s=0.3)
    yield made
    made.stop()
    assert made._process is None


def test_a_trial_is_answered_and_its_model_freed(queue: Trials, folder: Path) -> None:
    asked = queue.submit(typed("hello"), folder)
    assert asked["step"] == 2
    assert ended(queue, asked["id"])["sides"]["model"][0]["text"] == "hello"
    first = queue._process
    assert first is not None
    ended(queue, queue.submit(typed("again"), folder)["id"])
    assert queue._process in (first, None)
    until(lambda: queue._process is None)  # nothing was asked for a while
    assert not first.alive


def test_trials_wait_for_each_other_and_a_queue_has_an_end(queue: Trials, folder: Path) -> None:
    running = queue.submit(typed("hang"), folder)
    until(lambda: queue.find(running["id"])["state"] == "sampling")
    waiting = [queue.submit(typed(f"t{k}"), folder)["id"] for k in range(trials.WAITING)]
    assert [queue.find(name)["place"] for name in waiting] == [1, 2, 3, 4]
    with pytest.raises(FullError, match="wait already"):
        queue.submit(typed("too many"), folder)
    assert queue.cancel(waiting[0])["state"] == "cancelled"
    assert queue.find(running["id"])["sides"]["model"][0]["text"] == "ha"
    queue.cancel(running["id"])
    assert ended(queue, running["id"])["state"] == "cancelled"
    assert [ended(queue, name)["state"] for name in waiting[1:]] == ["done"] * 3


def test_a_process_that_dies_fails_its_trial_alone(queue: Trials, folder: Path) -> None:
    dead = ended(queue, queue.submit(typed("die"), folder)["id"])
    assert dead["state"] == "failed"
    assert "out of memory" in dead["error"]
    assert ended(queue, queue.submit(typed("next"), folder)["id"])["state"] == "done"


def test_a_process_that_does_not_stop_is_ended(queue: Trials, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "GRACE_S", 0.2)
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    name = queue.submit(typed("x"), folder)["id"]
    until(lambda: queue.find(name)["state"] == "loading")
    queue.cancel(name)
    assert ended(queue, name)["state"] == "cancelled"


def test_what_there_is_not_is_refused(queue: Trials, folder: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint of step 7; there are 1, 2"):
        queue.submit(typed("x", checkpoint=7), folder)
    with pytest.raises(RunError, match="no such trial"):
        queue.find("../etc")
    with pytest.raises(RunError, match="no checkpoint yet"):
        queue.submit(typed("x"), make_run(folder.parent, "empty", steps=1))


LONG = {"role": "user", "content": "a" * 50_000}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "the trial"),
        (b'{"run": "x"}', "one of the two"),
        (b'{"run": "x", "prompt": "p", "samples": 99}', "samples"),
        (b'{"run": "x", "prompt": "p", "temperature": NaN}', "temperature"),
        (b'{"run": "x", "prompt": "p", "command": "rm"}', "command"),
        (b'{"run": "x", "messages": {"model": [{"role": "user", "content": "a"}]}}', "messages of base"),
        (b'{"run": "x", "messages": {"model": [{"role": "tool", "content": "a"}]}, "beside": false}', "role"),
        (json.dumps({"run": "x", "messages": {"model": [LONG]}, "beside": False}).encode(), "at most"),
    ],
)  # fmt: skip
def test_a_request_is_checked(body: bytes, problem: str) -> None:
    with pytest.raises(RunError, match=problem):
        parsed(body)


# Who may ask.


def post(board: Board, path: str, body: bytes = b"{}", **headers: str) -> tuple[int, Any]:
    """Status and answer of a POST as a page of the board sends it, but for the headers that are given; "" leaves one
    out."""
    sent = {
        "authorization": f"Bearer {board.token}",
        "origin": f"http://127.0.0.1:{board.port}",
        "content-type": "application/json",
    }
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", board.port or 0, timeout=30)
    try:
        connection.request("POST", path, body, {name: value for name, value in sent.items() if value})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


BODY = typed("hello").model_dump_json().encode()


@pytest.fixture
def board(folder: Path, echo: None) -> Iterator[Board]:
    with Board(folder.parent, 0, trying=True) as served:
        yield served


def test_a_board_without_the_flag_takes_no_post(folder: Path) -> None:
    with Board(folder.parent, 0) as reading:
        for path in ("/api/try", "/api/try/cancel", "/api/runs", "/"):
            assert post(reading, path, BODY)[0] == 405
        assert ask(reading, "/api/try?id=x")[0] == 404
        assert "data-try" not in ask(reading, "/")[2]


def test_a_trial_over_http(board: Board) -> None:
    assert 'data-try="yes"' in ask(board, "/")[2]
    status, text = post(board, "/api/try", BODY)
    name = json.loads(text)["id"]
    assert status == 202
    trial = until(lambda: (answer := json.loads(ask(board, f"/api/try?id={name}")[2]))["state"] == "done" and answer)
    assert trial["sides"]["model"][0]["reward"] is None  # JSON has no NaN
    assert post(board, f"/api/try/cancel?id={name}")[0] == 200
    assert ask(board, "/api/try?id=..%2f")[0] == 404


def test_a_board_that_stops_ends_the_process(folder: Path, echo: None) -> None:
    with Board(folder.parent, 0, trying=True) as served:
        name = json.loads(post(served, "/api/try", BODY)[1])["id"]
        until(lambda: json.loads(ask(served, f"/api/try?id={name}")[2])["state"] == "done")
        queue = served._trials
        assert queue is not None
        process = queue._process
    assert process is not None
    assert not process.alive
    assert queue._process is None


def test_only_a_page_of_the_board_may_ask(board: Board) -> None:
    for headers in (
        {"origin": ""},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"authorization": ""},
        {"authorization": "Bearer wrong"},
        {"sec_fetch_site": "cross-site"},
    ):
        for path in ("/api/try", "/api/try/cancel?id=x"):
            assert post(board, path, BODY, **headers)[0] == 403, headers
    assert post(board, "/api/try", BODY, host="evil.example")[0] == 421
    for kind in ("", "text/plain", "application/x-www-form-urlencoded"):  # what a form of another page could send
        assert post(board, "/api/try", BODY, content_type=kind)[0] == 415
    for path in ("/", "/api/runs", "/api/try/../runs", "/web/app.js"):
        assert post(board, path, BODY)[0] in (404, 405)
    assert post(board, "/api/try", b'{"x": "' + b"x" * 300_000 + b'"}')[0] == 413
    assert post(board, "/api/try", BODY.replace(b'"shown"', b'"../shown"'))[0] == 400


def test_a_hostile_answer_is_text(board: Board) -> None:
    name = json.loads(post(board, "/api/try", typed("\u202e</script>").model_dump_json().encode())[1])["id"]
    until(lambda: json.loads(ask(board, f"/api/try?id={name}")[2])["state"] == "done")
    status, headers, text = ask(board, f"/api/try?id={name}")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert text.isascii()


# The models themselves, tiny ones.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        patch.setenv("PYTHONPATH", importable(root))
        config = make_config(root, steps=2, eval={"every": 0}, checkpoint={"every": 1, "keep": 2})
        config = config.model_copy(update={"module_path": [str(root)]})
        return launch.train(config)


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Iterator[LoadedRun]:
    run = LoadedRun(trained, 2, Callback())
    yield run
    assert isinstance(run.scorer, Scorer)
    run.scorer.close()


def test_both_sides_answer_with_rewards(loaded: LoadedRun) -> None:
    prompt = loaded.inputs.prompts[0].id
    request = TrialRequest(run="one", prompt=prompt, samples=3, max_tokens=8, seed=5)
    told: list[dict[str, Any]] = []
    sides = {
        side: loaded.answer(request, side, lambda **event: told.append(event), threading.Event())
        for side in request.sides
    }
    for answers in sides.values():
        assert [answer.sample for answer in answers] == [0, 1, 2]
        for answer in answers:
            assert answer.reward == pytest.approx(answer.completion.count("a") / max(1, len(answer.completion)))
    assert sides["model"] != sides["base"]
    again = loaded.answer(request, "model", lambda **event: None, threading.Event())
    assert [answer.completion for answer in again] == [answer.completion for answer in sides["model"]]
    assert {event["sample"] for event in told} == {0, 1, 2}


def test_a_typed_conversation_is_answered(loaded: LoadedRun) -> None:
    told: list[str] = []
    request = typed("how many legs?", samples=1, max_tokens=4)
    off = threading.Event()
    (answer,) = loaded.answer(request, "model", lambda **event: told.append(event["text"]), off)
    assert answer.reward is not None
    assert told[-1] == safe_text(answer.completion)


def test_a_trial_is_called_off_at_the_next_token(loaded: LoadedRun) -> None:
    off = threading.Event()
    off.set()
    with pytest.raises(TrialCancelledError):
        loaded.answer(typed("x"), "model", lambda **event: None, off)
    assert loaded.engine("model").unfinished == 0


def test_an_unknown_prompt_is_named(loaded: LoadedRun) -> None:
    with pytest.raises(DataError, match="no prompt 'gone'"):
        loaded.answer(TrialRequest(run="one", prompt="gone"), "model", lambda **event: None, threading.Event())


@pytest.mark.slow
def test_the_process_answers_and_ends(trained: Path) -> None:
    """The whole way: a queue, its process, a tiny model beside its base."""
    queue = Trials()
    try:
        asked = {
            "model": [{"role": "user", "content": "how many?"}],
            "base": [{"role": "user", "content": "how many?"}],
        }
        request = TrialRequest.model_validate({"run": "one", "messages": asked, "samples": 2, "max_tokens": 6})
        name = queue.submit(request, trained)["id"]
        trial = until(lambda: (state := queue.find(name))["state"] in ("done", "failed") and state, 120)
        assert trial["error"] == ""
        assert [len(trial["sides"][side]) for side in ("model", "base")] == [2, 2]
        assert all(isinstance(answer["reward"], float) for answer in trial["sides"]["model"])
        process = queue._process
    finally:
        queue.stop()
    assert process is not None
    assert not process.alive
