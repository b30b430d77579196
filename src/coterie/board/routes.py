"""Addresses of the board: the page, its files, and the records of runs as JSON and as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from coterie import __version__
from coterie.board import overview, prompt_map, region_pages, reward_parts, rollout_pages
from coterie.board.catalog import Catalogue
from coterie.board.guard import Guard
from coterie.board.token_text import TokenTexts, token_texts
from coterie.board.trial_request import parsed
from coterie.board.trials import FullError, Trials
from coterie.errors import CoterieError, RunError
from coterie.runs.export import jsonable

WEB = Path(__file__).parent / "web"
SCRIPTS = (
    *("vendor/preact.js", "vendor/hooks.js", "vendor/signals-core.js", "vendor/signals.js", "vendor/htm.js"),
    *("vendor/uplot.js", "base.js", "charts.js", "runs.js", "run.js", "rollouts.js", "groups.js", "map.js"),
    *("try.js", "app.js"),
)
"""In the order in which the page loads them."""
STYLES = ("vendor/uplot.css", "board.css")
FILES = {
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
    **dict.fromkeys(STYLES, "text/css; charset=utf-8"),
    "vendor/LICENSES.txt": "text/plain; charset=utf-8",
}
"""The files that are served, and no other: no address becomes a path."""
EVERY = 1.0
"""Seconds between two looks for changes."""
TRY, CANCEL = "/api/try", "/api/try/cancel"
"""The only addresses that take POST, where models may be tried."""
LARGE, WRITTEN = 20_000, 32
"""Bytes from which on the JSON of an answer is kept, and how many are."""
LARGEST = 256 * 1024
"""Bytes of a request's body."""
ALIVE = 15.0
"""Seconds after which a line is sent to a client that there was nothing to tell, so that a lost one is noticed."""


class Answers:
    """Answers to the board's questions about the runs of a catalogue, as plain data."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.files = rollout_pages.StepFiles()
        self.written: OrderedDict[tuple[str, ...], tuple[Any, bytes]] = OrderedDict()
        """Question and words → the answer and its JSON: an answer that is kept is written once."""

    def runs(self, words: Mapping[str, str]) -> Any:
        return overview.run_list(self.catalogue) | {"version": __version__, "single": self.catalogue.single}

    def compare(self, words: Mapping[str, str]) -> Any:
        return overview.comparison(self.catalogue, [name for name in words.get("runs", "").split(",") if name])

    def run(self, words: Mapping[str, str]) -> Any:
        return self.catalogue.kept(words["run"], "page", overview.run_page) | {"name": words["run"]}

    def curves(self, words: Mapping[str, str]) -> Any:
        series = self.series(words["run"])
        return self.catalogue.kept(words["run"], "curves", lambda _: overview.curves(series()))

    def damage(self, words: Mapping[str, str]) -> Any:
        cursor = words.get("from", "")
        return self.catalogue.kept(words["run"], ("damage", cursor), lambda run: overview.damage(run, cursor))

    def doctor(self, words: Mapping[str, str]) -> Any:
        series = self.series(words["run"])
        return self.catalogue.kept(words["run"], "doctor", lambda run: overview.findings(run, series()))

    def parts(self, words: Mapping[str, str]) -> Any:
        return self.catalogue.kept(words["run"], "parts", reward_parts.parts_together)

    def rollouts(self, words: Mapping[str, str]) -> Any:
        query = rollout_pages.Query.of(words)
        return rollout_pages.page(self.files, self.catalogue.path(words["run"]), query, words.get("cursor", ""))

    def group(self, words: Mapping[str, str]) -> Any:
        run = self.catalogue.path(words["run"])
        return rollout_pages.group(run, _number(words, "step"), words.get("prompt", ""))

    def rollout(self, words: Mapping[str, str]) -> Any:
        name, whole = words["run"], words.get("whole") == "1"
        step, first = _number(words, "step"), _number(words, "from", 0)
        run = self.catalogue.path(name)
        return rollout_pages.rollout(run, step, words.get("id", ""), self.texts(name), first, whole)

    def regions(self, words: Mapping[str, str]) -> Any:
        def read(run: Path) -> Any:
            return region_pages.through_the_run(self.files, run)

        return self.catalogue.kept(words["run"], "regions", read)

    def tree(self, words: Mapping[str, str]) -> Any:
        step = _number(words, "step") if words.get("step") else None
        return self.catalogue.kept(words["run"], ("tree", step), lambda run: region_pages.tree(run, step))

    def prompts(self, words: Mapping[str, str]) -> Any:
        def read(run: Path) -> Any:
            return region_pages.prompts_through_the_run(self.files, run)

        return self.catalogue.kept(words["run"], "prompts", read)

    def map(self, words: Mapping[str, str]) -> Any:
        def read(run: Path) -> Any:
            return prompt_map.prompt_map(self.files, run)

        return self.catalogue.kept(words["run"], "map", read)

    def series(self, name: str) -> Callable[[], dict[str, list[tuple[int, float]]]]:
        """What reads all metrics of a run, for whoever asks first."""
        return lambda: self.catalogue.kept(name, "series", overview.all_series)

    def texts(self, name: str) -> TokenTexts:
        """The decoder of a run's tokens."""
        return self.catalogue.kept(name, "texts", token_texts)


QUESTIONS: dict[str, Callable[[Answers, Mapping[str, str]], Any]] = {
    "runs": Answers.runs,
    "compare": Answers.compare,
    "run": Answers.run,
    "curves": Answers.curves,
    "damage": Answers.damage,
    "doctor": Answers.doctor,
    "parts": Answers.parts,
    "rollouts": Answers.rollouts,
    "group": Answers.group,
    "rollout": Answers.rollout,
    "regions": Answers.regions,
    "tree": Answers.tree,
    "prompts": Answers.prompts,
    "map": Answers.map,
}
"""`/api/NAME?…` → answer; all but `runs` and `compare` take `run=NAME`."""


def _number(words: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = words.get(name, "")
    if not text and otherwise is not None:
        return otherwise
    if not text.isdecimal() or len(text) > 12:
        raise RunError(f"{name} = {text[:40]!r} is no number of a step or token")
    return int(text)


def application(
    catalogue: Catalogue,
    *,
    port: int,
    token: str,
    trials: Trials | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Starlette:
    """The board as an ASGI application.

    Args:
        port: that it is served at, which requests must name.
        token: that opens it.
        trials: of models; without them there is nothing but GET.
        stopping: tells that the server is, so that what would be told for ever ends.
    """
    answers = Answers(catalogue)

    async def page(request: Request) -> Response:
        return Response(html(trying=trials is not None), media_type="text/html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return PlainTextResponse("there is no such file", 404)
        return Response((WEB / name).read_bytes(), media_type=FILES[name])

    async def answer(request: Request) -> Response:
        question = request.path_params["question"]
        if question not in QUESTIONS:
            return _json({"error": f"there is no {question[:40]!r}"}, 404)
        return await run_in_threadpool(respond, answers, question, dict(request.query_params))

    async def changes(request: Request) -> Response:
        return StreamingResponse(events(catalogue, stopping), media_type="text/event-stream")

    guard = Middleware(Guard, port=port, token=token, posted=() if trials is None else (TRY, CANCEL))
    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/web/{name:path}", file, methods=["GET"]),
            Route("/api/changes", changes, methods=["GET"]),
            *([] if trials is None else trial_routes(catalogue, trials)),
            Route("/api/{question}", answer, methods=["GET"]),
        ],
        middleware=[guard, Middleware(GZipMiddleware, minimum_size=2000, compresslevel=6)],
    )


def trial_routes(catalogue: Catalogue, trials: Trials) -> list[Route]:
    """Routes that ask for a trial, tell how far it has come, and call it off."""

    async def ask(request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            return body
        try:
            asked = parsed(body)
            return _json(await run_in_threadpool(trials.submit, asked, catalogue.path(asked.run)), 202)
        except FullError as error:
            return _json({"error": str(error)}, 429)
        except RunError as error:
            return _json({"error": str(error)}, 400)

    async def find(request: Request) -> Response:
        return _trial_answer(trials.find, request.query_params.get("id", ""))

    async def cancel(request: Request) -> Response:
        body = await _body(request)
        return body if isinstance(body, Response) else _trial_answer(trials.cancel, request.query_params.get("id", ""))

    return [
        Route(TRY, ask, methods=["POST"]),
        Route(TRY, find, methods=["GET"]),
        Route(CANCEL, cancel, methods=["POST"]),
    ]


def _trial_answer(look: Callable[[str], Any], name: str) -> Response:
    try:
        return _json(look(name))
    except RunError as error:
        return _json({"error": str(error)}, 404)


async def _body(request: Request) -> bytes | Response:
    """The body of a request, or the refusal of one that is no JSON by its type, or too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _json({"error": "expected content-type application/json"}, 415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            return _json({"error": f"the body is larger than {LARGEST} bytes; shorten the messages"}, 413)
    return bytes(body)


def html(head: str = "", body: str = "", *, trying: bool = False) -> str:
    """The page, with its files as links.

    Args:
        head: in place of the links to files.
        body: in place of the links to scripts.
        trying: models may be tried.
    """
    head = head or "".join(f'<link rel="stylesheet" href="/web/{name}">' for name in STYLES)
    body = body or "".join(f'<script src="/web/{name}" defer></script>' for name in SCRIPTS)
    page = (WEB / "index.html").read_text(encoding="utf-8")
    page = page.replace("<!-- styles -->", head).replace("<!-- scripts -->", body)
    return page.replace('id="board"', 'id="board" data-try="yes"') if trying else page


def respond(answers: Answers, question: str, words: Mapping[str, str]) -> Response:
    """The JSON answer to a question; an error of a run's files is told in it, and never ends the board."""
    if question not in ("runs", "compare") and "run" not in words:
        return _json({"error": f"{question} takes run=NAME"}, 400)
    try:
        return _written(answers, (question, *sorted(map(str, words.items()))), QUESTIONS[question](answers, words))
    except CoterieError as error:
        return _json({"error": str(error)}, 404)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:  # a foreign or half-written file
        return _json({"error": f"the records cannot be read: {type(error).__name__}: {error}"}, 500)


def _written(answers: Answers, key: tuple[str, ...], value: Any) -> Response:
    """The answer as JSON, which a large one is turned into once as long as it is kept."""
    before = answers.written.get(key)
    if before is not None and before[0] is value:
        return Response(before[1], media_type="application/json")
    response = _json(value)
    if len(response.body) >= LARGE:
        answers.written[key] = (value, bytes(response.body))
        while len(answers.written) > WRITTEN:
            answers.written.popitem(last=False)
    return response


def _json(value: Any, status: int = 200) -> Response:
    """JSON in ASCII, so that nothing in it depends on an encoding."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):  # a number that is not finite, a type that JSON lacks
        text = json.dumps(jsonable(value), allow_nan=False)
    return Response(text, status, media_type="application/json")


async def events(catalogue: Catalogue, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Server-sent events until the server stops: at first `hello`, then `change` with the names of the runs that
    changed."""
    yield "event: hello\ndata: {}\n\n"
    before = await run_in_threadpool(catalogue.signatures)
    idle = 0.0
    while True:
        looked = time.monotonic()
        while time.monotonic() - looked < EVERY:
            await asyncio.sleep(min(EVERY, 0.2))
            if stopping():
                return
        now = await run_in_threadpool(catalogue.signatures)
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        idle = 0.0 if changed else idle + EVERY
        if changed:
            yield f"event: change\ndata: {json.dumps(changed)}\n\n"
        elif idle >= ALIVE:
            idle = 0.0
            yield ": still here\n\n"
        before = now
