"""The roofline: what counts as work, which part an operation belongs to, and a whole run of a tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.peers import roof_profile, roofline
from benchmarks.peers.growth_step import Sizes
from benchmarks.peers.roof_ceilings import Shapes, Stack, bandwidth, square
from benchmarks.peers.roof_phases import Bench, Phase, measure
from benchmarks.peers.roof_profile import part_of
from tiny_models import tiny_model, tiny_policy

VOCABULARY = 97
SMALL = Sizes(prompts=2, group_size=4, prompt=6, completion=5)


@pytest.fixture(scope="module")
def bench():
    return Bench(tiny_policy(dtype=torch.float32), SMALL)


def test_shapes_are_those_of_every_matrix_product(bench):
    shapes = Shapes.of(bench.policy)
    assert shapes.head == (VOCABULARY, 32)
    layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48  # query, key and value, output, gate, up and down
    assert shapes.body_size == 3 * layer


def test_ceilings_are_positive_rates():
    stack = Stack([(8, 4), (4, 8)], torch.bfloat16, 0.0)
    assert stack.size == 64
    assert stack.forward(3) > 0 < stack.train(3)
    assert square(16, torch.float32, 0.0) > 0
    assert all(rate > 0 for rate in bandwidth(1 << 12, 0.0).values())


def test_phases_count_their_tokens(bench):
    prefill, decode, update, step = measure(bench, 1)
    assert (prefill.rows, prefill.tokens, prefill.head_rows) == (12, 12, 2)
    assert (decode.rows, decode.tokens, decode.head_rows) == (8, 32, 32)
    assert (update.rows, update.tokens, update.head_rows, update.passes) == (52, 52, 40, 3)
    assert step.passes == 0
    assert step.seconds > 0


def test_the_learner_is_whole_again_after_being_timed(bench):
    measure(bench, 1)
    assert "step" not in vars(bench.learner.optimizer)


def phase(name, **values):
    profile = {"seconds": 2.0, "spread": (2.0, 2.0), "rows": 10, "tokens": 10, "head_rows": 4, "passes": 1}
    return Phase(name=name, **(profile | values))  # ty: ignore[invalid-argument-type]


def test_flops_of_forward_and_backward(bench):
    rows = (1, roofline.REFERENCE_ROWS)
    ceilings = roofline.ceilings(Shapes.of(bench.policy), seconds=0.0, rows=rows, side=8, size=1 << 12)
    phases = [phase("prefill"), phase("decode"), phase("update", passes=3), phase("optimizer step", passes=0)]
    forward, decode, update, step = roofline.against(bench.policy, phases, SMALL, ceilings, seconds=0.0)
    shapes = Shapes.of(bench.policy)
    assert forward.flops == 2 * (shapes.body_size * 10 + shapes.head_size * 4)
    assert update.flops == 3 * forward.flops
    assert forward.rate == forward.flops / 2.0
    assert (step.floor, step.flops) == (None, 0)
    assert forward.bytes_floor is None
    # 4 steps: all matrices, and 8 rows of 6 + 2.5 tokens with 2 × 3 layers × 2 heads × 8 numbers, in float32
    moved = 4 * ((shapes.body_size + shapes.head_size) * 4 + 8 * 8.5 * 96 * 4)
    assert decode.bytes_floor == pytest.approx(moved / ceilings.memory["read"])
    assert forward.floor is not None
    assert forward.record()["of_ceiling"] == forward.floor / 2.0


@pytest.mark.parametrize(
    ("name", "shapes", "generating", "training"),
    [
        ("aten::mm", [[64, 576], [576, 1536]], "linear", "linear"),
        ("aten::mkldnn_linear", [[64, 576], [1536, 576], []], "linear", "linear"),
        ("aten::mm", [[64, 576], [576, VOCABULARY]], "head", "head"),
        ("aten::exp", [[64, VOCABULARY]], "sampling", "head"),
        ("aten::sum", [[64, 1, 512]], "sampling", "head"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[8, 9, 1, 64]], "attention", "attention"),
        ("aten::bmm", [[72, 16, 64], [72, 64, 16]], "attention", "attention"),
        ("aten::index_select", [[9, 100, 64], [], [80]], "attention", "attention"),
        ("aten::cat", [[[1, 9, 100, 32], [1, 9, 100, 32]], []], *["norm, rope, elementwise"] * 2),
        ("aten::silu", [[64, 1536]], "norm, rope, elementwise", "norm, rope, elementwise"),
        ("aten::_fused_adamw_", [[[576, 576]], [[VOCABULARY, 576]]], "optimizer", "optimizer"),
        ("Optimizer.step#AdamW.step", [], "optimizer", "optimizer"),
        ("_ChunkedLogprobsBackward", [[40], []], "head", "head"),
        ("aten::empty", [[], []], "other", "other"),
    ],
)
def test_parts_of_operations(name, shapes, generating, training):
    assert part_of(name, shapes, VOCABULARY, training=False) == generating
    assert part_of(name, shapes, VOCABULARY, training=True) == training


def test_shares_of_a_real_step_sum_to_one(bench):
    profiles = roofline.profiles(bench)
    for shares in profiles.values():
        assert set(shares) == set(roof_profile.PARTS)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["linear"] > 0
    assert profiles["generate"]["sampling"] > 0 == profiles["generate"]["optimizer"]
    assert profiles["update and step"]["optimizer"] > 0 == profiles["update and step"]["sampling"]


def test_run_writes_tables_and_record(tmp_path, monkeypatch, capsys):
    tiny_model("smollm", dtype=torch.float32).save_pretrained(tmp_path / "model")
    real = roofline.ceilings
    monkeypatch.setattr(roofline, "use_threads", lambda: 1)  # this process has other tests to run
    monkeypatch.setattr(roofline, "ceilings", lambda shapes, seconds: real(shapes, seconds=0.0, side=8, size=1 << 12))
    roofline.run(tmp_path / "out", True, str(tmp_path / "model"))
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "roofline.md").read_text() in printed
    for words in ("| 64 |", "| big square |", "| optimizer step |", "aim 60%", "bytes-bound", "| head |"):
        assert words in printed
    record = json.loads((tmp_path / "out" / "roofline.json").read_text())
    assert [phase["phase"]["name"] for phase in record["phases"]] == ["prefill", "decode", "update", "optimizer step"]
    assert record["phases"][2]["of_ceiling"] > 0


def test_products_with_packed_weights_are_products() -> None:
    assert part_of("mkldnn::_linear_pointwise", [[64, 576]], 49152, training=False) == "linear"
