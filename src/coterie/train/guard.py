"""The stop rules at work in a run: when to end it, which checkpoint is still good, and whether to go on later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.config.stop import StopConfig
from coterie.diagnosis.series import Series
from coterie.diagnosis.stopping import StopRule, Verdict, judge_all
from coterie.errors import RunError
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import COLLAPSE
from coterie.runs.metrics import MetricsDB


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """A rule that fired."""

    verdict: Verdict
    step: int
    good: int | None
    """Step of the last good checkpoint; None when there is none."""

    def message(self, run: Path, dropped: Sequence[int] = ()) -> str:
        """What happened, what is kept, and what to do."""
        gone = f" (removed, as they hold what went wrong: {', '.join(map(str, dropped))})" if dropped else ""
        if self.good is None:
            kept = "there is no checkpoint from before it began; lower checkpoint.every to have one next time"
        else:
            path = run / "checkpoints" / f"step_{self.good:06d}"
            kept = (
                f"the last good checkpoint is kept: {path}{gone}. Start again from it with a gentler setting: coterie "
                f"train @ {run / 'config.toml'} --name NEW --model.name {path / 'model'} --optim.lr LOWER"
            )
        return f"ended after step {self.step} by {self.verdict.line()}; {kept}. `coterie doctor {run}` says more"


class Guard:
    """Asks the stop rules after each step. It keeps nothing: all is in the recorded series."""

    def __init__(self, rules: Sequence[StopRule], database: MetricsDB, checkpoints: Path) -> None:
        self.rules = list(rules)
        self.database = database
        self.checkpoints = checkpoints
        self._asked = False

    def check(self, step: int) -> Collapse | None:
        """The first rule that fires after this step."""
        verdicts = self._verdicts(step)
        fired = [verdict for verdict in verdicts if verdict.fired]
        if not fired:
            return None
        return Collapse(verdict=fired[0], step=step, good=self._newest(verdicts))

    def good_checkpoint(self, step: int) -> int | None:
        """Step of the newest existing checkpoint that no rule speaks against; None without rules."""
        return self._newest(self._verdicts(step)) if self.rules else None

    def idle(self, step: int) -> Iterator[str]:
        """Once: the rules whose metric this run does not record."""
        if self._asked:
            return
        self._asked = True
        recorded = self.database.step_metrics(step)
        for rule in self.rules:
            if rule.metric not in recorded:
                yield f"stop rule {rule.name} reads {rule.metric}, which step {step} did not record: it may never fire"

    def _newest(self, verdicts: Sequence[Verdict]) -> int | None:
        through = min(verdict.good_through for verdict in verdicts)
        return max((saved for saved in checkpoint.steps(self.checkpoints) if saved <= through), default=None)

    def _verdicts(self, step: int) -> list[Verdict]:
        return _verdicts(self.rules, self.database, step)


def _verdicts(rules: Sequence[StopRule], database: MetricsDB, step: int) -> list[Verdict]:
    names = {rule.metric for rule in rules}
    return judge_all(rules, {name: Series.of(name, database.series(name)) for name in names}, step)


def stop_rules(config: StopConfig) -> list[StopRule]:
    """The rules of a run's settings, with their defaults filled in."""
    return [
        StopRule.of(rule.name, metric=rule.metric, threshold=rule.threshold, patience=rule.patience)
        for rule in config.rules
    ]


def why_it_ended(database: MetricsDB) -> str:
    """Why a stop rule ended the run, to begin a sentence with; empty when none did."""
    events = database.events(COLLAPSE)
    return f"{events[-1].message}. The rule is relaxed now: " if events else ""


def refuse_to_repeat(run: RunDirectory, rules: Sequence[StopRule]) -> None:
    """A resume makes the same steps again, bit for bit: where a rule ended the run, it would end there again.

    Raises:
        RunError: a rule fired, and does so under the present settings too.
    """
    if not run.metrics.exists():
        return
    with MetricsDB.reader(run.metrics) as database:
        events = database.events(COLLAPSE)
        if not events or events[-1].step is None:
            return
        fired = [verdict for verdict in _verdicts(rules, database, events[-1].step) if verdict.fired]
    if fired:
        raise RunError(
            f"{run.path} {events[-1].message}. A resume would make the same steps again and end there too; to go on "
            f"all the same, relax or remove {fired[0].rule.name} under [stop] in {run.config}"
        )
