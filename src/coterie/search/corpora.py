"""Indexes of the corpora that are assets: each built once in the cache folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from coterie.data import assets
from coterie.data.cache import home
from coterie.errors import AssetError, DataError
from coterie.search.builder import build
from coterie.search.index import VERSION, Index


def index_of(name: str, *, note: Callable[[str], None] | None = None) -> Path:
    """Index file of an asset of kind `corpus`, fetched and built if need be. Safe to call from several processes.

    Raises:
        AssetError: no such asset, none with a corpus, or it cannot be fetched.
        DataError: the index cannot be written.
    """
    asset = assets.ASSETS.get(name)
    if asset is None or asset.kind != "corpus":
        corpora = ", ".join(other.name for other in assets.ASSETS.values() if other.kind == "corpus")
        raise AssetError(f"{name!r} is no asset with a corpus; expected one of {corpora}, or the file of an index")
    corpus = assets.ensure(name, progress=note)
    path = home() / "indexes" / f"{name}-{asset.version}-{asset.sha256[:8]}-{VERSION}.sqlite"
    if _is_sound(path):
        return path
    if note is not None:
        note(f"indexing {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Built under a name of its own: another process may be at it too, and the last one to finish wins.
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".sqlite", dir=path.parent)
    os.close(descriptor)
    try:
        build(Path(draft), [corpus])
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path


def _is_sound(path: Path) -> bool:
    """True if the file is there and whole; a damaged one is built again."""
    return path.is_file() and _opens(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opens(path: Path, changed: int) -> bool:
    """Read and verified once a process: tools ask for their index at every search."""
    try:
        Index(path).close()
    except DataError:
        return False
    return True


def is_corpus(name: str) -> bool:
    """True if an asset has a corpus.

    >>> is_corpus("geonames-facts"), is_corpus("gsm8k-100"), is_corpus("facts.sqlite")
    (True, False, False)
    """
    asset = assets.ASSETS.get(name)
    return asset is not None and asset.kind == "corpus"
