"""The judge over HTTP: grades, its cache, its agreement with a check, and everything that must not become a reward."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import RewardError
from coterie.rewards import judge as module
from coterie.rewards.judge import agreement, grade, judge
from coterie.rewards.pool import Scorer
from coterie.types import Prompt

PROMPT = [{"role": "user", "content": "Is 7 prime?"}]


class Server:
    """Chat completions that a function answers, with every request that came in."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, Any], str | None]] = []
        self.answer: Callable[[str], str] = lambda task: "Grade: 10" if "Yes" in task else "Grade: 1"
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((body, self.headers.get("Authorization")))
                status = outer.statuses.pop(0) if outer.statuses else 200
                content = outer.answer(body["messages"][0]["content"])
                reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def graded(
    server: Server, folder: Path, *completions: str, messages: list[Any] | None = None, **settings: Any
) -> tuple[list[float], dict[str, float]]:
    metrics: dict[str, float] = {}
    settings = {"url": server.url, "model": "big", "rubric": "Is it true?"} | settings
    values = judge(
        list(completions),
        [PROMPT] * len(completions),
        metrics.__setitem__,
        messages,
        cache=str(folder / "grades.sqlite"),
        **settings,
    )
    return values, metrics


def test_grades_are_scaled_and_asked_for_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.KEY, "secret")
    assert graded(server, tmp_path, "Yes.", "No.", "Perhaps.")[0] == [1, 0, 0]
    assert graded(server, tmp_path, "No.", "Yes.")[0] == [0, 1]
    assert len(server.requests) == 3
    body, key = server.requests[0]
    assert (body["model"], body["temperature"], key) == ("big", 0, "Bearer secret")
    assert "user: Is 7 prime?\nassistant: " in body["messages"][0]["content"]
    # Another rubric, scale or model is another request.
    graded(server, tmp_path, "Yes.", rubric="Is it short?")
    graded(server, tmp_path, "Yes.", model="bigger")
    assert len(server.requests) == 5
    assert b"secret" not in (tmp_path / "grades.sqlite").read_bytes()


def test_an_episode_is_graded_as_a_whole(server: Server, tmp_path: Path) -> None:
    episode = [
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "It is odd."},
    ]
    assert graded(server, tmp_path, "It is odd.", messages=[episode])[0] == [1]
    assert "assistant: Yes.\nuser: Why?\nassistant: It is odd." in server.requests[0][0]["messages"][0]["content"]


def test_agreement_with_a_check_is_recorded(server: Server, tmp_path: Path) -> None:
    values, metrics = graded(
        server, tmp_path, "Yes.", "Yes, 8.", "No.", check="exact", answer=["Yes.", "No.", "Maybe."]
    )
    assert values == [1, 1, 0]
    assert metrics == {"judge_agreement": pytest.approx(2 / 3), "judge_lenient": 0.5}
    assert agreement([1, 0], [None, None]) == {}
    assert agreement([1, 0], [1, None]) == {"agreement": 1}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Grade: 7", 7),
        ("grade: 7/10.", 7),
        ("**Grade:** 7", 7),
        ("7", 7),
        ("It is good.\nGrade: 10", 10),
        ("<think>2?</think>\nGrade: 3", 3),
        ("", None),
        ("Grade: 11", None),
        ("Grade: 0", None),
        ("Grade: -3", None),
        ("Grade: 7.5", None),
        ("Grade: 7 or 8", None),
        ("Grade: seven", None),
        ("I cannot judge this.", None),
        ("<think>Grade: 7", None),
    ],
)
def test_what_is_no_grade_is_an_error(answer: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(RewardError, match="expected `Grade: ` and a whole number from 1 to 10"):
            grade(answer, 1, 10)
    else:
        assert grade(answer, 1, 10) == expected


def test_no_error_is_cached_or_becomes_a_reward(server: Server, tmp_path: Path) -> None:
    server.answer = lambda _: "I like it."
    with pytest.raises(RewardError, match="the judge answered 'I like it"):
        graded(server, tmp_path, "Yes.")
    server.answer = lambda _: "Grade: 10"
    server.statuses = [503, 401]
    with pytest.raises(RewardError, match="401"):  # 503 is tried again, 401 is not
        graded(server, tmp_path, "Yes.", attempts=3)
    assert len(server.requests) == 3
    assert graded(server, tmp_path, "Yes.")[0] == [1]
    with pytest.raises(RewardError, match="gave no answer"):
        graded(server, tmp_path, "No.", url=f"{server.url}/other")
    with pytest.raises(RewardError, match="low = 3, high = 3"):
        graded(server, tmp_path, "Yes.", low=3, high=3)
    (tmp_path / "grades.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(RewardError, match="delete it"):
        graded(server, tmp_path, "Yes.")


def test_in_a_worker_only_the_row_without_a_grade_fails(server: Server, tmp_path: Path) -> None:
    server.answer = lambda task: "I like it." if "assistant: Odd" in task else "Grade: 10"
    params = {"url": server.url, "model": "big", "rubric": "?", "cache": str(tmp_path / "grades"), "check": "exact"}
    prompt = Prompt(
        id="p", messages=({"role": "user", "content": "Is 7 prime?"},), answer="Yes", task="primes", attributes={}
    )
    parts = RewardsConfig(functions=[RewardConfig(name="judge", params=params)])
    with Scorer(parts) as pool:
        good, bad, other = pool.score([prompt] * 3, ["Yes", "Odd", "No"])
    assert (good.reward, bad.reward, other.reward) == (1, None, 1)
    assert "the judge answered 'I like it.'" in str(bad.error)
    assert (good.metrics["judge_agreement"], other.metrics["judge_agreement"]) == (1, 0)  # one by one
