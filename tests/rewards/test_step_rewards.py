"""Step rewards through the worker pool, the collector, the record and the screen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from coterie import console
from coterie.algo.advantages import by_prompt, credit
from coterie.config.objective import AdvantageConfig
from coterie.config.rewards import RewardConfig, RewardsConfig, StepRewardConfig
from coterie.data.chat import Chat
from coterie.engines.base import Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.registry import SingleTurn
from coterie.errors import ConfigError, RewardError
from coterie.rewards.pool import Scorer
from coterie.rollout.collector import Collector
from coterie.runs.rollouts import RolloutRecord, read_step, write_step
from coterie.types import Message, Outcome, Prompt, StepReward
from tiny import tiny_tokenizer

CHAT = Chat(tiny_tokenizer())


def prompt(name: str = "p", answer: str | None = "5") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content="2 + 3?"),), answer=answer, task="sums")


def config(*steps: str | StepRewardConfig, **options) -> RewardsConfig:
    named = [step if isinstance(step, StepRewardConfig) else StepRewardConfig(name=step) for step in steps]
    return RewardsConfig(functions=[RewardConfig(name="number")], steps=named, **options)


def score(completions: list[str], *steps: str | StepRewardConfig, lengths=None, **options):
    with Scorer(config(*steps, **options)) as scorer:
        return scorer.score([prompt(f"p/{k}") for k in range(len(completions))], completions, lengths=lengths)


def test_steps_stand_beside_the_parts_and_leave_the_reward_alone() -> None:
    text = "<think>2 + 3 = 5</think><answer>5</answer>"
    (row_score,) = score([text], "arithmetic", StepRewardConfig(name="stages", label="layout", weight=0.0))
    assert (row_score.reward, row_score.parts, row_score.error) == (1.0, {"number": 1.0}, None)
    assert row_score.steps == {"arithmetic": ((len(text), 1.0),), "layout": ((24, 1.0), (42, 1.0))}


def test_what_does_not_apply_is_left_out_and_true_is_one() -> None:
    none, true = score(["none 5", "true 5"], "unruly_steps:act")
    assert (none.steps, none.error) == ({}, None)
    assert true.steps == {"act": ((2, 1.0), (6, -0.5))}


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("bare", "returned 3 .* for a completion; expected its list of steps, or None"),
        ("pair", r"returned 3 .* as a step; expected \(end, value\)"),
        ("beyond", r"ends at character 9; expected 1 … 8"),
        ("zero", r"ends at character 0; expected 1 … 6"),
        ("twice", r"ends at character 2; expected 3 … 7"),
        ("fraction", "ends at 1.5 .*expected an offset in characters"),
        ("nan", "returned nan"),
        ("nothing", "returned None for a step"),
        ("raise", "raised ValueError: no idea"),
        ("exit", "exit code 3"),
        ("hang", "did not return within"),
    ],
)
def test_a_bad_step_function_costs_its_own_row_and_no_other(word: str, cause: str) -> None:
    bad, good = score([f"{word} 5", "fine 5"], "unruly_steps:act", timeout_s=0.5)
    assert bad.reward is None
    assert bad.steps == {}
    assert bad.error is not None
    assert re.search(rf"reward 'unruly_steps:act', row 0 \(prompt p/0\): .*{cause}", bad.error)
    assert (good.reward, good.steps) == (1.0, {"act": ((6, 1.0),)})


def test_one_value_for_many_rows_is_refused() -> None:
    scores = score(["a 5", "b 5"], "unruly_steps:one_for_all")
    assert all("returned 1 values for 2 completions" in (row_score.error or "") for row_score in scores)


def test_token_counts_are_a_column_of_parts_and_steps() -> None:
    (row_score,) = score(["a 5"], "unruly_steps:lengths", lengths=[7])
    assert row_score.steps == {"lengths": ((1, 7.0),)}
    (without_length,) = score(["a 5"], "unruly_steps:lengths")
    assert without_length.steps == {}
    part = RewardConfig(name="overlong", params={"maximum": 10, "cache": 4}, weight=2.0)
    with Scorer(RewardsConfig(functions=[RewardConfig(name="number"), part])) as scorer:
        scores = scorer.score([prompt("p"), prompt("q")], ["5", "5"], lengths=[6, 9])
        assert [row_score.reward for row_score in scores] == [1.0, 1.0 - 2 * 0.75]
        assert scorer.score([prompt("p")], ["5"])[0].parts == {"number": 1.0, "overlong": None}


def test_names_and_params_are_checked_before_the_run() -> None:
    with pytest.raises(
        ConfigError, match=r"rewards\.steps names 'arithmetics'; expected one of arithmetic, stages.*did you mean"
    ):
        Scorer(config("arithmetics"))
    wrong = Scorer(config(StepRewardConfig(name="stages", params={"tag": ["a"]})))
    with wrong, pytest.raises(RewardError, match=r"takes no param 'tag'.*did you mean 'tags'"):
        wrong.start([prompt()])
    with pytest.raises(ValueError, match=r"rewards\.steps has several parts called 'stages'"):
        config("stages", "stages")
    assert config("stages", StepRewardConfig(name="m:f", weight=0.5)).step_weights() == {"stages": 1.0, "f": 0.5}


def collected(tmp_texts: list[str], *steps: str | StepRewardConfig):
    """Each sample says one of the texts, then its end token."""

    def script(request):
        return [*CHAT.tokenizer(tmp_texts[request.key.sample], add_special_tokens=False)["input_ids"], *CHAT.stop_ids]

    with Scorer(config(*steps)) as scorer:
        collector = Collector(
            engine=ScriptedEngine(script),
            environment=SingleTurn(),
            chat=CHAT,
            scorer=scorer,
            seed=0,
            max_error_share=1.0,
        )
        sampling = Sampling(temperature=1.0, max_tokens=200)
        return collector.collect([prompt()], samples=len(tmp_texts), sampling=sampling).rollouts


def test_from_text_to_tokens_to_advantages_to_the_record_and_the_screen(tmp_path) -> None:
    texts = ["é: 2 + 3 = 5\n你: 5 × 1 = 6\nso 5", "2 + 3 = 5"]
    long, short = collected(texts, "arithmetic")
    assert [step.value for step in long.step_rewards] == [1.0, 0.0]
    for step, end in zip(long.step_rewards, [len("é: 2 + 3 = 5"), len("é: 2 + 3 = 5\n你: 5 × 1 = 6")], strict=True):
        assert CHAT.decode(long.turns[0].tokens[: step.end + 1]) == texts[0][:end]
    assert short.step_rewards == (StepReward(end=len(short.turns[0].tokens) - 2, value=1.0, label="arithmetic"),)

    by_id = {rollout.id: rollout for rollout in (long, short)}
    rule = AdvantageConfig(step_weight=0.1)
    credits = credit(
        by_prompt([long, short]), by_id, rule, clip_low=0.2, clip_high=0.2, step_weights={"arithmetic": 1.0}
    )
    assert isinstance(credits[0].advantage, tuple)
    first, second = (step.end for step in long.step_rewards)
    changes = [
        k for k in range(len(long.turns[0].tokens) - 1) if credits[0].advantage[k] != credits[0].advantage[k + 1]
    ]
    assert changes == [first, second]
    assert credits[0].advantage[-1] == 0  # the outcome is the same for both, and after its last step nothing is

    records = [
        RolloutRecord(prompt=prompt(), rollout=rollout, credit=earned, logprobs=None, seconds=None)
        for rollout, earned in zip((long, short), credits, strict=True)
    ]
    write_step(tmp_path, 1, records)
    for stored, record in zip(read_step(tmp_path, 1), records, strict=True):
        assert stored.rollout.step_rewards == record.rollout.step_rewards
        assert stored.credit == record.credit
    assert f"steps      arithmetic 1.00 @ {first}, 0.00 @ {second}" in console.sample_text(prompt(), long)
    assert "steps" not in console.sample_text(prompt(), replace(long, step_rewards=()))


def test_an_error_leaves_no_steps() -> None:
    (broken,) = collected(["raise 5"], "arithmetic", "unruly_steps:act")
    assert broken.outcome is Outcome.REWARD_ERROR
    assert broken.step_rewards == ()


def test_steps_of_two_functions_may_end_at_the_same_token() -> None:
    (rollout,) = collected(["<think>2 + 3 = 5</think><answer>5</answer>"], "arithmetic", "stages")
    ends = {step.label: step.end for step in rollout.step_rewards}
    assert ends["arithmetic"] == ends["stages"]
    assert [step.label for step in rollout.step_rewards] == ["stages", "arithmetic", "stages"]
