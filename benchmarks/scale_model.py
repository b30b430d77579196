"""A model of a training step on 8, 64 and 1,024 GPUs: what a lag gains, and where the controller is the limit.

    python -m benchmarks.scale_model
    python -m benchmarks.scale_model --steps 40 --seed 1

Nothing here was measured on a GPU. Sampling, update, transfer of weights and the controller's work are computed from
the assumptions below, which are printed with the results; the controller's costs alone are measured, on this machine,
with the code that a run uses. Sampling is simulated pass by pass with drawn lengths, in lock-step over the engine
services, as `cluster/engine_pool.py` asks them; a step's place in time follows `rollout/lagged_sampler.py`.

Splits of the GPUs between engines and learner are tried in steps of an eighth; the best one is shown. "in turn on all
GPUs" is what verl calls a hybrid engine, which coterie does not have: a bound for what keeping both apart costs.
"""

from __future__ import annotations

import argparse
import heapq
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from coterie.batches.pack import Packing, pack
from coterie.cluster.frames import Frames, packed_turn, turn_of
from coterie.engines.base import Request, Sampling, check_turn
from coterie.runs import rollouts
from coterie.types import Context, Credit, Outcome, Prompt, Rollout, SampleKey, StopReason, Turn

VOCABULARY = 150_000
PACKING = Packing(
    loss_agg_mode="token-mean",
    max_tokens_per_microbatch=32_768,
    skip_zero=True,
    max_tokens=32_768,
    minibatches=1,
    epochs=1,
    seed=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One GPU of a cluster of H100s, and its share of the network; efficiencies are those of published systems."""

    flops: float = 989e12
    """Dense bfloat16."""
    hbm: float = 3.35e12
    """Bytes a second of its memory."""
    network: float = 50e9
    """Bytes a second between nodes, for each GPU: one port of 400 Gb/s."""
    training: float = 0.4
    """Share of `flops` that an update reaches (MFU)."""
    prefill: float = 0.5
    """Share of `flops` that reading prompts and decoding of many rows reach."""
    decoding: float = 0.6
    """Share of `hbm` that a decode pass reaches."""
    pass_s: float = 0.004
    """Of a decode pass beside its reads: launches, sampling, all-reduces of tensor parallelism."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A policy, with the GPUs that an engine needs for it."""

    name: str = "8B"
    parameters: float = 8e9
    cache: float = 131_072.0
    """Bytes of keys and values a token: 32 layers of 8 heads of 128, bfloat16."""
    tensor_parallel: int = 1
    slots: int = 256
    """Sequences that an engine decodes at once."""

    @property
    def bytes(self) -> float:
        """Of the weights in bfloat16."""
        return 2 * self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step. Lengths are log-normal, which has the long tail that reasoning has."""

    prompts: int
    group: int
    mean: float
    """Tokens of a completion."""
    most: int
    prompt: int = 512
    spread: float = 0.8
    """Standard deviation of the logarithm of a length."""

    def lengths(self, draw: np.random.Generator) -> np.ndarray:
        """[prompts, group] tokens."""
        center = np.log(self.mean) - self.spread**2 / 2
        values = np.exp(center + self.spread * draw.standard_normal((self.prompts, self.group)))
        return np.clip(values, 1, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """Seconds of the run's own process, measured."""

    message: float
    """To ask a service for a pass, and to read that nothing ended."""
    turn: float
    """To read, check and keep a turn, for each token."""
    pack: float
    """To pack, for each token."""
    store: float
    """To write the rollouts, for each token."""
    passes: int = 1
    """Passes that one message asks for: 1 today."""
    processes: int = 1
    """That share the turns, the packing and the storing: 1 today."""


def measured(count: int = 32, tokens: int = 2048) -> Controller:
    """The controller's costs on this machine, in seconds of the processor; `count` rollouts of as many tokens."""
    members = [_rollout(k, tokens) for k in range(count)]
    credits = [Credit(rollout_id=r.id, advantage=0.5, clip_low=0.2, clip_high=0.2) for r in members]
    by_id = {rollout.id: rollout for rollout in members}
    prompt = Prompt(id="p", messages=({"role": "user", "content": "?"},), answer=None, task="t")
    records = [
        rollouts.RolloutRecord(prompt=prompt, rollout=r, credit=c, logprobs=r.turns[0].sampler_logprobs, seconds=1.0)
        for r, c in zip(members, credits, strict=True)
    ]
    ours, theirs = (Frames(stream) for stream in socket.socketpair())
    sampling = Sampling(temperature=1.0, max_tokens=tokens)

    def message() -> None:
        ours.send({"id": 1, "calls": [["step"]]})
        theirs.receive()
        theirs.send({"id": 1, "ended": [], "value": None})
        ours.receive()

    def turn() -> None:
        (rollout,) = members[:1]
        ours.send({"id": 1, "ended": [[1, packed_turn(rollout.turns[0])]]})
        (row,) = theirs.receive()["ended"]
        request = Request(key=SampleKey(seed=0, version=0, prompt="p", sample=0), prompt_tokens=(1,) * 64)
        check_turn(request, turn_of(row[1]), vocabulary=VOCABULARY, sampling=sampling)

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rollouts.write_step(Path(folder), 1, records)

    total = count * tokens
    costs = Controller(
        message=_seconds(message, 200) / 2,  # the service's half is its own
        turn=_seconds(turn, 20) / tokens,
        pack=_seconds(lambda: pack(by_id, credits, PACKING, 0), 5) / total,
        store=_seconds(store, 3) / total,
    )
    ours.close()
    theirs.close()
    return costs


def _seconds(call: Callable[[], object], times: int) -> float:
    """Median seconds of the processor that a call takes."""
    call()
    spent = []
    for _ in range(times):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return float(np.mean(sorted(spent)[times // 4 : max(times // 4 + 1, 3 * times // 4)]))


def _rollout(number: int, tokens: int) -> Rollout:
    draw = np.random.default_rng(number)
    turn = Turn(
        prompt_tokens=(1,) * 64,
        tokens=tuple(draw.integers(3, VOCABULARY, tokens).tolist()),
        sampler_logprobs=tuple((-draw.exponential(1.0, tokens)).tolist()),
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=0,
    )
    context = Context(
        prompt_id="p",
        task="t",
        difficulty=None,
        version=0,
        prompt_length=64,
        completion_length=tokens,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=f"p#{number}@0",
        sample=number,
        turns=(turn,),
        completion="a" * 4 * tokens,
        reward=1.0,
        reward_parts={"right": 1.0},
        outcome=Outcome.OK,
        context=context,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """Decode passes of a step."""

    seconds: np.ndarray
    """[passes] of the slowest service."""
    services: np.ndarray
    """[passes] that have open rows."""


@cache
def decoded(engines: int, hardware: Hardware, model: Model, work: Work, seed: int, step: int) -> tuple[int, Passes]:
    """Tokens of a step, and its passes. A pass of a service reads the weights, and the cache of its open rows; a group
    goes to the service with the fewest rollouts."""
    lengths = work.lengths(np.random.default_rng([seed, step]))
    speed = hardware.hbm * hardware.decoding * model.tensor_parallel
    flops = hardware.flops * hardware.prefill * model.tensor_parallel
    seconds, services = np.zeros(0), np.zeros(0)
    for share in _shares(lengths, max(1, engines // model.tensor_parallel)):
        rows, cached = _occupancy(share, model.slots, work.prompt)
        read = (model.bytes * (rows > 0) + model.cache * cached) / speed
        passes = np.maximum(read, 2 * model.parameters * rows / flops) + hardware.pass_s
        seconds, services = _longer(seconds, rows.size), _longer(services, rows.size)
        seconds[: rows.size] = np.maximum(seconds[: rows.size], passes)
        services[: rows.size] += rows > 0
    return int(lengths.sum()), Passes(seconds, services)


def _longer(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, max(0, size - values.size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """GPUs, shared out."""

    engines: int
    """GPUs that sample."""
    learners: int
    """GPUs that update."""
    hardware: Hardware
    model: Model
    controller: Controller

    def sample_s(self, passes: Passes, work: Work) -> float:
        """Seconds of sampling a step's rollouts: the pool waits for the slowest service in each pass, and for its own
        messages."""
        model, hardware = self.model, self.hardware
        asked = passes.services * self.controller.message / self.controller.passes
        prefill = 2 * model.parameters * work.prompts * work.prompt / (hardware.flops * hardware.prefill * self.engines)
        return float(np.maximum(passes.seconds, asked).sum()) + prefill

    def update_s(self, tokens: int) -> float:
        """Seconds of forward, backward and optimizer step: 6 FLOPs a parameter and token, beside which the shards are
        gathered twice and the gradient is scattered, for each micro-batch of 16,384 tokens."""
        rounds = max(1, -(-tokens // (16_384 * self.learners)))
        compute = 6 * self.model.parameters * tokens / (self.hardware.flops * self.hardware.training * self.learners)
        return max(compute, rounds * 3 * self.model.bytes / (8 * self.hardware.network))

    def transfer_s(self) -> float:
        """Seconds until all engines have new weights: a pipelined broadcast over the links of one node."""
        return self.model.bytes / (8 * self.hardware.network) + 0.2

    def serial_s(self, tokens: int) -> float:
        """Seconds of the controller between the last turn and the next step: reading turns, packing, storing."""
        costs = self.controller
        return tokens * (costs.turn + costs.pack + costs.store) / costs.processes


def _shares(lengths: np.ndarray, services: int) -> list[np.ndarray]:
    """Lengths of each service's rollouts: a whole group to the one with the fewest."""
    counts, shares = np.zeros(services), [[] for _ in range(services)]
    for group in lengths:
        place = int(counts.argmin())
        counts[place] += group.size
        shares[place].append(group)
    return [np.concatenate(share) if share else np.zeros(0, dtype=np.int64) for share in shares]


def _occupancy(share: np.ndarray, slots: int, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """[passes] open rows of a service, and tokens whose keys and values they read, with continuous batching."""
    free, starts = [0] * min(slots, max(1, share.size)), np.zeros(share.size, dtype=np.int64)
    for k, length in enumerate(share.tolist()):
        starts[k] = heapq.heappop(free)
        heapq.heappush(free, starts[k] + length)
    ends = starts + share
    size = int(ends.max(initial=0)) + 1
    began, ended = (np.cumsum(np.bincount(times, minlength=size)) for times in (starts, ends))
    begun, done = (np.cumsum(np.bincount(times, starts, minlength=size)) for times in (starts, ends))
    rows = began - ended
    cached = rows * (prompt + np.arange(size)) - (begun - done)
    return rows[:-1].astype(np.float64), cached[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Means over the steps but the first few."""

    step: float
    sampling: float
    update: float
    transfer: float
    serial: float


def simulate(cluster: Cluster, work: Work, lag: int, steps: int, seed: int, together: bool = False) -> Result:
    """A run of so many steps.

    Batch b is sampled when batch b - 1 is, and when version b - lag has been transferred; its update begins when it has
    been sampled, and the controller is done with it and with the update before.

    Args:
        together: all GPUs sample, then all update.
    """
    sampled, updated, rows = [0.0], [0.0], []
    for b in range(1, steps + 1):
        tokens, passes = decoded(cluster.engines, cluster.hardware, cluster.model, work, seed, b)
        sampling, update = cluster.sample_s(passes, work), cluster.update_s(tokens)
        transfer, serial = cluster.transfer_s(), cluster.serial_s(tokens)
        version = updated[max(0, b - 1 - lag)]
        sampled.append(max(sampled[-1], version) + transfer + sampling)
        updated.append(max(sampled[-1], updated[-1]) + serial + update + (transfer if together else 0.0))
        rows.append((sampling, update, transfer, serial))
    skip = steps // 4
    means = np.array(rows)[skip:].mean(axis=0)
    return Result(step=(updated[-1] - updated[skip]) / (steps - skip), sampling=means[0], update=means[1],
                  transfer=means[2], serial=means[3])  # fmt: skip


def best(cluster: Cluster, work: Work, lag: int, steps: int, seed: int) -> tuple[Cluster, Result]:
    """The split of the GPUs, in eighths, with the shortest step."""
    gpus = cluster.engines
    splits = [replace(cluster, engines=gpus * k // 8, learners=gpus - gpus * k // 8) for k in range(1, 8)]
    results = [(split, simulate(split, work, lag, steps, seed)) for split in splits]
    return min(results, key=lambda pair: pair[1].step)


CASES = (
    (8, Work(prompts=64, group=8, mean=1000, most=4096)),
    (64, Work(prompts=256, group=16, mean=2000, most=8192)),
    (1024, Work(prompts=1024, group=16, mean=4000, most=16384)),
)
"""GPUs, and the step that they take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    costs = measured()
    print(f"assumed: {Hardware()}; {Model()}\n")
    print(f"measured, controller, one core: a message {1e6 * costs.message:.0f} µs; a token {1e6 * costs.turn:.2f} µs "
          f"to read and check, {1e6 * costs.pack:.2f} to pack, {1e6 * costs.store:.2f} to store\n")  # fmt: skip
    ways = {
        "one controller": costs,
        "split": replace(costs, passes=32, processes=16),
        "a controller that costs nothing": Controller(message=0.0, turn=0.0, pack=0.0, store=0.0),
    }
    print("| GPUs | controller | lag | engines + learner | s a step | sampling | update | weights | controller | × |")
    print("| ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for gpus, work in CASES:
        for name, controller in ways.items():
            whole = Cluster(engines=gpus, learners=gpus, hardware=Hardware(), model=Model(), controller=controller)
            turn = simulate(whole, work, 0, options.steps, options.seed, together=True)
            _print(gpus, name, "in turn on all GPUs", whole, turn, turn.step)
            for lag in (0, 1, 2):
                cluster, result = best(whole, work, lag, options.steps, options.seed)
                _print(gpus, name, str(lag), cluster, result, turn.step)


def _print(gpus: int, name: str, lag: str, cluster: Cluster, result: Result, base: float) -> None:
    parts = (result.step, result.sampling, result.update, result.transfer, result.serial)
    cells = " | ".join(f"{part:.1f}" for part in parts)
    split = f"{cluster.engines} + {cluster.learners}" if cluster.engines + cluster.learners == gpus else f"{gpus}"
    print(f"| {gpus} | {name} | {lag} | {split} | {cells} | {base / result.step:.2f} |", flush=True)


if __name__ == "__main__":
    main()
