"""Weight, first paint and accessibility of the board's pages in a browser: python -m benchmarks.board_figures RUNS RUN.

Needs the extra `browser` and Debian's chromium (apt-get install chromium). Bytes are those on the wire, compressed, and
the first paint is the browser's first-contentful-paint; rules are those of WCAG 2.2 A and AA, by axe-core.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coterie.board.server import Board

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 800}, "color_scheme": "light"},
}
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFigures:
    """What one page costs when it is opened with nothing in the browser's cache."""

    requests: int
    kilobytes: float
    """On the wire."""
    paint_ms: float
    """First contentful paint after the navigation began."""


@contextmanager
def chromium() -> Generator[Any]:
    """Debian's chromium, driven by Playwright."""
    with import_module("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield browser
        browser.close()


def settled(page: Any) -> None:
    """Wait until a page of the board has read what it shows."""
    page.wait_for_selector("h1")
    for _ in range(200):
        if "Reading …" not in page.inner_text("body"):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(f"the page still reads after 10 s: {page.url}")


def figures(browser: Any, board: Board, fragment: str) -> PageFigures:
    """Open a page of the board in a fresh context and count what it takes."""
    context = browser.new_context(**LOOKS["light"])
    page = context.new_page()
    page.goto(board.address)  # the token becomes a cookie
    page.goto("about:blank")
    sizes: list[float] = []
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(f"http://127.0.0.1:{board.port}/{fragment}")
    settled(page)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return PageFigures(requests=len(sizes), kilobytes=sum(sizes) / 1000, paint_ms=paint)


def violations(browser: Any, board: Board, fragment: str, look: str) -> list[str]:
    """Rules of WCAG 2.2 A and AA that a page breaks, each with the first element that does."""
    Axe = import_module("axe_playwright_python.sync_playwright").Axe
    context = browser.new_context(**LOOKS[look], bypass_csp=True)  # the policy forbids what is injected
    page = context.new_page()
    page.goto(board.address)
    page.goto(f"http://127.0.0.1:{board.port}/{fragment}")
    settled(page)
    results = Axe().run(page, options={"runOnly": {"type": "tag", "values": WCAG}}).response
    context.close()
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:120]}" for rule in results["violations"]]


def pages_of(name: str, step: int, prompt: str, rollout: str) -> dict[str, str]:
    """The board's pages with their addresses.

    Args:
        step, prompt, rollout: of a stored rollout.
    """
    run = f"#/run/{quote(name)}"
    return {
        "runs": "#/",
        "run": run,
        "rollouts": f"{run}/rollouts",
        "group": f"{run}/group?step={step}&prompt={quote(prompt, safe='')}",
        "rollout": f"{run}/rollout?step={step}&id={quote(rollout, safe='')}",
        "groups and map": f"{run}/groups",
        "try it": f"{run}/try",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("run")
    parser.add_argument("--repeat", type=int, default=5, help="openings of each page; their median is printed")
    options = parser.parse_args()
    with Board(options.runs, 0, trying=True) as board, chromium() as browser:
        from coterie.board.rollout_pages import Query, StepFiles, page

        row = page(StepFiles(), board.catalogue.path(options.run), Query())["rows"][0]
        print("| page | requests | kB on the wire | first paint, ms | axe-core: light, dark, phone |")
        print("| --- | --- | --- | --- | --- |")
        pages = pages_of(options.run, row["step"], row["prompt_id"], row["rollout_id"])
        for label, fragment in pages.items():
            opened = [figures(browser, board, fragment) for _ in range(options.repeat)]
            broken = [violations(browser, board, fragment, look) for look in LOOKS]
            paint = statistics.median(item.paint_ms for item in opened)
            counts = ", ".join(str(len(rules)) for rules in broken)
            weight = max(item.kilobytes for item in opened)
            print(f"| {label} | {opened[0].requests} | {weight:.0f} | {paint:.0f} | {counts} |")
            for rule in dict.fromkeys(rule for rules in broken for rule in rules):
                print(f"    {rule}")


if __name__ == "__main__":
    main()
