"""Tables of the recipe step-rewards by hand, and its two settings files."""

from __future__ import annotations

from pathlib import Path

from recipe_modules import ROOT, recipe

from coterie.config.load import load

compare = recipe("step-rewards", "compare")
FOLDER = ROOT / "recipes/step-rewards"


def shares(exact: float, valid: float, unsound: float | None = None) -> dict[str, float]:
    parts = {"exact": exact, "valid_steps": valid, "faithful": 1.0}
    return parts if unsound is None else {**parts, "unsound": unsound}


def test_tables_by_hand() -> None:
    arms = {
        "answer": {0: (shares(0.4, 0.8, 0.5), shares(0.5, 0.8, 0.25)), 1: (shares(0.4, 0.8), shares(0.3, 0.7, 0.5))},
        "steps": {0: (shares(0.4, 0.8, 0.5), shares(0.6, 0.9, 0.25)), 1: (shares(0.4, 0.8), shares(0.4, 0.9, 0.5))},
    }
    rows = list(compare.each_run(arms))
    assert rows[3] == "| answer | 1 | 40.0 % → 30.0 % | 80.0 % → 70.0 % | – → 50.0 % | 100.0 % → 100.0 % |"
    first, second, between = list(compare.compared(arms))[2:]
    assert first.startswith("| answer: after − before | +0.0 [-127.1, +127.1] | -5.0 [")  # 0 ± 12.706 · 10
    assert "| -25.0 [-25.0, -25.0] |" in second  # of one seed, where there was a right answer before
    assert between.startswith("| steps − answer, after | +10.0 [+10.0, +10.0] | +15.0 [")


def test_a_picture(tmp_path: Path) -> None:
    arms = {"answer": {0: (shares(0.4, 0.8), shares(0.5, 0.8, 0.25))}}
    assert compare.draw(tmp_path / "arms.png", arms)
    assert (tmp_path / "arms.png").stat().st_size > 1000


def test_the_cold_start_shares_everything_else_with_the_arms() -> None:
    arm = load(["@", str(FOLDER / "config.toml"), "--advantage.step_weight", "0.2"], env={}).config
    cold = load(["@", str(FOLDER / "config.toml"), "@", str(FOLDER / "cold-start.toml")], env={}).config
    assert arm.sft is None
    assert cold.sft is not None
    assert (arm.data.heldout, arm.rewards, arm.eval) == (cold.data.heldout, cold.rewards, cold.eval)
    assert arm.data.train != cold.data.train
