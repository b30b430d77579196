"""A teacher behind HTTP: scores and gradient are those of the same weights here; and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie import launch
from coterie.algo.advantages import by_prompt
from coterie.algo.distill import DistillEstimator
from coterie.algo.estimators import Advantages, GroupEstimator, Terms
from coterie.algo.objective import Objective
from coterie.batches.pack import Packing, pack
from coterie.config.objective import AdvantageConfig, DistillConfig, ObjectiveConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.data.chat import load_chat
from coterie.engines.completion_client import CompletionClient
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.http_teacher import HttpTeacher
from coterie.errors import ConfigError, DataError, EngineError, ModelError
from coterie.policy.learner import Learner
from coterie.policy.model import load
from coterie.policy.teacher import Teacher
from coterie.types import Context, Outcome, Rollout, StopReason, Turn
from runs_for_tests import Watch, importable, make_config
from served_models import Client, client, embedded, tiny_chat
from tiny import tiny_tokenizer
from tiny_models import tiny_model, tiny_policy

TERMS = Terms(clip_low=0.2, clip_high=0.2)


@pytest.fixture(scope="module")
def served() -> Iterator[Client]:
    chat = tiny_chat()
    with client(embedded(chat), chat) as serving:
        yield serving


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def teacher_at(port: int, **settings: Any) -> HttpTeacher:
    return HttpTeacher(CompletionClient(base_url=address(port), retry_s=0.2, setting="distill.teacher"), **settings)


def turn(prompt: Sequence[int], tokens: Sequence[int]) -> Turn:
    return Turn(
        prompt_tokens=tuple(prompt), tokens=tuple(tokens), sampler_logprobs=(-1.0,) * len(tokens), temperature=1.0,
        version=0, stop_reason=StopReason.STOP,
    )  # fmt: skip


def rollout(sample: int, *turns: Turn) -> Rollout:
    context = Context(
        prompt_id="p", task="t", difficulty=None, version=0, prompt_length=4, completion_length=1,
        stop_reason=StopReason.STOP,
    )  # fmt: skip
    return Rollout(
        id=f"p#{sample}@0", sample=sample, turns=turns, completion="", reward=0.0, reward_parts={}, outcome=Outcome.OK,
        context=context,
    )  # fmt: skip


def talks() -> list[Rollout]:
    """One turn, two, none, and more than one request takes."""
    first = turn((5, 9, 40), (7, 61))
    later = turn((5, 9, 40, 7, 61, 8), (11, 12, 13))
    plain = [rollout(k, turn((5, 6), (7 + k,))) for k in range(4, 24)]
    return [rollout(0, first), rollout(1, first, later), rollout(3, turn((5,), ())), *plain]


def test_scores_and_gradient_are_those_of_the_teacher_here(served: Client) -> None:
    """float64 behind the socket, and here."""
    size = len(served.chat.tokenizer)
    sizes: dict[str, Any] = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 2, "dtype": torch.float64}
    here = Teacher(tiny_policy("llama", **sizes), temperature=1.0, optim=OptimConfig())
    there = teacher_at(served.port)
    there.require_tokenizer(served.chat.tokenizer)
    there.require_room(90)
    scores, expected = there(talks()), here(talks())
    assert scores.keys() == expected.keys()
    assert len(scores) == len(talks()) - 1
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-9)
    gradients = [gradient(teach, **sizes) for teach in (there, here)]
    for name, value in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], value, rtol=1e-6, atol=1e-8)
    assert any(value.abs().max() > 0 for value in gradients[1].values())


def gradient(teach: Any, **sizes: Any) -> dict[str, torch.Tensor]:
    """The student's gradient over all talks."""
    members = talks()
    rewarded = Unasked(config=AdvantageConfig(), terms=TERMS, part_weights={}, step_weights={})
    estimator = DistillEstimator(config=DistillConfig(teacher="t"), terms=TERMS, teach=teach, rewarded=rewarded)
    by_id = {member.id: member for member in members}
    credits = estimator(by_prompt(members), by_id, lambda rollouts: {}).credits
    student = Learner(
        tiny_policy("llama", seed=3, **sizes), optim=OptimConfig(), temperature=1.0, total_steps=1,
        objective=Objective(settings=ObjectiveConfig(), correction=RolloutCorrectionConfig(kind="none")),
    )  # fmt: skip
    packing = Packing(loss_agg_mode="token-mean", max_tokens_per_microbatch=4096, skip_zero=True)
    (batches,) = pack(by_id, credits, packing, 0)
    return dict(student.gradient(batches))


class Unasked(GroupEstimator):
    """An estimator of rewards that is not to be asked."""

    def __call__(self, groups: Any, rollouts: Any, score: Any) -> Advantages:
        raise AssertionError("the rewards are not asked")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serving(folder: Path) -> Any:
    """A server of a model folder, in float32 as runs here are."""
    config = make_config(folder.parent, model={"name": str(folder)})
    chat = load_chat(str(folder))
    policy = load(config.model, str(folder), dtype=torch.float32, device=torch.device("cpu"))
    return client(EmbeddedEngine(policy, chat, max_num_seqs=8, capacity=512), chat, max_model_len=512)


def test_a_run_with_it_is_the_run_with_the_folder(root: Path) -> None:
    """float32, through two updates."""
    tiny_model("llama", dtype=torch.float32, seed=7, vocab_size=len(tiny_tokenizer())).save_pretrained(root / "teacher")
    tiny_tokenizer().save_pretrained(root / "teacher")
    here, there = Watch(), Watch()
    quick: dict[str, Any] = {"steps": 2, "data": {"heldout": []}, "model": {"dtype": "float32"}}
    launch.train(make_config(root, name="here", distill={"teacher": str(root / "teacher")}, **quick), here)
    with serving(root / "teacher") as server:
        config = make_config(root, name="there", distill={"teacher": address(server.port)}, **quick)
        launch.train(config, there)
    assert [step["distill/reverse_kl"] for step in there.steps] == pytest.approx(
        [step["distill/reverse_kl"] for step in here.steps], abs=1e-5
    )


def test_another_vocabulary(root: Path, served: Client) -> None:
    teacher, tokenizer = teacher_at(served.port), tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(EngineError, match=r"does not spell the tokens 0 to \d+: .* is none of the model's.* student's"):
        teacher.require_tokenizer(tokenizer)
    with pytest.raises(ModelError, match=r"another tokenizer: it spells the tokens 0 to \d+ with .* 'elsewhere', so"):
        teacher.require_tokenizer(Elsewhere())
    changed = {"distill": {"teacher": address(served.port), "teacher_model": "absent"}}
    with pytest.raises(EngineError, match="has no model 'absent'; expected of tiny"):
        launch.train(make_config(root, **changed))
    assert not (root / "runs").exists()


class Elsewhere:
    """A tokenizer that spells all tokens in one way."""

    def get_vocab(self) -> dict[str, int]:
        return tiny_tokenizer().get_vocab()

    def decode(self, ids: Sequence[int]) -> str:
        return "elsewhere"


@contextmanager
def answering(answer: Any) -> Generator[int]:
    """A server with one model that answers every POST alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send({"data": [{"id": "m", "max_model_len": 8}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send(answer)

        def send(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, "answers 1 prompts with 0 choices"),
        ({"choices": [{"index": 0, "text": "a"}]}, "gives no log-probs of the 3 tokens of a prompt; expected vLLM's"),
        (
            {"choices": [{"index": 0, "prompt_logprobs": [None, {"8": {"logprob": -1}}, {"9": {}}]}]},
            "gives None as the log-prob of token 7; expected a finite number",
        ),
        ([1], r"has not answered for 0\.2 s \(last: the answer is \[1\], expected a JSON object\)"),
    ],
)
def test_answers_that_are_none(answer: Any, message: str) -> None:
    with answering(answer) as port, pytest.raises(EngineError, match=message):
        teacher_at(port)([rollout(0, turn((5, 6), (7,)))])


def test_what_else_is_refused(served: Client, root: Path) -> None:
    with answering({}) as port:
        gone = teacher_at(port)
    with pytest.raises(EngineError, match=r"has not answered for 0\.2 s"):
        gone([rollout(0, turn((5, 6), (7,)))])
    with pytest.raises(EngineError, match="does not say which models it has"):
        teacher_at(port)
    with pytest.raises(DataError, match=r"may have 8 tokens, and the teacher at .* scores at most 7; start it with"):
        gone.require_room(8)
    with pytest.raises(EngineError, match=r"refuses \(status 400\): token 5000 is none of the model's"):
        teacher_at(served.port)([rollout(0, turn((5, 6), (5000,)))])
    with pytest.raises(ConfigError, match=r"distill\.teacher = 'http://127\.0\.0\.1/v1'; expected an address such"):
        CompletionClient(base_url="http://me:secret@127.0.0.1/v1", setting="distill.teacher")
    with pytest.raises(
        ValueError, match=r"is a server, whose log-probs are those of temperature 1, and sampling\.temp"
    ):
        make_config(root, distill={"teacher": address(1)}, sampling={"temperature": 0.7, "max_tokens": 8})
