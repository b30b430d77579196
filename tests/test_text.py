"""Text of a model's is shown, never obeyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.text import one_line, safe_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± é 漢\n\tindented", "plain ± é 漢\n\tindented"),
        ("\x1b[2J\x1b]52;c;aGk=\x07", "\\x1b[2J\\x1b]52;c;aGk=\\x07"),
        ("a\x00b\rc\x7fd\x9be", "a\\x00b\\x0dc\\x7fd\\x9be"),
        ("user\u202egnp.exe\u2066\u200f", "user\\u202egnp.exe\\u2066\\u200f"),
        ("\ud800\ufeff\u2028", "\\ud800\\ufeff\\u2028"),
    ],
)
def test_safe_text(text, shown):
    assert safe_text(text) == shown


@given(st.text(st.characters()))
def test_safe_text_can_be_printed_anywhere(text):
    shown = safe_text(text)
    shown.encode()
    assert all(char in "\n\t" or (ord(char) >= 32 and not 0x7F <= ord(char) < 0xA0) for char in shown)
    assert safe_text(shown) == shown


def test_one_line():
    assert one_line("a\nb\x1b  c", 80) == "a b\\x1b c"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"
