"""Settings → the parts of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coterie.batches.pack import Packing
from coterie.build.reading import Inputs
from coterie.build.run import engine_for, evaluator_for, run_learner
from coterie.config.imitation import SftConfig
from coterie.config.rewards import RewardsConfig
from coterie.config.schema import RunConfig
from coterie.data.order import PromptOrder
from coterie.data.prompts import PromptSet
from coterie.errors import DataError
from coterie.policy.model import Policy
from coterie.rewards.missing import unscorable_prompts
from coterie.rewards.pool import Scorer
from coterie.text import counted
from coterie.train.demonstrations import DemonstrationSet
from coterie.train.recorder import Recorder
from coterie.train.sft import SftTrainer
from coterie.train.step import LoopSettings


def demonstrations_of(inputs: Inputs) -> DemonstrationSet:
    """The conversations to imitate."""
    if inputs.demonstrations is None:
        raise DataError("there are no conversations to imitate; supervised fine-tuning needs an [sft] table")
    return inputs.demonstrations


def complete(config: RunConfig, inputs: Inputs) -> RunConfig:
    """The settings with the steps of `sft.epochs` and the rate of a fine-tuning, where these were not set.

    Raises:
        DataError: there are fewer conversations than a step draws.
    """
    settings, rows = config.sft or SftConfig(), len(demonstrations_of(inputs).train)
    if rows < settings.batch_size:
        raise DataError(
            f"data.train has {counted(rows, 'conversation')} to imitate, fewer than the {settings.batch_size} that one "
            "step draws (sft.batch_size); lower it, or give more"
        )
    update: dict[str, Any] = {}
    if "steps" not in config.model_fields_set:
        update["steps"] = settings.steps(rows)
    if "lr" not in config.optim.model_fields_set:
        rate = settings.rate(adapter=config.model.lora is not None)
        update["optim"] = config.optim.model_copy(update={"lr": rate})
    return config.model_copy(update=update)


def scorable(config: RunConfig, inputs: Inputs) -> tuple[Inputs, str]:
    """The inputs without held-out prompts that the default reward cannot score, and a note of that.

    Held-out conversations measure the loss all the same. A reward that the settings name is not forgiven.
    """
    if not inputs.heldout.prompts or config.rewards.functions != RewardsConfig().functions:
        return inputs, ""
    gaps = unscorable_prompts(config.rewards, inputs.heldout, config.collect.max_error_share)
    if not any(gap.fatal for gap in gaps):
        return inputs, ""
    note = "held-out accuracy is not measured: no reward is set (rewards.functions), and the default needs gold answers"
    return replace(inputs, heldout=PromptSet.empty()), note


def sft_trainer_for(
    config: RunConfig, inputs: Inputs, scorer: Scorer, recorder: Recorder, policy: Policy
) -> SftTrainer:
    """The loop with all its parts."""
    settings = config.sft or SftConfig()
    rows = demonstrations_of(inputs)
    engine = engine_for(config, inputs, policy, recorder=recorder)
    return SftTrainer(
        learner=run_learner(config, inputs, policy, recorder),
        engine=engine,
        evaluator=evaluator_for(config, engine, inputs.chat, scorer, inputs.heldout),
        recorder=recorder,
        settings=LoopSettings(
            steps=config.steps,
            eval_every=config.eval.every,
            checkpoint_every=config.checkpoint.every,
            packing=Packing(
                loss_agg_mode="token-mean",
                max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
                skip_zero=False,
                minibatches=config.optim.minibatches,
                seed=config.seed,
            ),
            seed=config.seed,
        ),
        order=PromptOrder([demo.prompt for demo in rows.train], seed=config.seed, presence=rows.presence),
        demonstrations={demo.prompt.id: demo for demo in rows.train},
        heldout=rows.heldout,
        batch_size=settings.batch_size,
        keep_best=settings.best,
    )
