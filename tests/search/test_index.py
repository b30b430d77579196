"""Search indexes: built once, incrementally and on after a kill; damage is seen; any query is only words."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie.cli.main import main
from coterie.errors import DataError
from coterie.search import builder
from coterie.search.builder import Columns, build
from coterie.search.index import Index, Passage
from coterie.search.retrieval import RemoteSearcher, server_for
from coterie.search.words import holds, recall

ROWS = [
    {"id": "a", "title": "Oder", "text": "The Oder is a river. It flows through Wrocław."},
    {"id": "b", "title": "Elbe", "text": "The Elbe is a river of 1,094 km."},
    {"id": "c", "title": "", "text": "Hamburg lies on the Elbe."},
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path / "rivers.sqlite", [write(tmp_path / "rivers.jsonl", ROWS)])
    return tmp_path / "rivers.sqlite"


def test_passages_with_all_words_come_first(index: Path) -> None:
    opened = Index(index)
    assert len(opened) == 3
    assert [passage.key for passage in opened.search("rivers of the Elbe", 3)] == ["b", "c", "a"]
    assert [passage.key for passage in opened.search("WROCŁAW", 1)] == ["a"]
    assert opened.search("Elbe", 1)[0].contents == '"Elbe"\nThe Elbe is a river of 1,094 km.'


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        '"',
        "' OR 1=1 --",
        "NEAR(a b)",
        "title:x*",
        "(((",
        "a AND",
        "\x00\ud800",
        "of the",
        "x" * 10**6,
        "Elbe " * 10**5,
    ],
)
def test_a_query_is_only_words(index: Path, query: str) -> None:
    assert len(Index(index).search(query, 2)) <= 2


def test_unchanged_files_are_left_alone_and_changed_ones_replaced(index: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "rivers.jsonl"
    again = build(index, [corpus])
    assert (again.added, again.unchanged, again.passages) == (0, 1, 3)
    write(corpus, [*ROWS[:2], {"id": "d", "text": "The Spree is short."}, {"id": "e", "text": "x"}])
    assert build(index, [corpus]).passages == 4
    assert Index(index).search("Hamburg", 1) == []
    pq.write_table(
        pa.table({"id": ["p"], "contents": ['"Rhine"\nThe Rhine passes Cologne.']}), tmp_path / "more.parquet"
    )
    (tmp_path / "notes.md").write_text("# Lakes\n\nThe Müritz is a lake.\nIt is large.\n\nSo is the Bodensee.")
    assert build(index, [tmp_path / "more.parquet", tmp_path / "notes.md"]).passages == 7
    opened = Index(index)
    assert opened.search("Cologne", 1)[0].title == "Rhine"
    assert opened.search("muritz", 1)[0].title == "Lakes"


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write(tmp_path / "many.jsonl", [{"text": f"fact {number}"} for number in range(95)])
    monkeypatch.setattr(builder, "BATCH", 10)

    def stop(name: str, count: int) -> None:
        if count == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "i.sqlite", [corpus], progress=stop)
    with pytest.raises(DataError, match="was interrupted"):
        Index(tmp_path / "i.sqlite")
    assert build(tmp_path / "i.sqlite", [corpus]).added == 55
    assert build(tmp_path / "whole.sqlite", [corpus]).added == 95
    first, whole = Index(tmp_path / "i.sqlite"), Index(tmp_path / "whole.sqlite")
    assert list(first.texts()) == list(whole.texts())
    assert first.search("fact 77", 1)[0].text == whole.search("fact 77", 1)[0].text == "fact 77"


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    corpus = write(tmp_path / "many.jsonl", [{"text": f"fact {number}"} for number in range(60)])
    code = (
        "import os, sys; from pathlib import Path; from coterie.search import builder; builder.BATCH = 10\n"
        "stop = lambda name, count: os._exit(9) if count == 30 else None\n"
        "builder.build(Path(sys.argv[1]), [Path(sys.argv[2])], progress=stop)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "i.sqlite"), str(corpus)])
    assert process.returncode == 9
    assert build(tmp_path / "i.sqlite", [corpus]).added == 30
    assert len(Index(tmp_path / "i.sqlite", verify=True)) == 60


def test_damage_is_seen_wherever_it_is(index: Path, tmp_path: Path) -> None:
    whole = index.read_bytes()
    for place in range(0, len(whole), len(whole) // 61):
        data = bytearray(whole)
        data[place] ^= 0x55
        index.write_bytes(data)
        try:
            opened = Index(index)
        except DataError:
            continue
        # A flip in what SQLite does not use changes nothing that is read.
        assert [passage.key for passage in opened.search("rivers of the Elbe", 3)] == ["b", "c", "a"]
    index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        Index(index)


def test_other_files_and_versions_are_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("no database at all, but long enough to be read as one" * 20)
    with pytest.raises(DataError, match="damaged or no search index"):
        Index(tmp_path / "x.sqlite")
    with pytest.raises(DataError, match="there is no search index"):
        Index(tmp_path / "absent.sqlite")
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(DataError, match="of version 9, expected 1"):
        Index(index)
    with pytest.raises(DataError, match="no search index of version 1"):
        build(index, [tmp_path / "rivers.jsonl"])


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"body": "x"}, "has no text in text"),
        ({"text": " "}, "empty text"),
        ({"text": None}, "has no text"),
        ("{", "row 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict | str, cause: str) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(DataError, match=cause):
        build(tmp_path / "i.sqlite", [corpus])
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "i.sqlite", [tmp_path / "no.jsonl"])


def test_columns_can_be_named(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", [{"body": "The Main", "about": "Rivers", "n": 4}])
    build(tmp_path / "i.sqlite", [corpus], columns=Columns(text="body", title="about", key="n"))
    assert Index(tmp_path / "i.sqlite").search("main", 1)[0].key == "4"


def test_recall(index: Path) -> None:
    questions = [("How long is the Elbe?", "1,094"), ("Elbe", "Hamburg"), ("Who?", "nobody")]
    assert recall(Index(index), questions, [1, 2]) == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}
    assert holds("on St. Pauli, he", "St Pauli")
    assert not holds("Hamburger", "Hamburg")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, path = write(tmp_path / "rivers.jsonl", ROWS), str(tmp_path / "i.sqlite")
    asked = write(tmp_path / "q.jsonl", [{"question": "How long is the Elbe?", "answer": "1,094"}])
    assert main(["index", "build", path, str(corpus)]) == 0
    assert main(["index", "check", path]) == 0
    assert main(["index", "recall", path, str(asked), "--k", "2"]) == 0
    out = capsys.readouterr().out
    assert "3 passages added" in out
    assert "is whole: 3 passages" in out
    assert "recall@2 100.0 % of 1 questions" in out
    assert main(["index", "recall", path, str(asked), "--k", "0"]) == 2
    assert main(["index", "check", str(corpus)]) == 1


def test_the_server_speaks_the_protocol(index: Path) -> None:
    opened = Index(index)
    with server_for(opened, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert RemoteSearcher(url).search("Elbe rivers", 2) == opened.search("Elbe rivers", 2)
        body = json.dumps({"queries": ["Elbe", "Oder"], "topk": 1}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/retrieve", body)) as reply:
            result = json.load(reply)["result"]
        assert [[document["id"] for document in documents] for documents in result] == [["b"], ["a"]]
        for bad in (b"{", b"[]", b'{"queries": "a"}', b'{"queries": ["a"], "topk": 0}', b'{"queries": [1]}'):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(urllib.request.Request(f"{url}/retrieve", bad))
            assert refusal.value.code == 400
            refusal.value.close()
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(urllib.request.Request(f"{url}/other", b"{}"))
        refusal.value.close()
        with pytest.raises(DataError, match="cannot listen"):
            server_for(opened, "127.0.0.1", server.server_address[1])
        server.shutdown()
    with pytest.raises(DataError, match="cannot be reached"):
        RemoteSearcher(url, attempts=1).search("a", 1)


def test_a_server_that_talks_nonsense_is_an_error(index: Path) -> None:
    class Odd(Index):
        def search(self, query: str, k: int) -> list[Passage]:
            raise DataError("the disk is gone")

    with server_for(Odd(index), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(DataError, match="refused a query"):
            RemoteSearcher(f"http://127.0.0.1:{server.server_address[1]}").search("a", 1)
        server.shutdown()
