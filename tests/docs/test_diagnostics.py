"""docs/diagnostics.md explains every metric that a run records, every rule's alarm, and every stop rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import DIAGNOSTICS, METRIC_TABLES, is_documented, rows

from coterie import launch
from coterie.config.stop import KINDS
from coterie.doctor.health import diagnose
from coterie.doctor.rules import FAMILIES, RULES
from coterie.runs.metrics import MetricsDB
from runs_for_tests import importable, make_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documented")
    parts = [{"name": "tiny_rewards:likes_a"}, {"name": "format"}]
    changed = {"objective": {"kl_beta": 0.1}, "optim": {"minibatches": 2, "lr": 1e-3}, "eval": {"every": 0}}
    changed["replay"] = {"groups": 1, "min_ratio": 0.01, "max_ratio": 100.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", importable(root))
        return launch.train(make_config(root, steps=3, rewards={"functions": parts}, **changed))


def test_every_metric_that_a_run_records_is_explained(run: Path) -> None:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        names = database.names()
    assert {"think/empty", "kl/ref", "groups/effective", "staleness/max", "replay/age", "replay/clipped"} <= set(names)
    assert [name for name in names if not is_documented(name)] == []


def test_every_metric_that_a_group_aware_run_records_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grouping = {"preset": "mixture", "clock": "policy", "trust": 0.5, "allocate": True, "most": 6}
    run = launch.train(make_config(tmp_path, steps=2, grouping=grouping, eval={"every": 0}))
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        names = database.names()
    assert {"moved", "grouping/time", "grouping/trust/mean", "allocation/most"} <= set(names)
    assert [name for name in names if not is_documented(name)] == []


def test_every_metric_of_a_run_with_several_turns_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed = {"environment": {"name": "retry", "max_tokens": 200}, "rewards": {"functions": [{"name": "environment"}]}}
    run = launch.train(
        make_config(tmp_path, steps=2, grouping={"preset": "empirical_bayes"}, eval={"every": 0}, **changed)
    )
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        names = database.names()
    assert {"turns/mean", "grouping/scale/state", "grouping/state/shared"} <= set(names)
    assert [name for name in names if not is_documented(name)] == []


def test_every_metric_that_a_rule_reads_is_explained() -> None:
    read = {name for rule in RULES for name in (*rule.needs, *rule.any_of)} | {kind.metric for kind in KINDS.values()}
    assert [name for name in sorted(read - {""}) if not is_documented(name)] == []


def test_every_explanation_says_when_to_worry() -> None:
    for title in METRIC_TABLES:
        for cells in rows(DIAGNOSTICS, title):
            assert len(cells) == 4, cells
            assert cells[1] or cells[2] or cells[3], cells


@pytest.mark.parametrize("family", FAMILIES)
def test_every_alarm_is_on_the_page(family: str) -> None:
    found = {cells[0].strip("`"): cells[1:] for cells in rows(DIAGNOSTICS, family.capitalize())}
    assert found == {rule.name: [rule.alarm, rule.source] for rule in FAMILIES[family]}


def test_every_stop_rule_is_on_the_page() -> None:
    found = {cells[0].strip("`"): cells[1:] for cells in rows(DIAGNOSTICS, "Stop rules")}
    assert set(found) == set(KINDS)
    for name, kind in KINDS.items():
        metric, threshold, patience = found[name]
        assert (f"`{kind.metric}`" if kind.metric else "yours") in metric
        assert threshold == ("yours" if kind.threshold is None else f"{kind.threshold:g}")
        assert patience == str(kind.patience)


def test_the_doctor_finds_what_is_wrong_with_a_tiny_run(run: Path) -> None:
    """A random model never ends its completions, and three steps are few: both are said, and nothing is made up."""
    found = diagnose(run)
    assert [finding.rule for finding in found.findings if finding.severity == "serious"] == ["truncated"]
    assert {"ratio", "skipped_updates", "late", "errors"} <= set(found.quiet)
    reasons = {one.rule: one.reason for one in found.unjudged}
    assert reasons["entropy_low"] == "needs 10 steps with entropy, there are 3"
    assert "critic" in reasons
    assert "## Health" in (run / "README.md").read_text(encoding="utf-8")
