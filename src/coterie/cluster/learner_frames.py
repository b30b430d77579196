"""Optimizer steps, scores and sums as JSON, for messages between the run and its learner ranks; arrays are base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from coterie.algo.correction import MismatchSums
from coterie.algo.objective import Objective
from coterie.batches.batch import Batch, Segment
from coterie.config.objective import ObjectiveConfig, RolloutCorrectionConfig
from coterie.policy.forward import UpdateContext
from coterie.policy.learner import OptimizerStep
from coterie.policy.update_report import UpdateSums
from coterie.types import RolloutScores

Row = dict[str, Any]


def packed_array(array: np.ndarray | None) -> Row | None:
    """An array, or None, as JSON."""
    if array is None:
        return None
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": array.shape, "data": data}


def array_of(row: Mapping[str, Any] | None) -> np.ndarray | None:
    """The array of `packed_array`, in memory of its own."""
    if row is None:
        return None
    values = np.frombuffer(base64.b64decode(row["data"]), dtype=np.dtype(row["dtype"]))
    return values.reshape(row["shape"]).copy()


def packed_batch(batch: Batch) -> Row:
    """A packed row with the inputs of its passes as JSON."""
    row: Row = {
        column.name: packed_array(getattr(batch, column.name))
        for column in fields(batch)
        if column.name not in ("segments", "spans")
    }
    row["segments"] = [asdict(segment) for segment in batch.segments]
    row["spans"] = dict(batch.spans)
    return row


def batch_of(row: Mapping[str, Any]) -> Batch:
    """The packed row of `packed_batch`."""
    columns: Row = {name: array_of(value) for name, value in row.items() if name not in ("segments", "spans")}
    segments = [
        Segment(start=cut["start"], prompt=cut["prompt"], lengths=tuple(cut["lengths"]), head=cut["head"])
        for cut in row["segments"]
    ]
    spans = {name: (low, high) for name, (low, high) in row["spans"].items()}
    return Batch(segments=tuple(segments), spans=spans, **columns)


def packed_scores(scores: Mapping[str, RolloutScores]) -> Row:
    """Token scores by rollout as JSON."""
    columns = [column.name for column in fields(RolloutScores)]
    return {name: {column: packed_array(getattr(of, column)) for column in columns} for name, of in scores.items()}


def scores_of(rows: Mapping[str, Any]) -> dict[str, RolloutScores]:
    """The scores of `packed_scores`."""
    scores: dict[str, RolloutScores] = {}
    for name, row in rows.items():
        columns: Row = {column: array_of(value) for column, value in row.items()}
        scores[name] = RolloutScores(**columns)
    return scores


def packed_step(step: OptimizerStep) -> Row:
    """An optimizer step as JSON, with what is known of its rollouts alone."""
    context, names = step.context, [name for batch in step.batches for name in batch.spans]
    scores, covariant = context.scores, context.covariant
    return {
        "batches": [packed_batch(batch) for batch in step.batches],
        "context": {
            "scores": None if scores is None else packed_scores({name: scores[name] for name in names}),
            "covariant": None if covariant is None else {name: packed_array(covariant[name]) for name in names},
            "moved": context.moved,
            "threshold": context.threshold,
            "tokens": context.tokens,
            "bypass": context.bypass,
            "lacks_reference": context.lacks_reference,
        },
    }


def step_of(row: Mapping[str, Any]) -> OptimizerStep:
    """The optimizer step of `packed_step`."""
    context: Row = dict(row["context"])
    if context["scores"] is not None:
        context["scores"] = scores_of(context["scores"])
    if context["covariant"] is not None:
        context["covariant"] = {name: array_of(value) for name, value in context["covariant"].items()}
    return OptimizerStep(batches=[batch_of(batch) for batch in row["batches"]], context=UpdateContext(**context))


def packed_objective(objective: Objective) -> Row:
    """Settings of an objective as JSON; a user's own function is not among them."""
    return {
        "settings": objective.settings.model_dump(mode="json"),
        "correction": objective.correction.model_dump(mode="json"),
    }


def objective_of(row: Mapping[str, Any], named: Objective) -> Objective:
    """The objective of `packed_objective`.

    Args:
        named: has the function of the user's own loss, where the settings name one.
    """
    settings = ObjectiveConfig.model_validate(row["settings"])
    correction = RolloutCorrectionConfig.model_validate(row["correction"])
    function = named.function if settings.loss == named.settings.loss else None
    return Objective(settings=settings, correction=correction, function=function)


def packed_sums(sums: UpdateSums) -> Row:
    """The sums of an update as JSON."""
    tokens, values = sums.tokens, sums.values
    return {
        "tokens": {name: getattr(tokens, name) for name in ("count", "past", "compared", "sums", "peaks")},
        "mismatch": asdict(tokens.mismatch),
        "values": {
            "returns": [packed_array(array) for array in values.returns],
            "values": [packed_array(array) for array in values.values],
            "loss": values.loss,
        },
        "logprobs": {name: packed_array(array) for name, array in sums.logprobs.items()},
        "norms": sums.norms,
        "splits": sums.splits,
    }


def sums_of(row: Mapping[str, Any]) -> UpdateSums:
    """The sums of `packed_sums`; the rates are those of every rank."""
    sums = UpdateSums(norms=list(row["norms"]), splits=row["splits"])
    for name, value in row["tokens"].items():
        setattr(sums.tokens, name, value)
    sums.tokens.mismatch = MismatchSums(**row["mismatch"])
    sums.values.loss = row["values"]["loss"]
    for name in ("returns", "values"):
        arrays = (array_of(array) for array in row["values"][name])
        setattr(sums.values, name, [array for array in arrays if array is not None])
    sums.logprobs = {name: array for name, value in row["logprobs"].items() if (array := array_of(value)) is not None}
    return sums
