"""Search-R1's retrieval protocol over HTTP, `POST /retrieve`: a server on an index, and a client.

Request `{"queries": […], "topk": 3, "return_scores": true}`; reply `{"result": [[{"document": {"id", "contents"},
"score"}, …], …]}` (arXiv 2503.09516, `search_r1/search/retrieval_server.py`).
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from coterie.errors import DataError
from coterie.search.index import Passage, Searcher

QUERIES, TOPK, BODY = 512, 100, 1 << 20
"""Most queries of a request, passages a query, and bytes of a request."""
REPLY = 1 << 24
"""Bytes of a reply that the client reads."""


class RequestError(Exception):
    """A request that the server refuses with status 400."""


def answered(searcher: Searcher, body: bytes) -> dict[str, Any]:
    """Reply to the body of a request.

    Raises:
        RequestError: says what is wrong with it.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    queries = request.get("queries") if isinstance(request, dict) else None
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise RequestError('expected {"queries": [text, …], "topk": number, "return_scores": true or false}')
    topk = 3 if request.get("topk") is None else request["topk"]
    if type(topk) is not int or not 1 <= topk <= TOPK or len(queries) > QUERIES:
        raise RequestError(f"expected topk from 1 to {TOPK} and at most {QUERIES} queries")
    result = []
    for query in queries:
        documents = [
            {"document": {"id": passage.key, "contents": passage.contents}, "score": passage.score}
            for passage in searcher.search(query, topk)
        ]
        result.append(documents if request.get("return_scores") else [item["document"] for item in documents])
    return {"result": result}


def server_for(searcher: Searcher, host: str, port: int) -> ThreadingHTTPServer:
    """Server of an index, not started yet; with port 0 the system chooses one.

    Raises:
        DataError: it cannot listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 60
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path.rstrip("/") != "/retrieve":
                self._reply(404, {"error": "POST /retrieve is all there is"})
            elif not length.isdecimal() or int(length) > BODY:
                self.close_connection = True
                self._reply(413, {"error": f"expected a Content-Length of at most {BODY}"})
            else:
                try:
                    self._reply(200, answered(searcher, self.rfile.read(int(length))))
                except RequestError as error:
                    self._reply(400, {"error": str(error)})
                except DataError as error:
                    self._reply(500, {"error": str(error)})

        def _reply(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Write no line a request."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024  # 2,000 rollouts may ask at once

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise DataError(f"cannot listen on {host}:{port}: {error}; choose another --port") from error


class RemoteSearcher:
    """Client of a retrieval server; a lost connection is tried again.

    Args:
        url: of the server, with or without `/retrieve`.
        timeout_s: of one attempt.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, attempts: int = 3) -> None:
        self.url = url if url.rstrip("/").endswith("/retrieve") else f"{url.rstrip('/')}/retrieve"
        self.timeout_s, self.attempts = timeout_s, attempts
        self._pause = threading.Event()

    def search(self, query: str, k: int) -> list[Passage]:
        """As of an `Index`.

        Raises:
            DataError: the server cannot be reached, or speaks another protocol.
        """
        body = json.dumps({"queries": [query], "topk": k, "return_scores": True}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        for attempt in range(self.attempts):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    return _passages(reply.read(REPLY + 1), self.url)
            except urllib.error.HTTPError as error:
                raise DataError(f"the search server {self.url} refused a query: {error}") from error
            except OSError as error:
                if attempt + 1 == self.attempts:
                    raise DataError(
                        f"the search server {self.url} cannot be reached: {error}; start it with `coterie index serve`"
                    ) from error
                self._pause.wait(0.2 * 2**attempt)
        return []


def _passages(body: bytes, url: str) -> list[Passage]:
    if len(body) > REPLY:
        raise DataError(f"the search server {url} replied with more than {REPLY >> 20} MiB; ask for fewer passages")
    try:
        (items,) = json.loads(body)["result"]
        return [_passage(item) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{url} does not speak Search-R1's protocol: {type(error).__name__}: {error}") from error


def _passage(item: dict[str, Any]) -> Passage:
    document = item.get("document", item)
    contents = str(document["contents"] if "contents" in document else document["text"])
    title, _, text = contents.partition("\n") if contents.startswith('"') and "\n" in contents else ("", "", contents)
    return Passage(
        key=str(document.get("id", "")), title=title.strip('" '), text=text, score=float(item.get("score") or 0.0)
    )
