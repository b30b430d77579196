"""Every backend of a search index: the same build, increments, resumption and digest; and its own ranking."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from coterie.cli.main import main
from coterie.data import assets
from coterie.errors import DataError
from coterie.search import builder, dense
from coterie.search.bm25 import best
from coterie.search.builder import build
from coterie.search.index import Index
from coterie.search.words import text_words

ROWS = [
    {"id": "a", "title": "Oder", "text": "The Oder is a river. It flows through Wrocław."},
    {"id": "b", "title": "Elbe", "text": "The Elbe is a river of 1,094 km."},
    {"id": "c", "title": "", "text": "Hamburg lies on the Elbe."},
]


class Letters:
    """An encoder for tests: how often each letter occurs."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.lower().count(chr(letter)) for letter in range(97, 123)] for text in texts], float)
        return (counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@pytest.fixture(params=["fts5", "bm25s", "dense"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bm25s":
        pytest.importorskip("bm25s")
    monkeypatch.setattr(dense, "encoder", Letters)
    return request.param


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_ranks_and_follows_changes(tmp_path: Path, backend: str) -> None:
    corpus, path = write(tmp_path / "rivers.jsonl", ROWS), tmp_path / "i.sqlite"
    assert build(path, [corpus], backend=backend).added == 3
    opened = Index(path)
    assert opened.backend == backend
    (first,) = opened.search("Hamburg on the Elbe", 1)
    assert (first.key, first.text) == ("c", "Hamburg lies on the Elbe.")
    assert [passage.key for passage in opened.search("oder", 1)] == ["a"]
    for odd in ("", " ", "\x00\ud800", "of the", "x" * 10**6, '"'):
        assert len(opened.search(odd, 2)) <= 2
    assert build(path, [corpus]).unchanged == 1
    write(corpus, [*ROWS[:2], {"id": "d", "text": "The Spree is short."}])
    assert build(path, [corpus], backend=backend).passages == 3
    opened = Index(path, verify=True)
    assert [passage.key for passage in opened.search("Spree short", 1)] == ["d"]
    assert "c" not in {passage.key for passage in opened.search("Hamburg on the Elbe", 5)}
    other = "bm25s" if backend == "fts5" else "fts5"
    with pytest.raises(DataError, match=f"is a search index of the backend {backend}, not {other}"):
        build(path, [corpus], backend=other)


def test_an_interrupted_build_goes_on(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write(tmp_path / "many.jsonl", [{"text": f"fact {number}"} for number in range(95)])
    monkeypatch.setattr(builder, "BATCH", 10)

    def stop(name: str, count: int) -> None:
        if count == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "i.sqlite", [corpus], progress=stop, backend=backend)
    with pytest.raises(DataError, match="was interrupted"):
        Index(tmp_path / "i.sqlite")
    assert build(tmp_path / "i.sqlite", [corpus]).added == 55
    build(tmp_path / "whole.sqlite", [corpus], backend=backend)
    first, whole = Index(tmp_path / "i.sqlite"), Index(tmp_path / "whole.sqlite")
    assert first.backend == backend
    assert [passage.text for passage in first.search("fact 77", 3)] == [
        passage.text for passage in whole.search("fact 77", 3)
    ]


def test_damage_is_seen(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "i.sqlite"
    build(path, [write(tmp_path / "rivers.jsonl", ROWS)], backend=backend)
    table = {"fts5": "words_data", "bm25s": "arrays", "dense": "vectors"}[backend]
    column = "block" if backend == "fts5" else "content"
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE {table} SET {column} = substr({column}, 1, length({column}) - 1)")
    database.close()
    with pytest.raises(DataError, match="is damaged"):
        Index(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE facts SET value = 'tarot' WHERE key = 'backend'")
    database.close()
    with pytest.raises(DataError, match="has the backend 'tarot', expected one of fts5, bm25s, dense"):
        Index(path)


def test_an_index_of_another_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "encoder", Letters)
    path = tmp_path / "i.sqlite"
    build(path, [write(tmp_path / "rivers.jsonl", ROWS)], backend="dense")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE facts SET value = 'other' WHERE key = 'encoder'")
    database.close()
    with pytest.raises(DataError, match="embedded by another encoder than minilm-l6"):
        Index(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write(tmp_path / "rivers.jsonl", ROWS)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(DataError, match=r"needs the package of this name, which is not installed: .*install"):
        build(tmp_path / "i.sqlite", [corpus], backend="bm25s")
    assert main(["index", "build", str(tmp_path / "j.sqlite"), str(corpus), "--backend", "tarot"]) == 1


def test_scores_of_bm25s_are_those_of_the_formula(tmp_path: Path) -> None:
    """Lucene's BM25 by hand: idf ln(1 + (N - n + ½) / (n + ½)), k₁ 1.5, b 0.75."""
    pytest.importorskip("bm25s")
    path = tmp_path / "i.sqlite"
    build(path, [write(tmp_path / "rivers.jsonl", ROWS)], backend="bm25s")
    lengths = [len(text_words(f"{row['title']} {row['text']}")) for row in ROWS]
    counts = [text_words(f"{row['title']} {row['text']}").count("elbe") for row in ROWS]
    inverse = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = sum(lengths) / 3
    expected = {
        row["id"]: inverse * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / mean))
        for row, count, length in zip(ROWS, counts, lengths, strict=True)
        if count
    }
    assert {passage.key: passage.score for passage in Index(path).search("Elbe", 3)} == pytest.approx(expected)


def test_equal_scores_keep_the_order_of_the_passages() -> None:
    ids = np.array([3, 4, 5, 6])
    assert [number for number, _ in best(ids, np.array([1.0, 2.0, 1.0, 1.0]), 3)] == [4, 3, 5]
    assert best(ids[:0], np.zeros(0), 3) == []


def test_texts_of_one_length_share_a_pass_and_are_embedded_as_alone() -> None:
    from transformers import BertConfig, BertModel

    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    encoder = dense.SentenceEncoder(BertModel(config, add_pooling_layer=False), tokenizer)
    texts = ["how many legs", "a cat", "how many eyes", "\ud800", "a dog"]
    together = encoder.embed(texts)
    np.testing.assert_allclose(together, np.concatenate([encoder.embed([text]) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_a_pass_has_a_bounded_number_of_tokens_and_at_least_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Tokens:
        """A model that notes the shape of each pass."""

        config = SimpleNamespace(hidden_size=1)
        shapes: ClassVar[list[tuple[int, ...]]] = []

        def eval(self) -> Tokens:
            return self

        def requires_grad_(self, _: bool) -> Tokens:
            return self

        def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
            self.shapes.append(tuple(input_ids.shape))
            return SimpleNamespace(last_hidden_state=input_ids[..., None].bfloat16())

    def tokenize(texts: Sequence[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * len(text) for text in texts]}

    monkeypatch.setattr(dense, "BATCH_TOKENS", 8)
    vectors = dense.SentenceEncoder(Tokens(), tokenize).embed(["abcd"] * 3 + ["a" * 9] * 2)
    assert Tokens.shapes == [(2, 4), (1, 4), (1, 9), (1, 9)]
    np.testing.assert_array_equal(vectors, np.ones((5, 1)))


@pytest.mark.assets
def test_the_encoder_is_that_of_grouping_and_in_bfloat16_hardly_another() -> None:
    folder = assets.locate("minilm-l6")
    if folder is None:
        pytest.skip("the asset minilm-l6 is not here: `coterie assets fetch minilm-l6`")
    import torch

    from coterie.policy.embedding import load_encoder

    queries = ["What is the capital of Poland?", "x"]
    texts = [*(row["text"] for row in ROWS), "The capital of Poland is Warsaw.", "Poland lies on the Oder. " * 40]
    plain = dense.load_encoder("float32").embed(queries + texts)
    other = load_encoder(str(folder), torch.device("cpu")).embed(queries + texts)
    np.testing.assert_allclose(plain, other, atol=1e-5)
    rounded = dense.load_encoder("bfloat16").embed(queries + texts)
    assert (rounded * plain).sum(1).min() > 0.9998
    ranks = [np.argsort(-(vectors[2:] @ vectors[:2].T), axis=0).tolist() for vectors in (plain, rounded)]
    assert ranks[0] == ranks[1]
