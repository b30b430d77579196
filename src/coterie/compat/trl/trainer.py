"""TRL's GRPOTrainer over `coterie.train`."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from coterie.api import verbs
from coterie.api.inputs import rows_of, source_of
from coterie.api.run import Run
from coterie.callbacks import Callback
from coterie.compat.trl.arguments import HELDOUT, TRAINER
from coterie.compat.trl.config import FOLDER, GRPOConfig, batch_of, length_of, lora_of, schedule_of, settings_of
from coterie.compat.trl.state import TrainerEvents, TrainerState, callbacks_of, control, eval_logs
from coterie.errors import ConfigError, RunError


class TrainOutput(NamedTuple):
    """What `train()` returns, as transformers does."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class GRPOTrainer:
    """Trains a model with GRPO under the arguments of TRL 1.16's GRPOTrainer; docs/python.md has the table.

    Attributes:
        args: the GRPOConfig.
        state: `global_step`, `epoch`, `log_history` in TRL's names.
        run: the `coterie.Run` of the last `train()`; None before.

    Args:
        model: a hub id, a folder, an asset, or a loaded transformers model.
        reward_funcs: a function with TRL's signature, or a list.
        args: TRL's defaults when left out.
        train_dataset: a Dataset, a table, or a list of dicts with the column `prompt`, text or messages.
        eval_dataset: the same, or several by name.
        processing_class: tokenizer of a loaded model; of a model that is named, its own.
        callbacks: transformers' TrainerCallback or coterie's Callback objects.
        peft_config: PEFT's LoraConfig.
        settings: coterie's settings by dotted key, over what the arguments are translated to; not an argument of TRL.

    Raises:
        ConfigError: an argument that cannot be honoured, with the reason.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        options = {
            "reward_processing_classes": reward_processing_classes,
            "optimizers": optimizers,
            "quantization_config": quantization_config,
            "tools": tools,
            "rollout_func": rollout_func,
            "environment_factory": environment_factory,
        }
        for name, value in options.items():
            TRAINER[name].check(name, value)
        self.args = GRPOConfig(f"{_name(model)}-GRPO") if args is None else args
        if not isinstance(self.args, GRPOConfig):
            raise ConfigError(
                f"args is a {type(args).__module__}.{type(args).__name__}; expected coterie.compat.trl.GRPOConfig, "
                "which takes the same arguments"
            )
        self.state = TrainerState()
        self.run: Run | None = None
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.reward_funcs = _functions(reward_funcs)
        self.callbacks = callbacks_of(callbacks or ())
        self._model, self._tokenizer = model, processing_class
        self._settings = ({} if peft_config is None else lora_of(peft_config)) | dict(settings or {})
        self._events = [callback for callback in self.callbacks if not isinstance(callback, Callback)]
        if self._rows and isinstance(self._rows[0].get("prompt"), str):
            warnings.warn(
                "prompts are texts: each is asked as one user message, through the chat template of the model, while "
                "TRL gives such a prompt to the model as it is",
                stacklevel=2,
            )
        for callback in self._events:
            getattr(callback, "on_init_end", lambda *_, **__: None)(self.args, self.state, control())

    @cached_property
    def _rows(self) -> list[Any]:
        """The training rows; of a stream, as many as the run draws."""
        data = self.train_dataset
        if data is None:
            raise ConfigError("train_dataset is missing; give a Dataset, a table, or a list of dicts with `prompt`")
        if isinstance(data, str | Path):
            raise ConfigError(f"train_dataset = {str(data)!r} is a path; give rows, e.g. datasets.load_dataset(…)")
        if hasattr(data, "__len__"):
            return list(rows_of(data, "train_dataset"))
        if self.args.max_steps <= 0:
            raise ConfigError("train_dataset has no length, so max_steps must say how long to train; set max_steps")
        batch = batch_of(self.args)
        return list(islice(data, -(-self.args.max_steps // batch.updates) * batch.prompts))

    def train(self, resume_from_checkpoint: Any = None, **unused: Any) -> TrainOutput:
        """Train in a new run folder below `args.output_dir`.

        Raises:
            ConfigError: an argument that cannot be honoured.
            CoterieError: as `coterie.train`; what was recorded until then stays and can be resumed.
        """
        for name, value in {"resume_from_checkpoint": resume_from_checkpoint, **unused}.items():
            if value:
                raise ConfigError(
                    f"train({name}={value!r}) cannot be honoured: coterie.resume(run) continues a run from its newest "
                    "checkpoint with the settings it was started with"
                )
        self.args.check()
        length = length_of(self.args, len(self._rows))
        self.state = TrainerState()
        events = TrainerEvents(self.args, length, self.state, self._events, {"processing_class": self._tokenizer})
        started = time.perf_counter()
        self.run = verbs.train(
            self._model,
            self._rows,
            self._rewards(self._rows),
            reward_weights=self.args.reward_weights,
            tokenizer=self._tokenizer_of_model(),
            name=self.args.run_name,
            runs=self._folder,
            callback=[events, *(callback for callback in self.callbacks if isinstance(callback, Callback))],
            quiet=bool(self.args.disable_tqdm),
            settings={**settings_of(self.args), **schedule_of(self.args, length), **self._heldout(), **self._settings},
        )
        metrics = events.finish(time.perf_counter() - started)
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rewards of the newest weights, before training of the model itself, on held-out prompts, in TRL's names.

        Raises:
            ConfigError: there are no held-out prompts.
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if data is None:
            raise ConfigError("evaluate() needs eval_dataset, here or in GRPOTrainer")
        logs: dict[str, float] = {}
        for name, rows in _datasets(data).items():
            listed = list(rows_of(rows, "eval_dataset"))
            results = verbs.evaluate(
                self._model if self.run is None else self.run,
                listed,
                self._rewards(listed),
                reward_weights=self.args.reward_weights,
                tokenizer=self._tokenizer_of_model() if self.run is None else None,
                quiet=bool(self.args.disable_tqdm),
                settings={**settings_of(self.args), **self._settings},
            )
            logs |= eval_logs(results, f"{metric_key_prefix}_{name}" if name else metric_key_prefix)
        self.state.log_history.append({**logs, "epoch": self.state.epoch, "step": self.state.global_step})
        return logs

    def save_model(self, output_dir: str | Path | None = None, **unused: Any) -> None:
        """Copy the newest checkpoint's model, which transformers (or, of an adapter, PEFT) opens.

        Args:
            output_dir: `args.output_dir` when left out.
        """
        shutil.copytree(self._trained().model, Path(output_dir or self._folder).expanduser(), dirs_exist_ok=True)

    @property
    def model(self) -> Any:
        """The trained model, loaded by transformers (an adapter by PEFT); before training what was given."""
        if self.run is None:
            return self._model
        if (self.run.model / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(self.run.model)
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.run.model)

    @property
    def processing_class(self) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        return self._tokenizer or AutoTokenizer.from_pretrained(_path(self._model, self._folder))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"GRPOTrainer has no {name!r} here; it has train, evaluate, save_model, args, state, model, "
            "processing_class, and run, the coterie.Run with metrics, rollouts and checkpoints"
        )

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir or FOLDER).expanduser().absolute()

    def _trained(self) -> Run:
        if self.run is None:
            raise RunError("nothing is trained yet; call train() first")
        return self.run

    def _rewards(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Functions get messages where the data is conversational, else text, as TRL decides by its first row."""
        form = "text" if rows and isinstance(rows[0].get("prompt"), str) else "messages"
        return [{"name": function, "completions": form, "prompts": form} for function in self.reward_funcs]

    def _heldout(self) -> dict[str, Any]:
        """The sources of held-out prompts; none where nothing is evaluated while training."""
        if self.args.eval_strategy == "no" or self.eval_dataset is None:
            return {}
        data = _datasets(self.eval_dataset)
        return {HELDOUT: [source_of(rows, self._folder, name or "heldout") for name, rows in data.items()]}

    def _tokenizer_of_model(self) -> Any:
        """The tokenizer that goes with a loaded model; None where the model is named and has its own.

        Raises:
            ConfigError: the named model has another tokenizer than the one given.
        """
        from transformers import AutoTokenizer

        if not isinstance(self._model, str | Path):
            return self._tokenizer or AutoTokenizer.from_pretrained(self._model.config._name_or_path)
        if self._tokenizer is None:
            return None
        stored: Any = AutoTokenizer.from_pretrained(_path(self._model, self._folder))
        if (stored.chat_template, stored.get_vocab()) != (self._tokenizer.chat_template, self._tokenizer.get_vocab()):
            raise ConfigError(
                f"processing_class has another chat template or vocabulary than the tokenizer of {str(self._model)!r}, "
                "which a model that is named brings along; give the loaded model beside it: "
                "model=AutoModelForCausalLM.from_pretrained(…)"
            )
        return None


def _path(model: str | Path, runs: Path) -> str:
    from coterie.runs import models

    return models.locate(models.resolve(str(model), runs))


def _name(model: Any) -> str:
    return Path(str(model if isinstance(model, str | Path) else model.config._name_or_path)).name


def _datasets(data: Any) -> dict[str, Any]:
    """Held-out data by name; a single data set has none."""
    return dict(data) if isinstance(data, Mapping) else {"": data}


def _functions(reward_funcs: Any) -> list[Callable[..., Any]]:
    """The reward functions.

    Raises:
        ConfigError: there is none, or one is a reward model.
    """
    functions: Iterable[Any] = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    for function in functions:
        if isinstance(function, str) or hasattr(function, "state_dict"):
            name = repr(function) if isinstance(function, str) else f"a {type(function).__name__}"
            raise ConfigError(
                f"reward_funcs holds {name}, a reward model, which cannot be honoured: rewards are functions here; "
                "load the model in a function of a module and call it there"
            )
        if not callable(function):
            raise ConfigError(f"reward_funcs holds {function!r}; expected functions with TRL's signature")
    return list(functions)
