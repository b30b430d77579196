"""Table of recall@k by backend over the corpora that are assets: python -m benchmarks.search.recall --folder FOLDER.

An index that is already in the folder is taken as it is. Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from coterie.data import assets, boolq, facts, geonames
from coterie.search.backends import BACKENDS
from coterie.search.builder import build
from coterie.search.index import Index
from coterie.search.words import recall

KS = (1, 5, 10)
HEAD = "| corpus | backend | recall@1 | recall@5 | recall@10 | ms a query | build | MiB |"


def asked(name: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(question, answer) pairs: held-out one-hop questions about the facts, or those of BoolQ."""
    if name == facts.ASSET:
        rows = geonames.questions(hops=1, split="heldout", size=count, seed=seed)
    else:
        rows = boolq.questions(assets.ensure(name), size=count, seed=seed)
    return [(row["question"], row["answer"]) for row in rows]


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share at 95 % (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def line(name: str, backend: str, folder: Path, pairs: list[tuple[str, str]]) -> str:
    """Row of the table; times are of this process's processor."""
    path = folder / f"{name}-{backend}.sqlite"
    began = time.process_time()
    built = build(path, [assets.ensure(name)], backend=backend)
    seconds = time.process_time() - began
    index = Index(path, verify=False)
    began = time.process_time()
    shares = recall(index, pairs, KS)
    each = 1000 * (time.process_time() - began) / len(pairs)
    bounds = [(share, *interval(share, len(pairs))) for share in shares.values()]
    cells = [f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for share, low, high in bounds]
    made = f"{seconds:.0f} s" if built.added else "–"
    size = path.stat().st_size / 2**20
    return f"| {name} | {backend} | {' | '.join(cells)} | {each:.1f} | {made} | {size:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--corpora", nargs="+", default=[facts.ASSET, boolq.ASSET])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{HEAD}\n|{' --- |' * HEAD.count(' |')}", flush=True)
    for name in options.corpora:
        pairs = asked(name, options.questions, options.seed)
        for backend in options.backends:
            print(line(name, backend, options.folder, pairs), flush=True)


if __name__ == "__main__":
    main()
