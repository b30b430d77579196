"""Calls of the engine's thread: with the pieces of every pass, or one at the end of each completion."""

from __future__ import annotations

import asyncio
import threading

from coterie.engines.base import Request, Sampling
from coterie.serve.engine_thread import EngineThread, Piece
from coterie.types import SampleKey
from served_models import Slow

TOKENS = 6
SAMPLING = Sampling(temperature=1.0, max_tokens=TOKENS)


def requests(count: int) -> list[Request]:
    keys = [SampleKey(seed=0, version=0, prompt="p", sample=sample, turn=0) for sample in range(count)]
    return [Request(key=key, prompt_tokens=(5, 6)) for key in keys]


async def answered(engine: EngineThread, stream: bool) -> list[Piece]:
    call = engine.submit(requests(2), SAMPLING, stream=stream)
    pieces: list[Piece] = []
    while sum(piece.turn is not None for piece in pieces) < 2:
        piece = await asyncio.wait_for(call.pieces.get(), 30)
        assert isinstance(piece, Piece)
        pieces.append(piece)
    return pieces


def test_a_call_without_a_stream_gets_one_piece_a_completion() -> None:
    engine = EngineThread(Slow(7))
    try:
        streamed, whole = (asyncio.run(answered(engine, stream)) for stream in (True, False))
    finally:
        engine.stop()
    assert [piece.index for piece in whole] == [0, 1]
    assert [list(piece.tokens) for piece in whole] == [[7] * TOKENS] * 2
    assert len(streamed) > 2
    for index in range(2):
        assert [token for piece in streamed if piece.index == index for token in piece.tokens] == [7] * TOKENS
    assert "coterie-engine" not in [thread.name for thread in threading.enumerate()]
