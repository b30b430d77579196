"""Post-train language models with Group Relative Policy Optimization (GRPO)."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie.api.local_servers import board, serve
    from coterie.api.run import Run, load_run
    from coterie.api.stage_verbs import distill, pipeline, rejection, sft
    from coterie.api.verbs import evaluate, resume, sample, train
    from coterie.callbacks import Callback
    from coterie.config.schema import RunConfig
    from coterie.envs.base import Environment
    from coterie.errors import CoterieError
    from coterie.rewards.base import Reward
    from coterie.types import EvalResult

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "CoterieError",
    "Environment",
    "EvalResult",
    "Reward",
    "Run",
    "RunConfig",
    "board",
    "distill",
    "evaluate",
    "load_run",
    "pipeline",
    "rejection",
    "resume",
    "sample",
    "serve",
    "sft",
    "train",
]
_HOMES = {
    "Callback": "coterie.callbacks",
    "CoterieError": "coterie.errors",
    "Environment": "coterie.envs.base",
    "EvalResult": "coterie.types",
    "Reward": "coterie.rewards.base",
    "Run": "coterie.api.run",
    "RunConfig": "coterie.config.schema",
    "distill": "coterie.api.stage_verbs",
    "evaluate": "coterie.api.verbs",
    "load_run": "coterie.api.run",
    "pipeline": "coterie.api.stage_verbs",
    "rejection": "coterie.api.stage_verbs",
    "resume": "coterie.api.verbs",
    "sample": "coterie.api.verbs",
    "sft": "coterie.api.stage_verbs",
}
"""Where each name is, imported when it is first used: `import coterie` alone takes no time."""


# The packages `coterie.train`, the training loop, `coterie.board` and `coterie.serve` are also the functions of these
# names.
class _Verb(ModuleType):
    @property
    def __wrapped__(self) -> Any:
        """The function, for `help` and `inspect.signature`."""
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"coterie.api.{'verbs' if name == 'train' else 'local_servers'}"), name)

    @property
    def __doc__(self) -> str | None:  # ty: ignore[incompatible-property-override]
        return self.__wrapped__.__doc__

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.__wrapped__(*args, **settings)


for _package in ("board", "serve", "train"):  # at once, so that a name stands for one object, whatever is imported when
    import_module(f"coterie.{_package}").__class__ = _Verb


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
