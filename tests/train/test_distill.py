"""On-policy distillation: the signal, its gradient, runs, what is refused, and the bits after a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coterie
from coterie import launch
from coterie.algo.advantages import by_prompt
from coterie.algo.distill import DistillEstimator, sampled_logprobs, teacher_signal
from coterie.algo.estimators import Advantages, GroupEstimator, Terms
from coterie.algo.objective import Objective
from coterie.batches.pack import Packing, pack
from coterie.config.objective import AdvantageConfig, DistillConfig, ObjectiveConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.errors import ConfigError, ModelError
from coterie.policy.learner import Learner
from coterie.policy.teacher import Teacher
from coterie.types import Context, Credit, Outcome, Rollout, StopReason, Turn
from runs_for_tests import Watch, fingerprint, importable, killed, make_config
from tiny import tiny_tokenizer
from tiny_models import tiny_model, tiny_policy

PROMPT = (3, 4, 5, 6)
TERMS = Terms(clip_low=0.2, clip_high=0.2)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def turn(prompt: tuple[int, ...], tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Turn:
    return Turn(
        prompt_tokens=prompt, tokens=tokens, sampler_logprobs=logprobs, temperature=1.0, version=0,
        stop_reason=StopReason.STOP,
    )  # fmt: skip


def rollout(sample: int, *turns: Turn, reward: float = 0.0) -> Rollout:
    context = Context(
        prompt_id="p", task="t", difficulty=None, version=0, prompt_length=4, completion_length=1,
        stop_reason=StopReason.STOP,
    )  # fmt: skip
    return Rollout(
        id=f"p#{sample}@0", sample=sample, turns=turns, completion="", reward=reward, reward_parts={"r": reward},
        outcome=Outcome.OK, context=context,
    )  # fmt: skip


# The signal


def test_the_signal_by_hand() -> None:
    student, teacher = np.log([0.75, 0.25, 0.5]), np.log([0.5, 0.5, 0.5])
    signal = teacher_signal(teacher, student)
    assert signal == pytest.approx([-0.405465, 0.693147, 0.0], abs=1e-6)
    # Its mean under the student is -KL((3/4, 1/4) ‖ (1/2, 1/2)) = -(3/4 ln 3/2 + 1/4 ln 1/2).
    assert 0.75 * signal[0] + 0.25 * signal[1] == pytest.approx(-0.130812, abs=1e-6)
    assert teacher_signal(teacher, student, discount=0.5) == pytest.approx([-0.058892, 0.693147, 0.0], abs=1e-6)
    assert teacher_signal(teacher, student, clip=0.5) == pytest.approx([-0.405465, 0.5, 0.0], abs=1e-6)


def test_the_gradient_is_that_of_the_reverse_kl() -> None:
    """The learner's gradient over one rollout of each token, weighted by its probability, against the KL in float64."""
    student, model = tiny_policy(), tiny_model()
    teacher = tiny_model(seed=1)
    ids = torch.tensor([PROMPT])
    logprobs = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    with torch.no_grad():
        taught = teacher(input_ids=ids).logits[0, -1].log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - taught)).sum()
    kl.backward()
    count = len(logprobs)
    sampled = logprobs.detach().tolist()
    rollouts = [rollout(k, turn(PROMPT, (k,), (sampled[k],))) for k in range(count)]
    groups, by_id = by_prompt(rollouts), {x.id: x for x in rollouts}
    scorer = Teacher(tiny_policy(seed=1), temperature=1.0, optim=OptimConfig())
    estimator = DistillEstimator(config=DistillConfig(teacher="t"), terms=TERMS, teach=scorer, rewarded=made(Never))
    credits = [
        credit.scaled(count * float(np.exp(sampled[k])))
        for k, credit in enumerate(estimator(groups, by_id, score).credits)
    ]
    learner = Learner(
        student, optim=OptimConfig(), temperature=1.0, total_steps=1,
        objective=Objective(settings=ObjectiveConfig(), correction=RolloutCorrectionConfig(kind="none")),
    )  # fmt: skip
    packing = Packing(loss_agg_mode="token-mean", max_tokens_per_microbatch=4096, skip_zero=True)
    (batches,) = pack(by_id, credits, packing, 0)
    gradient = learner.gradient(batches)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradient[name].double(), parameter.grad, rtol=1e-6, atol=1e-7)


def test_the_teacher_scores_all_turns_at_the_sampler_s_temperature() -> None:
    first = turn(PROMPT, (7, 8), (-1.0, -2.0))
    second = turn((*PROMPT, 7, 8, 9, 10), (11,), (-3.0,))
    talk, empty = rollout(0, first, second), rollout(1, turn(PROMPT, (), ()))
    scores = Teacher(tiny_policy(seed=1), temperature=0.7, optim=OptimConfig())([talk, empty])
    assert list(scores) == [talk.id]
    logits = tiny_model(seed=1)(input_ids=torch.tensor([[*PROMPT, 7, 8, 9, 10, 11]])).logits[0] / 0.7
    expected = [float(logits[place - 1].log_softmax(-1)[token].detach()) for place, token in ((4, 7), (5, 8), (8, 11))]
    assert scores[talk.id] == pytest.approx(expected, abs=1e-9)
    assert sampled_logprobs(talk).tolist() == [-1.0, -2.0, -3.0]


def score(rollouts: Any) -> Any:
    raise AssertionError("no scoring pass of the student is needed")


def made(kind: type[GroupEstimator]) -> GroupEstimator:
    return kind(config=AdvantageConfig(), terms=TERMS, part_weights={}, step_weights={})


class Never(GroupEstimator):
    """An estimator of rewards that is not to be asked."""

    def __call__(self, groups: Any, rollouts: Any, score: Any) -> Advantages:
        raise AssertionError("the rewards are not asked")


def test_mixed_with_the_rewards_advantages() -> None:
    talks = [rollout(k, turn(PROMPT, (7, 8), (-1.0, -2.0))) for k in range(2)]

    class Rewarded(GroupEstimator):
        def __call__(self, groups: Any, rollouts: Any, score: Any) -> Advantages:
            credits = (
                Credit(
                    rollout_id=talks[0].id, advantage=2.0, clip_low=0.2, clip_high=0.2, contributions={"prompt": 2.0}
                ),
                Credit(rollout_id=talks[1].id, advantage=(1.0, 3.0), clip_low=0.2, clip_high=0.2),
            )
            return Advantages(credits=credits, metrics={"other": 1.0})

    estimator = DistillEstimator(
        config=DistillConfig(teacher="t", weight=0.5, reward_weight=0.1), terms=TERMS, rewarded=made(Rewarded),
        teach=lambda rollouts: {talks[0].id: np.array([-1.0, -4.0]), talks[1].id: np.array([-3.0, -2.0])},
    )  # fmt: skip
    advantages = estimator(by_prompt(talks), {x.id: x for x in talks}, score)
    assert [credit.advantage for credit in advantages.credits] == [
        pytest.approx((0.2, -0.8)), pytest.approx((-0.9, 0.3))
    ]  # fmt: skip
    assert advantages.credits[0].contributions == {"prompt": pytest.approx(0.2), "teacher": pytest.approx(-0.5)}
    assert advantages.metrics == {"other": 1.0, "distill/reverse_kl": pytest.approx(1.0)}


# Runs


def settings(root: Path, **changed: Any) -> dict[str, Any]:
    """A teacher whose weights are another draw than the student's."""
    teacher = root / "teacher"
    if not teacher.is_dir():
        torch.manual_seed(7)
        tokenizer = tiny_tokenizer()
        sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 0}
        tiny_model("llama", dtype=torch.float32, seed=7, **sizes).save_pretrained(teacher)
        tokenizer.save_pretrained(teacher)
    return {"distill": {"teacher": str(teacher)}, **changed}


def test_a_student_approaches_its_teacher(root: Path) -> None:
    watch = Watch()
    changed = settings(root, steps=25, collect={"prompts_per_step": 6, "group_size": 4}, data={"heldout": []})
    run = launch.train(make_config(root, **changed), watch)
    gaps = [step["distill/reverse_kl"] for step in watch.steps]
    assert np.mean(gaps[-3:]) < 0.6 * gaps[0]
    stored = coterie.load_run(run).rollouts(1)
    assert json.loads(stored["contributions"][0].as_py()).keys() == {"teacher"}
    assert "distillation" in (run / "README.md").read_text(encoding="utf-8")


def test_single_rollouts_and_the_python_call(root: Path) -> None:
    config = make_config(root)
    run = coterie.distill(
        config.model.name, str(root / "train.jsonl"), "exact", teacher=settings(root)["distill"]["teacher"],
        heldout=str(root / "heldout.jsonl"), name="py", quiet=True, steps=2, threads=1,
        collect={"prompts_per_step": 3, "group_size": 1}, sampling={"max_tokens": 8}, eval={"samples": 1},
    )  # fmt: skip
    assert len(run.metrics["distill/reverse_kl"]) == 2
    with pytest.raises(ConfigError, match=r"distill\.teacher is missing: name the model that the student learns from"):
        coterie.distill(config.model.name, str(root / "train.jsonl"), "exact", quiet=True)


@pytest.mark.parametrize(("point", "nth"), [("optimizer", 3), pytest.param("metrics", 3, marks=pytest.mark.slow)])
def test_killed_it_resumes_to_the_same_bits(
    root: Path, tmp_path_factory: pytest.TempPathFactory, point: str, nth: int
) -> None:
    mixed = {"teacher": str(root / "teacher"), "reward_weight": 0.5, "discount": 0.3}
    changed = settings(root, steps=4, data={"heldout": []}, distill=mixed)
    assert killed(root, point, nth, changed=json.dumps(changed)) == -signal.SIGKILL
    resumed = fingerprint(launch.resume("one", runs=root / "runs"))
    assert fingerprint(launch.train(make_config(root, name="whole", **changed))) == resumed


# What is refused


def test_a_teacher_with_another_vocabulary(root: Path) -> None:
    changed = settings(root)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(root / "teacher")
    with pytest.raises(
        ModelError, match=r"distill\.teacher = .* has another tokenizer than .*token \d+ is 'zebra' there"
    ):
        launch.train(make_config(root, **changed))
    assert not (root / "runs/one").exists()


def test_a_student_s_token_that_the_teacher_does_not_have() -> None:
    teacher = Teacher(tiny_policy(vocab_size=90), temperature=1.0, optim=OptimConfig())
    with pytest.raises(ModelError, match="sampled token 95, and the teacher tiny-llama has logits of 90 tokens"):
        teacher([rollout(0, turn(PROMPT, (95,), (-1.0,)))])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"replay": {"groups": 1}}, "replay.groups trains on advantages as they were credited"),
        ({"critic": {}}, "takes the teacher's signal alone, so critic, grouping and advantage mean nothing"),
        ({"advantage": {"baseline": "leave_one_out"}}, "takes the teacher's signal alone"),
        ({"collect": {"dynamic_sampling": True}}, "leaves out groups of equal rewards, which a teacher can teach"),
        ({"sft": {}}, "a run is one of sft, rejection and distill"),
    ],
)
def test_settings_that_do_not_fit(root: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(root, distill={"teacher": "x"}, **changed)


def test_an_absent_teacher_is_told_at_once(root: Path) -> None:
    with pytest.raises(coterie.CoterieError, match="absent"):
        launch.train(make_config(root, distill={"teacher": "./absent"}))
    assert not (root / "runs/one").exists()


# The reference of the KL


def test_another_model_as_the_reference(root: Path) -> None:
    changed = settings(root)
    named = {"steps": 2, "objective": {"kl_beta": 0.1}, "reference": {"model": changed["distill"]["teacher"]}}
    watch, plain = Watch(), Watch()
    quick: dict[str, Any] = {"eval": {"samples": 1, "k": 1}, "data": {"heldout": []}}
    launch.train(make_config(root, **named, **quick), watch)
    launch.train(make_config(root, name="two", steps=1, objective={"kl_beta": 0.1}, **quick), plain)
    assert plain.steps[0]["kl/ref"] < 1e-3  # the policy as it starts, in another pass
    assert watch.steps[0]["kl/ref"] > 0.01
    with pytest.raises(ValueError, match=r"reference\.model = 'x' needs objective\.kl_beta > 0"):
        make_config(root, reference={"model": "x"})


def test_the_order_of_settings_in_a_file_means_nothing(root: Path) -> None:
    """TOML has plain values before tables, so the stored settings name `tools` last."""
    params = {"tools": [{"name": "calculator"}], "describe": False}
    environment = {"name": "tools", "max_turns": 2, "max_tokens": 128, "params": params}
    run = launch.train(make_config(root, steps=1, environment=environment, data={"heldout": []}))
    assert launch.resume(run, steps=2) == run
