"""One case: every side warmed up once, then rounds in which the sides take turns (A B B A …).

The workers live through all rounds and wait on their input between turns, so exactly one computes at any time. Each is
fresh when its case begins: the warm-up is a whole step, after which its peak memory is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import gradients, rewards
from benchmarks.peers.cases import Case
from benchmarks.peers.worker import PeerError, Worker

Answer = dict[str, Any]
Start = Callable[[str, str], Worker]
"""(side, purpose) → a running worker that has not been set up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all cases share."""

    model: str
    """Folder of the model."""
    threads: int
    dtype: str
    """bfloat16 or float32; gradients are compared in float32 whatever this is."""
    sides: tuple[str, ...]
    """`coterie`, and the peers that can be had."""
    rounds: int
    tuned: bool
    """TRL without gradient checkpointing and with its weights in `dtype`."""
    draft: bool
    """coterie generates with drafts."""
    gradient_prompts: int
    """Prompts of the gradient comparison; fewer are faster."""
    start: Start
    say: Callable[[str], None]


def measure(bench: Bench, case: Case, prompts: Sequence[tuple[int, ...]]) -> Answer:
    """All numbers of one case, as JSON-able data; `errors` tells which worker failed, if any did."""
    result: Answer = {
        "case": asdict(case),
        "title": case.title,
        "prompt_lengths": [len(prompt) for prompt in prompts],
        "sides": {},
        "rounds": [],
        "errors": [],
    }
    turns = _Turns(bench, case)
    try:
        with ExitStack() as stack:
            for name in bench.sides:
                _join(turns, name, prompts, stack, result)
            result["peak"] = turns.warm_up()
            for number in range(bench.rounds):
                bench.say(f"{case.name}: round {number + 1} of {bench.rounds}")
                result["rounds"].append(turns.round(number))
        if "trl" in turns.workers:
            bench.say(f"{case.name}: comparing gradients in float32")
            result["gradient"] = compare_gradients(bench, case, prompts, turns.rollouts)
    except PeerError as error:
        bench.say(f"{case.name}: {error}")
        result["errors"].append(str(error))
    return result


def _join(turns: _Turns, name: str, prompts: Sequence[tuple[int, ...]], stack: ExitStack, result: Answer) -> None:
    """Start one side. vLLM is tried compiled, then eager (no C++ compiler), and then left out of this case."""
    bench, case = turns.bench, turns.case
    for eager in (False, True) if name == "vllm" else (False,):
        bench.say(f"{case.name}: starting {name}{' without compilation' if eager else ''}")
        worker = stack.enter_context(bench.start(name, case.name))
        try:
            facts = worker.ask("setup", **_setup(bench, case, prompts, eager=eager))
            if name == "vllm":
                worker.ask("generate")  # a peer that only generates must not be able to spoil the case later
        except PeerError as error:
            if name != "vllm":
                raise
            worker.close()
            bench.say(str(error))
            if eager:
                result["errors"].append(str(error))
        else:
            turns.workers[name], result["sides"][name] = worker, facts
            return


def _setup(bench: Bench, case: Case, prompts: Sequence[tuple[int, ...]], **changed: Any) -> Answer:
    return {
        "case": asdict(case),
        "model": bench.model,
        "prompts": [list(prompt) for prompt in prompts],
        "threads": bench.threads,
        "dtype": bench.dtype,
        "tuned": bench.tuned,
        "draft": bench.draft,
        "unclipped": False,
    } | changed


class _Turns:
    """Who does what when, within one case."""

    def __init__(self, bench: Bench, case: Case) -> None:
        self.bench, self.case = bench, case
        self.workers: dict[str, Worker] = {}
        self.rollouts: list[list[int]] = []
        self.values: list[list[float]] = []

    def warm_up(self) -> dict[str, int]:
        """One whole step of each fresh process; peak bytes by side."""
        peaks = {}
        for name in self.workers:
            self.bench.say(f"{self.case.name}: {name} warms up")
            answer = self.own_step(name, 0) if name != "vllm" else self.workers[name].ask("generate")
            peaks[name] = answer["peak"]
        return peaks

    def round(self, number: int) -> Answer:
        """Even rounds: peer, ours. Odd rounds: ours, peer. Both update on the same rollouts next to each other."""
        answers: Answer = {"round": number}
        if number % 2 == 0:
            if "trl" in self.workers:
                answers["trl"] = _without_tokens(self.own_step("trl", number + 1))
                answers["trl"] |= {"update_tokens": self._tokens()}
            answers["coterie_update"] = self.given_update("coterie")
            answers["coterie"] = _without_tokens(self.own_step("coterie", number + 1))
            if "vllm" in self.workers:
                answers["vllm"] = _without_tokens(self.workers["vllm"].ask("generate"))
            return answers
        if "vllm" in self.workers:
            answers["vllm"] = _without_tokens(self.workers["vllm"].ask("generate"))
        answers["coterie"] = _without_tokens(self.own_step("coterie", number + 1))
        answers["coterie_update"] = self.given_update("coterie")
        if "trl" in self.workers:
            again = self.given_update("trl")
            answers["trl"] = _without_tokens(self.own_step("trl", number + 1))
            answers["trl"] |= {"update_s": again["update_s"], "update_tokens": again["update_tokens"]}
        return answers

    def own_step(self, name: str, number: int) -> Answer:
        """A whole step of one side; TRL's rollouts (ours without TRL) become those that both sides update on."""
        values = rewards.draw(self.case.prompts, self.case.group_size, seed=number)
        answer = self.workers[name].ask("step", rewards=values.tolist())
        if name == "trl" or "trl" not in self.workers:
            self.rollouts, self.values = answer["rollouts"], values.tolist()
        if name == "trl":
            _check_advantages(answer["advantages"], values)
        answer["zero_variance"] = rewards.zero_variance_share(values)
        return answer

    def given_update(self, name: str) -> Answer:
        answer = self.workers[name].ask("update", rollouts=self.rollouts, rewards=self.values)
        kept = {key: answer[key] for key in ("update_s", "trained_tokens") if key in answer}
        return kept | {"update_tokens": self._tokens()}

    def _tokens(self) -> int:
        return sum(map(len, self.rollouts))


def _without_tokens(answer: Answer) -> Answer:
    """An answer with lengths in place of tokens."""
    lengths = [len(tokens) for tokens in answer["rollouts"]]
    kept = {key: value for key, value in answer.items() if key not in ("rollouts", "advantages")}
    return kept | {"lengths": lengths, "tokens": sum(lengths)}


def _check_advantages(theirs: Sequence[float], values: Any) -> None:
    """Both sides must have trained on the same credit."""
    ours = rewards.advantages(values).reshape(-1)
    worst = max(abs(a - b) for a, b in zip(ours.tolist(), theirs, strict=True))
    if worst > 1e-5:
        raise PeerError(f"TRL's advantages differ from ours by up to {worst:.3g}: the two did not train the same thing")


def compare_gradients(
    bench: Bench, case: Case, prompts: Sequence[tuple[int, ...]], rollouts: Sequence[Sequence[int]]
) -> Answer:
    """Both sides' gradients of the same loss at the same weights on the same rollouts, in float32."""
    count = min(case.prompts, bench.gradient_prompts)
    part = replace(case, prompts=count)
    given = {
        "rollouts": [list(tokens) for tokens in rollouts[: part.rollouts]],
        "rewards": rewards.draw(count, case.group_size, seed=0).tolist(),
    }
    setup = _setup(bench, part, prompts[:count], dtype="float32", unclipped=True)
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as name:
        folder = Path(name)
        files = {side: str(folder / f"{side}.safetensors") for side in ("coterie", "trl")}
        weights = str(folder / "weights.safetensors")
        for side in files:
            with bench.start(side, f"{case.name}-gradient") as worker:
                worker.ask("setup", **setup)
                worker.ask("weights", path=weights, seed=0)
                worker.ask("gradient", path=files[side], **given)
        distances = gradients.compare(Path(files["coterie"]), Path(files["trl"]))
    return distances | {"rollouts": part.rollouts, "dtype": "float32"}
