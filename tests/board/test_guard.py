"""The board lets in who has its address and nobody else: other hosts, origins, methods, paths, users."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from shown_runs import HOSTILE, answer, ask, make_run

from coterie.board.server import Board


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    root = tmp_path_factory.mktemp("guarded") / "runs"
    make_run(root, text=HOSTILE)
    with Board(root, 0) as served:
        yield served


def with_token(board: Board, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {board.token}"} | {name.replace("_", "-"): text for name, text in headers.items()}


def test_the_board_listens_on_loopback_alone(board: Board) -> None:
    assert board._server.listener.getsockname()[0] == "127.0.0.1"


def test_without_the_token_nothing_is_told(board: Board) -> None:
    for path in ("/", "/api/runs", "/api/changes", "/web/app.js", "/?token=wrong", f"/api/runs?token={board.token}"):
        status, _, text = ask(board, path, headers={})
        assert status == 403
        assert "shown" not in text
    assert ask(board, "/api/runs", headers={"authorization": "Bearer é"})[0] == 403
    assert ask(board, "/api/runs", headers={"cookie": f"coterie-board-{board.port}=nonsense; ;=;"})[0] == 403


def test_the_address_becomes_a_cookie_without_the_token_in_it(board: Board) -> None:
    status, headers, _ = ask(board, f"/?token={board.token}&a=b", headers={})
    assert (status, headers["location"]) == (303, "/?a=b")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Domain" not in cookie
    status, _, text = ask(board, "/", headers={"cookie": cookie.split(";")[0]})
    assert status == 200
    assert board.token not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", ""]
)
def test_a_name_that_was_bound_to_loopback_is_refused(board: Board, host: str) -> None:
    headers = with_token(board, host=host.format(port=board.port))
    assert ask(board, "/api/runs", headers=headers)[0] in (400, 421)
    for name in ("127.0.0.1", "localhost"):
        assert ask(board, "/api/runs", headers=with_token(board, host=f"{name}:{board.port}"))[0] == 200


def test_a_page_of_another_origin_is_refused(board: Board) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1", "http://localhost:1"):
        assert ask(board, "/api/runs", headers=with_token(board, origin=origin))[0] == 403
    for site in ("cross-site", "same-site"):
        assert ask(board, "/api/runs", headers=with_token(board, sec_fetch_site=site))[0] == 403
    same = with_token(board, origin=f"http://127.0.0.1:{board.port}", sec_fetch_site="same-origin")
    status, headers, _ = ask(board, "/api/runs", headers=same)
    assert status == 200
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"])
def test_there_is_no_way_to_write(board: Board, method: str) -> None:
    for path in ("/", "/api/runs", "/api/rollouts?run=shown", "/web/app.js"):
        assert ask(board, path, method=method)[0] in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/web/../server.py",
            "/web/..%2fserver.py",
            "/web/%2e%2e/server.py",
            "/web//etc/passwd",
            "/web/vendor/../../guard.py",
        ),
        *(
            "/web/index.html",
            "/web/",
            "/web/app.js%00",
            "/web/APP.JS/..",
            "/etc/passwd",
            "//etc/passwd",
            "/web/..\\server.py",
        ),
    ],
)
def test_no_address_becomes_a_path(board: Board, path: str) -> None:
    status, _, text = ask(board, path)
    assert status in (400, 404)
    assert "import" not in text


@pytest.mark.parametrize(
    "name", ["../shown", "/etc", "..", ".", "shown/../shown", "shown/rollouts", "%2e%2e", "", "x" * 300]
)
def test_a_run_is_one_of_the_folder(board: Board, name: str) -> None:
    for question in ("run", "curves", "doctor", "rollouts", "regions", "prompts", "map", "parts", "tree"):
        assert "error" in answer(board, question, run=name)
    assert "error" in answer(board, "compare", runs=f"shown,{name or '../x'}")


def test_every_answer_has_the_policy(board: Board) -> None:
    for path in ("/", "/api/runs", "/web/app.js", "/nothing"):
        for headers in (None, {}):
            _, sent, _ = ask(board, path, headers=headers)
            policy = sent["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert sent["x-content-type-options"] == "nosniff"
            assert sent["x-frame-options"] == "DENY"
            assert sent["cache-control"] == "no-store"
    assert "server" not in ask(board, "/")[1]


def test_a_hostile_text_stays_text(board: Board) -> None:
    """JSON without raw markup of its own type; what would deceive the eye is a visible escape."""
    status, headers, text = ask(board, "/api/group?run=shown&step=1&prompt=sums/1")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert text.isascii()
    text = answer(board, "group", run="shown", step=1, prompt="sums/1")["members"][0]["text"]
    assert text.startswith("<img src=x")
    assert "\\u202e" in text
    assert "\u202e" not in text


def test_a_long_address_is_refused(board: Board) -> None:
    assert ask(board, "/api/rollouts?run=shown&prompt=" + "x" * 5000)[0] == 414


def test_tokens_differ_and_are_long(tmp_path: Path) -> None:
    boards = [Board(tmp_path, 0) for _ in range(2)]
    for served in boards:
        served.stop()
        assert len(served.token) >= 32
    assert boards[0].token != boards[1].token


def test_reading_writes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    folders = [path for path in run.parent.rglob("*") if path.is_dir()]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with Board(tmp_path / "runs", 0) as board:
            rows = answer(board, "rollouts", run="shown")["rows"]
            for question in ("runs", "run", "curves", "doctor", "regions", "prompts", "map", "parts"):
                assert "error" not in answer(board, question, run="shown")
            assert answer(board, "rollout", run="shown", step=rows[0]["step"], id=rows[0]["rollout_id"])["tokens"][
                "ids"
            ]
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    helpers = ("metrics.sqlite-shm", "metrics.sqlite-wal")  # SQLite's own, of its readers
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in helpers}
    assert after == before
