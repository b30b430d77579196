"""The board in a real browser; skipped where Debian's chromium or Playwright (the extra `browser`) is missing."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from shown_runs import ECHO, HOSTILE, add_step, make_run

from benchmarks import board_figures
from coterie.board import catalog, routes, trials
from coterie.board.server import Board
from coterie.board.static_export import export

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the extra `browser`")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium here: apt-get install chromium", allow_module_level=True)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
PAGES = {
    "runs": "#/",
    "compare": "#/compare?runs=shown,other",
    "run": "#/run/shown",
    "rollouts": "#/run/shown/rollouts?task=sums",
    "group": "#/run/shown/group?step=4&prompt=sums%2F1",
    "rollout": "#/run/shown/rollout?step=4&id=sums%2F1%231%403",
    "prompt": "#/run/shown/prompt?prompt=sums%2F1",
    "groups": "#/run/shown/groups",
    "try": "#/run/shown/try",
    "nothing": "#/elsewhere",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browsed") / "runs"
    make_run(root, text=HOSTILE, turns=2)
    make_run(root, "other", lr=2e-6)
    return root


@pytest.fixture(scope="module")
def board(root: Path) -> Iterator[Board]:
    with Board(root, 0) as served:
        yield served


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Generator[Any]:
    """A page whose console stays silent, that runs no script but the board's, and asks nobody else for anything."""
    context = browser.new_context(**options)
    page = context.new_page()
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("requestfailed", lambda request: logged.append(f"failed: {request.url}"))
    page.on(
        "request", lambda request: logged.append(request.url) if not request.url.startswith(place(address)) else None
    )
    try:
        page.goto(address)
        yield page
        assert page.evaluate("window.hacked") is None
        assert [line for line in logged if "/api/changes" not in line] == []
    finally:
        context.close()


def place(address: str) -> str:
    return address.split("?")[0].split("#")[0]


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds. Playwright's own wait_for_function evaluates text, which the policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} does not come true; the page says {page.inner_text('main')[:2000]}")


def show(page: Any, address: str, fragment: str) -> str:
    """Go to a page of the board, wait until it is read, and return its text."""
    page.goto(place(address) + fragment)
    page.wait_for_selector("h1")
    until(page, "!document.body.innerText.includes('Reading …')")
    return page.inner_text("main")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_page_is_drawn(chromium: Any, board: Board, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(chromium, board.address, **options) as page:
        assert board.token not in page.url
        for name, fragment in PAGES.items():
            text = show(page, board.address, fragment)
            assert len(text) > 20, name
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{name} is wider than the screen"
            )
            assert page.locator("h1").count() == 1
            assert page.locator(".problem[role=alert]").count() == 0, name
        assert page.evaluate("document.documentElement.dataset.theme") == scheme


def test_a_hostile_completion_is_text(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        for name in ("rollouts", "group", "rollout", "prompt"):
            assert "<img src=x onerror=" in show(page, board.address, PAGES[name]), name
            assert page.locator("main img, main script").count() == 0


TRIED = """async (address) => {
    const tried = {};
    const post = { method: "POST", mode: "no-cors", body: "{}", headers: { "content-type": "text/plain" } };
    const asked = { cors: ["api/runs", {}], opaque: ["api/runs", { mode: "no-cors" }], post: ["api/try", post] };
    for (const [name, [path, options]] of Object.entries(asked))
        tried[name] = await fetch(address + path, { credentials: "include", ...options })
            .then(() => "answered", () => "refused");
    tried.script = await new Promise((resolve) => {
        const script = document.createElement("script");
        [script.onload, script.onerror] = [() => resolve("answered"), () => resolve("refused")];
        script.src = address + "web/base.js";
        document.head.append(script);
    });
    return tried;
}"""
"""What a page in another tab may try, with the cookie that the browser has of the board."""


def test_a_hostile_page_in_another_tab_learns_nothing(chromium: Any, root: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>hostile</title><h1>hostile</h1>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other, Board(root, 0, trying=True) as board:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        context = chromium.new_context()
        try:
            shown = context.new_page()
            shown.goto(board.address)
            shown.wait_for_selector("h1")
            hostile = context.new_page()
            hostile.goto(f"http://127.0.0.1:{other.server_port}/index.html")
            tried = hostile.evaluate(TRIED, f"http://127.0.0.1:{board.port}/")
            assert set(tried.values()) == {"refused"}, tried
            assert board._trials is not None
            assert not board._trials._trials
        finally:
            context.close()
            other.shutdown()


def test_runs_are_chosen_and_compared(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, "#/")
        page.get_by_label("Compare shown").check()
        page.get_by_label("Compare other").check()
        page.get_by_text("Compare 2 runs").click()
        page.wait_for_selector("text=Paired difference to shown")
        assert "optim.lr" in page.inner_text("main")
        page.get_by_label("seconds").check()
        assert page.locator("canvas").count() >= 1


def test_a_finding_leads_to_its_curve_and_its_rollouts(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, PAGES["run"])
        page.locator(".finding a", has_text="curve").first.click()
        page.wait_for_selector("details[open] article.marked")
        page.locator(".finding a", has_text="rollouts of").first.click()
        page.wait_for_selector("h1:has-text('Rollouts')")
        assert page.get_by_label("Step from").input_value() == "1"


def test_filters_narrow_the_list(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, "#/run/shown/rollouts")
        assert page.locator("tbody tr").count() == 16
        page.get_by_label("Task").fill("words")
        until(page, "document.querySelectorAll('tbody tr').length === 4")
        until(page, "location.hash.includes('task=words')")
        page.get_by_text("Clear").click()
        until(page, "document.querySelectorAll('tbody tr').length === 16")


def test_the_keyboard_suffices(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, PAGES["run"])
        for key, heading in (("2", "Rollouts"), ("3", "Groups"), ("1", "shown"), ("r", "Runs")):
            page.keyboard.press(key)
            page.wait_for_selector(f"h1:has-text('{heading}')")
        page.keyboard.press("/")
        page.keyboard.type("oth")
        until(page, "document.querySelectorAll('tbody tr').length === 1")
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        page.wait_for_selector("aside:has-text('list of runs')")
        show(page, board.address, "#/run/shown/rollout?step=4&id=sums%2F1%230%403")
        page.wait_for_selector("text=next attempt")
        page.keyboard.press("n")
        page.wait_for_selector("text=previous attempt")
        page.locator(".tokens").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        page.wait_for_selector("text=9 of 9")
        theme = page.evaluate("document.documentElement.dataset.theme")
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") != theme


def test_tokens_take_the_colour_that_is_chosen(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, PAGES["rollout"])
        assert page.locator(".token.masked").count() == 1
        assert page.locator(".token.low").count() == 8
        page.get_by_label("entropy").check()
        until(page, "document.querySelectorAll('.token.high').length === 8")
        token = page.locator(".token.high").first
        assert token.evaluate("e => e.style.getPropertyValue('--strength')") == "25%", (
            "0.75 of the 3 nats of full colour"
        )
        assert token.get_attribute("title") == "entropy 0.75 nats"
        assert page.locator(".scale").inner_text().split() == ["0", "3", "nats", "or", "more"]
        assert "0.75 nats" in page.inner_text("main")
        page.get_by_label("advantage").check()
        page.wait_for_selector(".token.high")
        strength = page.locator(".token.high").first.evaluate("element => getComputedStyle(element).backgroundColor")
        assert strength not in ("transparent", "rgba(0, 0, 0, 0)")
        page.get_by_label("share in the gradient").check()
        # Every token has the advantage 0.5 and the log-prob -0.25: all pull alike, and as hard as any.
        until(page, "document.querySelectorAll('.token.high').length === 8")
        assert page.locator(".token.high").first.evaluate("e => e.style.getPropertyValue('--strength')") == "100%"


def test_a_training_is_followed(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "EVERY", 0.1)
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    run = make_run(tmp_path / "runs", steps=2)
    with Board(tmp_path / "runs", 0) as board, opened(chromium, board.address) as page:
        show(page, board.address, "#/")
        page.wait_for_selector(".live.live")
        make_run(tmp_path / "runs", "newer")
        page.wait_for_selector("text=newer")
        show(page, board.address, "#/run/shown/groups")
        add_step(run, 3)
        page.wait_for_selector("text=from 1 to 3")


def test_an_export_needs_no_server(chromium: Any, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "shown.html"
    size = export("shown", root, file)
    assert size == file.stat().st_size < 1_000_000
    assert str(root) not in file.read_text(encoding="utf-8")
    address = file.as_uri()
    with opened(chromium, address) as page:
        for name in ("runs", "run", "rollouts", "group", "rollout", "prompt", "groups"):
            text = show(page, address, PAGES[name])
            assert "not part of the exported page" not in text, name
            assert page.locator(".problem[role=alert]").count() == 0, name
        assert page.locator(".live").inner_text() == "exported"
        assert "not part of" in show(page, address, "#/run/shown/group?step=99&prompt=x")


def test_the_map_follows_the_slider(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        show(page, board.address, PAGES["groups"])
        assert page.locator(".map circle").count() == 3
        assert page.locator(".map circle.unseen").count() == 0
        page.get_by_role("slider", name="After step").focus()
        page.keyboard.press("Home")
        until(page, "document.querySelectorAll('.map circle.unseen').length === 1")
        page.locator(".map circle").first.click()
        page.wait_for_selector("text=newest attempt")
        page.get_by_label("came less expected").first.check()


def test_a_checkpoint_is_tried(chromium: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, "-c", ECHO))
    folder = root / "shown/checkpoints/step_000004"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with Board(root, 0, trying=True) as board, opened(chromium, board.address) as page:
        show(page, board.address, "#/run/shown/try")
        page.get_by_label("its base beside it").uncheck()
        page.get_by_label("Message").fill(HOSTILE)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("text=done, step 4")
        assert "<img src=x onerror=" in page.locator(".answer .content").inner_text()
        page.get_by_role("button", name="Go on from here").click()
        page.wait_for_selector("h2:has-text('With the checkpoint')")
        page.get_by_label("Message").fill("hang")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("text=1 tokens")
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("text=cancelled")
        assert page.locator("main img, main script").count() == 0


def test_a_board_that_only_reads_says_how_to_try(chromium: Any, board: Board) -> None:
    with opened(chromium, board.address) as page:
        assert "coterie board --try" in show(page, board.address, "#/run/shown/try")
        assert page.locator("main button, main textarea").count() == 0


def test_pages_are_light_and_painted_soon(chromium: Any, board: Board) -> None:
    for name in ("runs", "run", "groups"):
        taken = board_figures.figures(chromium, board, PAGES[name])
        assert taken.kilobytes < 100, name
        assert taken.requests <= 30, name
        assert taken.paint_ms < 5000, name


@pytest.mark.parametrize("look", list(board_figures.LOOKS))
def test_no_rule_of_accessibility_is_broken(chromium: Any, root: Path, look: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed: the extra `browser`")
    with Board(root, 0, trying=True) as board:
        for name, fragment in PAGES.items():
            assert board_figures.violations(chromium, board, fragment, look) == [], name
