"""Rules about the update: step size, trust region, gradient, critic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from coterie.doctor.findings import Record, Rule, RuleHit, Severity, beyond, breach, level
from coterie.doctor.series import WINDOW, change, longest, preceding_median, streak

HEURISTIC = "a rule of thumb of practitioners; tune it on your own runs"
RATIO_EXACT = 1e-3  # one optimizer step a batch: old and new log-probs come from the same weights
RATIO_SLACK = 0.05
CLIP_SHARE = 0.2  # token level; GRPO runs show .001 to .02
CLIP_SHARE_SEQUENCE = 0.4  # sequence level: 0.1 to 0.2 is normal (GSPO, arXiv 2507.18071, figure 2)
DUAL_SHARE = 0.01
KL_STEP = 0.05  # nats a token, of one step
KL_JUMP = 5.0
KL_JUMP_LEAST = 0.05
SPIKE = 10.0  # gradient norm over the median of the 20 steps before
ADVANTAGE_MAX = 5.0  # of rewards divided by their group's std; (G - 1) / sqrt(G) bounds it, 7.9 for G = 64


def _ratio(record: Record) -> Iterator[RuleHit]:
    ratio = record.series["ratio/mean"]
    stale = record.series.get("staleness/mean")
    exact = record.optimizer_steps == 1 and (stale is None or stale.values.max() == 0)
    limit = RATIO_EXACT if exact else RATIO_SLACK
    mask = np.abs(ratio.values - 1) > limit
    if longest(mask) < (1 if exact else 3):
        return
    worst = int(np.abs(ratio.values - 1).argmax())
    text = (
        f"ratio/mean is {ratio.values[worst]:.4g} at step {int(ratio.steps[worst])} and further than {limit:g} from 1 "
        f"in {int(mask.sum())} of {len(ratio)} steps"
    )
    title = (
        "The ratio is not 1 although each batch gets one optimizer step on the weights that sampled it."
        if exact
        else "The new policy drifts far from the old one within a batch: the mean ratio leaves 0.95 to 1.05."
    )
    action = "Look for dropout, a wrong temperature, or log-probs of another model: this is a fault." if exact else ""
    severity = Severity.SERIOUS if exact else Severity.WARNING
    yield RuleHit(
        severity=severity,
        title=title,
        evidence=(level(ratio, limit, float(ratio.values[worst]), text),),
        action=action,
    )


def _clip(record: Record) -> Iterator[RuleHit]:
    share = record.series["clip/low"].plus(record.series["clip/high"], "clip/low + clip/high")
    limit = CLIP_SHARE if record.setting("objective.ratio", "token") == "token" else CLIP_SHARE_SEQUENCE
    if len(share) and (alarm := beyond(share, limit)):
        yield RuleHit(
            severity=Severity.WARNING,
            title="A large share of the tokens is clipped: the steps are too large.",
            evidence=(alarm[0],),
        )


def _dual(record: Record) -> Iterator[RuleHit]:
    if alarm := beyond(record.series["clip/dual"], DUAL_SHARE):
        title = "The dual clip is at work: bad attempts have become much likelier since they were sampled."
        yield RuleHit(severity=Severity.WARNING, title=title, evidence=(alarm[0],))


def _kl_step(record: Record) -> Iterator[RuleHit]:
    if alarm := beyond(record.series["kl/old"], KL_STEP):
        severity = Severity.SERIOUS if alarm[1] else Severity.WARNING
        yield RuleHit(severity=severity, title="One step moves the policy very far.", evidence=(alarm[0],))


def _kl_jump(record: Record) -> Iterator[RuleHit]:
    kl = record.series["kl/ref"]
    before = preceding_median(kl.values)
    mask = (kl.values > KL_JUMP * before) & (kl.values > KL_JUMP_LEAST)
    if mask.any():
        at = int(np.flatnonzero(mask)[0])
        text = f"kl/ref is {kl.values[at]:.4g} at step {int(kl.steps[at])}; the median before was {before[at]:.4g}"
        yield RuleHit(
            severity=Severity.WARNING,
            title=f"The KL to the reference jumped by more than a factor of {KL_JUMP:g} within a step.",
            evidence=(level(kl, KL_JUMP, float(kl.values[at]), text),),
        )


def _spikes(record: Record) -> Iterator[RuleHit]:
    norm = record.series["grad_norm"]
    before = preceding_median(norm.values)
    mask = (norm.values > SPIKE * before) & (before > 0)  # after steps that trained nothing any norm is a spike
    if mask.any():
        many = int(mask.sum())
        at = int(np.flatnonzero(mask)[int(norm.values[mask].argmax())])
        text = (
            f"grad_norm is {norm.values[at]:.4g} at step {int(norm.steps[at])}, the median before {before[at]:.4g}; "
            f"{many} such step{'s' if many > 1 else ''}"
        )
        yield RuleHit(
            severity=Severity.WARNING,
            title=f"The gradient norm spikes to more than {SPIKE:g} times its usual size.",
            evidence=(level(norm, SPIKE, float(norm.values[at]), text),),
        )


def _skipped(record: Record) -> Iterator[RuleHit]:
    skipped = record.series["update/nonfinite"]
    mask = skipped.values > 0
    if mask.any():
        serious = longest(mask) >= 3 or mask.mean() > 0.05
        yield RuleHit(
            severity=Severity.SERIOUS if serious else Severity.WARNING,
            title="Optimizer steps were left out because their gradient was not finite.",
            evidence=(breach(skipped, mask, 0.0),),
        )


def _advantage(record: Record) -> Iterator[RuleHit]:
    largest = record.series["advantage/max"]
    mask = largest.values > ADVANTAGE_MAX
    if mask.any():
        yield RuleHit(
            severity=Severity.WARNING,
            title="Single attempts carry a very large advantage: a standard deviation close to zero divides them.",
            evidence=(breach(largest, mask, ADVANTAGE_MAX),),
        )


def _critic(record: Record) -> Iterator[RuleHit]:
    explained = record.series["critic/explained_variance"]
    mask = explained.values < 0
    if streak(mask) >= WINDOW:
        yield RuleHit(
            severity=Severity.WARNING,
            title="The critic predicts worse than a constant would.",
            evidence=(breach(explained, mask, 0.0, high=False),),
        )


def _teacher(record: Record) -> Iterator[RuleHit]:
    gap = record.series["distill/reverse_kl"]
    moved = change(gap.values)
    if moved.difference < 0 and moved.clear():
        return
    text = (
        f"distill/reverse_kl was {moved.first:.4g} in the first and is {moved.last:.4g} in the last quarter, in nats a "
        "token"
    )
    yield RuleHit(
        severity=Severity.WARNING,
        title="The student does not approach its teacher.",
        evidence=(level(gap, None, moved.last, text),),
    )


RULES = (
    Rule(
        name="ratio",
        asks="Does the policy of the update agree with the one that sampled?",
        alarm=f"`ratio/mean` further than {RATIO_EXACT:g} from 1 with one optimizer step a batch, or further than "
        f"{RATIO_SLACK:g} for 3 steps in a row with several",
        source=f"by definition, and {HEURISTIC}",
        meaning="The objective compares the policy with the one that made the rollouts; a ratio off 1 says by how much "
        "they differ.",
        action="Lower optim.lr, optim.minibatches or optim.epochs.",
        needs=("ratio/mean",),
        steps=1,
        check=_ratio,
    ),
    Rule(
        name="clip_share",
        asks="Are the steps small enough for the trust region?",
        alarm=f"`clip/low` + `clip/high` above {CLIP_SHARE:g} for 3 steps in a row ({CLIP_SHARE_SEQUENCE:g} where the "
        "ratio is one per sequence)",
        source=HEURISTIC,
        meaning="The gradient of clipped tokens is zero: much of the batch is paid for and not used.",
        action="Lower optim.lr, or use fewer optim.minibatches and optim.epochs.",
        needs=("clip/low", "clip/high"),
        check=_clip,
    ),
    Rule(
        name="dual_clip",
        asks="Is the dual clip rarely active?",
        alarm=f"`clip/dual` above {DUAL_SHARE:g} for 3 steps in a row",
        source=HEURISTIC,
        meaning="The dual clip is a safety net; it should catch next to nothing.",
        action="Lower optim.lr, and look at the mismatch metrics.",
        needs=("clip/dual",),
        check=_dual,
    ),
    Rule(
        name="kl_step",
        asks="Is the KL of one step small?",
        alarm=f"`kl/old` above {KL_STEP:g} for 3 steps in a row",
        source=HEURISTIC,
        meaning="Rollouts of the old policy say little about a policy that is far away.",
        action="Lower optim.lr, or use fewer optim.minibatches and optim.epochs.",
        needs=("kl/old",),
        check=_kl_step,
    ),
    Rule(
        name="kl_jump",
        asks="Does the KL to the reference grow smoothly?",
        alarm=f"`kl/ref` above {KL_JUMP:g} times the median of the 20 steps before it, and above {KL_JUMP_LEAST:g}",
        source=HEURISTIC,
        meaning="Steady growth is normal; a jump is how a collapse begins.",
        action="Read rollouts of that step. Lower optim.lr, or raise objective.kl_beta.",
        needs=("kl/ref",),
        steps=6,
        check=_kl_jump,
    ),
    Rule(
        name="grad_spike",
        asks="Is the gradient norm free of spikes?",
        alarm=f"`grad_norm` above {SPIKE:g} times the median of the 20 steps before it",
        source=HEURISTIC,
        meaning="Clipping bounds the length of the step, not its direction: a spike is a step that a few tokens "
        "dictated.",
        action="Read the rollouts of that step; lower optim.lr if it happens again.",
        needs=("grad_norm",),
        steps=6,
        check=_spikes,
    ),
    Rule(
        name="skipped_updates",
        asks="Were all gradients finite?",
        alarm="`update/nonfinite` above 0; serious from 3 steps in a row or 5 % of all",
        source="by definition",
        meaning="Such a step changes nothing; its rollouts are lost.",
        action="Lower optim.lr; with model.dtype = bfloat16 try float32; read the rollouts of those steps.",
        needs=("update/nonfinite",),
        steps=1,
        check=_skipped,
    ),
    Rule(
        name="advantage_max",
        asks="Are advantages free of outliers?",
        alarm=f"`advantage/max` above {ADVANTAGE_MAX:g}",
        source=HEURISTIC,
        meaning="One lucky attempt in a large group, or rewards that differ in the last digits, pull alone.",
        action="Do not divide by the group's standard deviation, or round rewards that should be equal.",
        needs=("advantage/max",),
        steps=1,
        check=_advantage,
    ),
    Rule(
        name="critic",
        asks="Is the critic better than a constant?",
        alarm=f"`critic/explained_variance` below 0 for the last {WINDOW} steps",
        source="by definition",
        meaning="Such a baseline adds noise to every advantage.",
        action="Warm the critic up for longer, or raise its learning rate.",
        needs=("critic/explained_variance",),
        steps=WINDOW,
        check=_critic,
    ),
    Rule(
        name="teacher",
        asks="Does the student approach its teacher?",
        alarm="`distill/reverse_kl` did not fall by 2 standard errors from the first to the last quarter",
        source="by definition",
        meaning="The distance to the teacher on the student's own tokens is what a distillation minimises.",
        action="Raise optim.lr or the batch; look whether the teacher answers these prompts as they are written, and "
        "whether the student is as near as it can get already.",
        needs=("distill/reverse_kl",),
        steps=WINDOW,
        check=_teacher,
    ),
)
