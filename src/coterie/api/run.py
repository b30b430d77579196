"""`Run`: the records of a run's folder as an object."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import RunError
from coterie.types import EvalResult

if TYPE_CHECKING:
    import pyarrow

    from coterie.config.schema import RunConfig
    from coterie.inference.conversation import ChatSession


class Metrics(dict[str, list[Any]]):
    """A table of metrics: `step` and one list per metric, all of the same length; None where a step lacks it."""

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame (needs pandas)."""
        return import_module("pandas").DataFrame(self)


class Run:
    """A run's folder, finished or not. Everything is read anew at each access.

    Args:
        path: the folder, e.g. `runs/dates`.

    Raises:
        RunError: the folder is not a run.
    """

    def __init__(self, path: str | Path) -> None:
        from coterie.runs.directory import RunDirectory

        self._files = RunDirectory.at(Path(path).expanduser().absolute())

    @property
    def path(self) -> Path:
        """The run's folder, absolute."""
        return self._files.path

    @property
    def config(self) -> RunConfig:
        """All settings."""
        from coterie.config.load import load_file

        return load_file(self._files.config).config

    @property
    def state(self) -> str:
        """`running`, `finished`, `stopped`, `collapsed` (a stop rule ended it) or `damaged`."""
        from coterie.runs.inspect import summary

        return summary(self.path, tests=False).state

    @property
    def metrics(self) -> Metrics:
        """Every metric of every step (docs/runs.md lists them), e.g. `run.metrics["reward/mean"]`."""
        from coterie.runs.metrics import MetricsDB

        with MetricsDB.reader(self._files.metrics) as database:
            steps = database.steps()
            series = {name: dict(database.series(name)) for name in database.names()}
        columns = {name: [values.get(step) for step in steps] for name, values in series.items()}
        return Metrics({"step": steps, **columns})

    def rollouts(self, step: int | None = None) -> pyarrow.Table:
        """Recorded rollouts as an Arrow table, in the columns that docs/runs.md lists.

        Args:
            step: a single step's; None gives all.

        Raises:
            RunError: there is no such step, or its file is damaged.
        """
        import pyarrow

        from coterie.runs import parquet
        from coterie.runs.rollouts import read_step
        from coterie.runs.rows import schema, to_row

        steps = parquet.steps(self._files.rollouts) if step is None else [step]
        rows = [to_row(number, record) for number in steps for record in read_step(self._files.rollouts, number)]
        return pyarrow.Table.from_pylist(rows, schema=schema())

    @property
    def evaluations(self) -> list[EvalResult]:
        """Held-out results with 95 % intervals, by step, one for each task, then `all` where there are several."""
        from coterie.runs.metrics import MetricsDB

        with MetricsDB.reader(self._files.metrics) as database:
            return database.evals()

    @property
    def model(self) -> Path:
        """Folder of the newest checkpoint's model, which transformers (or, of an adapter, PEFT) opens.

        Raises:
            RunError: the run has no checkpoint yet.
        """
        from coterie.runs.checkpoint import newest

        checkpoint = newest(self._files.checkpoints)
        if checkpoint is None:
            raise RunError(f"{self.path} has no checkpoint yet; resume it until it has, or name its model instead")
        return checkpoint.path / "model"

    def chat(self, *, system: str | None = None, temperature: float = 0.7, max_tokens: int = 512) -> ChatSession:
        """A conversation with the newest checkpoint: `.reply(text)` returns the answer.

        Args:
            system: system message; None takes the one the run was trained with, if any.
        """
        from coterie import launch

        return launch.chat(str(self.path), system=system, temperature=temperature, max_tokens=max_tokens)

    def __repr__(self) -> str:
        from coterie.runs.inspect import summary

        facts = summary(self.path, tests=False)
        return f"Run({str(self.path)!r}, {facts.state}, step {facts.step or 0} of {facts.steps})"

    def _repr_html_(self) -> str:
        """The learning curve, the held-out results and a few rollouts, for notebooks."""
        from coterie.api.notebook import html_of
        from coterie.runs import parquet

        steps = parquet.steps(self._files.rollouts)
        ends = dict.fromkeys([*steps[:1], *steps[-1:]])
        return html_of(repr(self), self.metrics, self.evaluations, [self.rollouts(step).to_pylist() for step in ends])


def load_run(run: str | Path, runs: str | Path = "runs") -> Run:
    """A stored run.

    Args:
        run: its folder, or its name.
        runs: the folder in which a name is looked for.

    Raises:
        RunError: there is no such run.
    """
    from coterie.runs.directory import RunDirectory

    return Run(RunDirectory.at(Path(run).expanduser(), Path(runs).expanduser()).path)
