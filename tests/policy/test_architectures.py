"""docs/models.md says of every kind of model what the check says of it today."""

from __future__ import annotations

import pytest

from architectures import ALL, Row, examine, table

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, while it builds its own models

SOME = (
    "bert",
    "cohere2",
    "gemma4_text",
    "gpt2",
    "gptj",
    "jamba",
    "llama4_text",
    "mamba2",
    "mistral",
    "phi",
    "stablelm",
)


def test_every_kind_has_a_row() -> None:
    assert tuple(table()) == ALL


@pytest.mark.parametrize("kind", SOME)
def test_the_row_is_what_the_check_says(kind: str) -> None:
    assert examine(kind) == table()[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in SOME])
def test_every_other_row_too(kind: str) -> None:
    row: Row = table()[kind]
    assert examine(kind) == row
