"""GRPO in one file, for readers: the whole method on a scripted engine, without a model, in under a second.

    python recipes/reader_loop.py

The "model" knows four ways to answer a sum and has one preference (a logit) for each way; learning means moving these
logits. Everything else is the real thing: the records, the groups, the advantages, the clipped loss of coterie. The
real loop in `coterie/train/grpo.py` has the same four phases in the same order; there, `answer` is a language model,
`logits` are its weights, and a rollout has as many actions as it has tokens.

What is left out here: tokens (an attempt is one action), the KL to a reference, minibatches, evaluation, checkpoints.
"""

from __future__ import annotations

import torch

from coterie.algo import advantages
from coterie.algo.advantages import by_prompt
from coterie.algo.losses import LossInputs, policy_loss
from coterie.algo.objective import Objective
from coterie.algo.sampling import sample
from coterie.config.objective import AdvantageConfig, RolloutCorrectionConfig
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.rng import generator, uniforms
from coterie.types import Context, Credit, Message, Outcome, Prompt, Rollout, SampleKey, Turn

STEPS, PROMPTS, GROUP_SIZE, SEED = 30, 4, 8, 0
RATE = 0.5


# ---------------------------------------------------------------------------------------------------------------------
# A task: prompts with a gold answer, and a reward that compares with it.


def make_prompts(count: int) -> list[Prompt]:
    """Sums of two digits: `3 + 4 =`, gold answer `7`."""
    draws = generator("reader", SEED).integers(0, 10, (count, 2)).tolist()
    return [
        Prompt(
            id=f"sum/{number}",
            messages=(Message(role="user", content=f"{first} + {second} ="),),
            answer=str(first + second),
            task="sum",
        )
        for number, (first, second) in enumerate(draws)
    ]


def reward(prompt: Prompt, completion: str) -> float:
    """1 for the gold answer, else 0. A rule, not a model: nothing to be fooled."""
    return float(completion == prompt.answer)


# ---------------------------------------------------------------------------------------------------------------------
# A policy: four ways to answer, chosen with probability softmax(logits). The token of an attempt is the way's number.

WAYS = ("add", "subtract", "first number", "shrug")


def answer(prompt: Prompt, way: int) -> str:
    """What each way says to a prompt."""
    first, _, second, _ = prompt.messages[0]["content"].split()
    answers = (str(int(first) + int(second)), str(int(first) - int(second)), first, "no idea")
    return answers[way]


def make_engine(logits: torch.Tensor) -> ScriptedEngine:
    """An engine whose script samples a way from the present logits, by the request's own random stream."""

    def script(request: Request) -> list[int]:
        draw = torch.from_numpy(uniforms(request.key, 1))
        way, _, _ = sample(logits.detach()[None], draw, temperature=1.0, top_k=0, top_p=1.0)
        return way.tolist()

    return ScriptedEngine(script)


# ---------------------------------------------------------------------------------------------------------------------
# The four phases.


def collect(engine: ScriptedEngine, prompts: list[Prompt]) -> list[Rollout]:
    """Phase 1, experience: `GROUP_SIZE` attempts at each prompt, each scored and stamped with its context."""
    requests = [
        Request(
            key=SampleKey(seed=SEED, version=engine.version, prompt=prompt.id, sample=number),
            prompt_tokens=(0,),
        )
        for prompt in prompts
        for number in range(GROUP_SIZE)
    ]
    turns = engine.generate(requests, Sampling(temperature=1.0, max_tokens=1))
    asked = [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
    return [to_rollout(prompt, request, turn) for prompt, request, turn in zip(asked, requests, turns, strict=True)]


def to_rollout(prompt: Prompt, request: Request, turn: Turn) -> Rollout:
    """One attempt with its reward, and with everything that a group may be keyed by."""
    completion = answer(prompt, turn.tokens[0])
    value = reward(prompt, completion)
    return Rollout(
        id=f"{prompt.id}#{request.key.sample}@{turn.version}",
        sample=request.key.sample,
        turns=(turn,),
        completion=completion,
        reward=value,
        reward_parts={"exact": value},
        outcome=Outcome.OK,
        context=Context(
            prompt_id=prompt.id,
            task=prompt.task,
            difficulty=None,
            version=turn.version,
            prompt_length=len(turn.prompt_tokens),
            completion_length=len(turn.tokens),
            stop_reason=turn.stop_reason,
        ),
    )


def credit(rollouts: list[Rollout]) -> list[Credit]:
    """Phases 2 and 3: attempts at the same prompt form a group, and the group's own rewards are the baseline.

    No critic: (reward - mean of the group) / standard deviation of the group. Where all are equal, nobody learns.
    """
    by_id = {rollout.id: rollout for rollout in rollouts}
    return advantages.credit(by_prompt(rollouts), by_id, AdvantageConfig(), clip_low=0.2, clip_high=0.2)


def update(logits: torch.Tensor, rollouts: list[Rollout], credits: list[Credit]) -> float:
    """Phase 4: one gradient step on the clipped objective; returns the loss."""
    earned = {credit.rollout_id: credit.advantage for credit in credits}
    ways = torch.tensor([rollout.turns[0].tokens[0] for rollout in rollouts])
    logprobs = torch.log_softmax(logits, -1)[ways]  # log π(way), with gradient
    count = len(rollouts)
    outputs = policy_loss(
        LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),  # one step per batch: the ratio is 1, its gradient is not 0
            sampler_logprobs=torch.tensor([rollout.turns[0].sampler_logprobs[0] for rollout in rollouts]),
            advantages=torch.tensor([earned[rollout.id] for rollout in rollouts]),
            clip_low=torch.full((count,), 0.2),
            clip_high=torch.full((count,), 0.2),
            weights=torch.full((count,), 1 / count),  # one global denominator
            rollout=torch.arange(count),  # one token each
        ),
        Objective(correction=RolloutCorrectionConfig(kind="none")),
    )
    (gradient,) = torch.autograd.grad(outputs.loss, logits)
    with torch.no_grad():
        logits -= RATE * gradient
    return float(outputs.loss.detach())


# ---------------------------------------------------------------------------------------------------------------------
# The loop.


def train() -> list[float]:
    """Returns the mean reward of every step."""
    prompts = make_prompts(PROMPTS * STEPS)
    logits = torch.zeros(len(WAYS), requires_grad=True)
    engine = make_engine(logits)
    curve = []
    for step in range(STEPS):
        rollouts = collect(engine, prompts[step * PROMPTS : (step + 1) * PROMPTS])
        credits = credit(rollouts)
        update(logits, rollouts, credits)
        engine.commit(step + 1)  # from here on the engine serves version step + 1
        curve.append(sum(rollout.reward or 0.0 for rollout in rollouts) / len(rollouts))
        if step % 5 == 0 or step == STEPS - 1:
            shares = torch.softmax(logits, -1).tolist()
            preferences = "  ".join(f"{way} {share:.2f}" for way, share in zip(WAYS, shares, strict=True))
            print(f"step {step:2d}  reward {curve[-1]:.2f}   {preferences}")
    return curve


if __name__ == "__main__":
    train()
