"""What a service of a run builds from its settings: an engine, or a learner rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.build.reading import device_of
from coterie.build.run import load_policy, rank_learner, use_threads
from coterie.build.services import sharding_for
from coterie.cluster.engine_service import ServedEngine
from coterie.cluster.learner_service import ServedLearner
from coterie.config.parts import ENGINES, part
from coterie.config.schema import RunConfig
from coterie.config.user_functions import search_in
from coterie.data.chat import load_chat
from coterie.policy.learner import Learner
from coterie.policy.ranks import Ranks
from coterie.policy.shared_memory import ServiceWeights, SharedWeights


def served_engine(
    settings: Mapping[str, Any],
    source: str,
    threads: int,
    longest: int,
    stop_ids: Sequence[int],
    weights: Mapping[str, Any],
) -> ServedEngine:
    """The engine in a service: that of a run in one process, around a copy of the policy.

    Args:
        settings: all of the run, JSON-able.
        source: folder or hub id of the model.
        threads: compute threads.
        longest: tokens of the longest sequence, 0 where it is not known.
        stop_ids: tokens that end a turn.
        weights: `file` and `slots` of the shared memory.
    """
    config = RunConfig.model_validate(settings)
    search_in(config.module_path)
    use_threads(config.model_copy(update={"threads": threads}))
    policy = load_policy(config, source)
    chat = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    chat.stop_ids = frozenset(stop_ids)
    engine = part(ENGINES, config.engine.name)(policy, chat, config, longest)
    trained = ServiceWeights(SharedWeights(**weights), policy.parameters())

    def rest() -> None:
        engine.close()  # what it holds between two calls reads the weights
        trained.release()

    return ServedEngine(engine=engine, load=trained.load, rest=rest)


def served_learner(settings: Mapping[str, Any], source: str, reference: str | None, threads: int) -> ServedLearner:
    """A learner rank in a service.

    Args:
        settings: all of the run, JSON-able.
        source: folder or hub id of the model.
        reference: of the reference model, where that is another.
        threads: compute threads.
    """
    config = RunConfig.model_validate(settings)
    search_in(config.module_path)
    use_threads(config.model_copy(update={"threads": threads}))

    def build(ranks: Ranks) -> Learner:
        sharding = sharding_for(config, ranks, device_of(config))
        learner = rank_learner(config, load_policy(config, source), source, reference, Learner, sharding)
        learner.attach(ranks, sharding)
        return learner

    return ServedLearner(build=build)
