"""Rules about reward hacking: a training reward that rises alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from coterie.doctor.findings import Evidence, Record, Rule, RuleHit, Severity, level
from coterie.doctor.forgetting import noun
from coterie.doctor.series import WINDOW, Change, Series, change
from coterie.stats import PairedTest
from coterie.text import difference_text

REWARD_GAIN = 0.05
FORMAT_FULL = 0.95
REPETITION = 0.3
REPETITION_RISE = 0.1
COPIED = 0.5
THINK_EMPTY = 0.2
KL_RISE = 0.1
ROUNDING = 1e-9  # of a mean of equal values
PART = "reward/part/"
PART_ERRORS = 3.0
"""Standard errors: there are as many pairs as parts allow, and steps remember each other."""
PART_STEPS = 20
HEURISTIC = "a rule of thumb of practitioners"


def _rose(moved: Change) -> bool:
    return moved.difference > REWARD_GAIN and moved.clear()


def _heldout(record: Record) -> Iterator[RuleHit]:
    reward = record.series["reward/mean"]
    results, ends = record.evaluations(), record.ends()
    moved = change(reward.values)
    if ends is None or not _rose(moved):
        return
    first, last = results[0], results[-1]
    gained = ends[1].value - ends[0].value
    test = record.paired.get(last.task) or PairedTest(
        difference=gained, low=gained, high=gained, p_value=1.0, metric=record.metric(last.task)
    )
    if test.low > 0:
        return
    fell = test.high < 0 and test.significant
    text = (
        f"held-out {test.metric} changed by {difference_text(test.metric, test)} from step {first.step} to {last.step}"
    )
    heldout = Evidence(
        metric=f"held-out {test.metric}",
        value=test.difference,
        threshold=0.0,
        steps=(first.step, last.step),
        text=text,
    )
    trained = level(
        reward,
        REWARD_GAIN,
        moved.difference,
        f"reward/mean rose from {moved.first:.3g} to {moved.last:.3g} (± {2 * moved.error:.2g})",
    )
    yield RuleHit(
        severity=Severity.SERIOUS if fell else Severity.WARNING,
        title=f"The training reward rises while held-out {noun(test.metric)} falls: the reward is being gamed, or "
        "memorised."
        if fell
        else f"The training reward rises, and held-out {noun(test.metric)} has not been shown to follow.",
        evidence=(trained, heldout),
    )


def _format(record: Record) -> Iterator[RuleHit]:
    accuracy = record.series.get(f"reward/part/{record.accuracy_part}")
    if accuracy is None or len(accuracy) < WINDOW:
        return
    moved = change(accuracy.values)
    for part in record.setting("rewards.functions", []):
        label = part.get("label") or str(part.get("name", "")).split(":")[-1]
        layout = record.series.get(f"reward/part/{label}")
        if part.get("name") != "format" or layout is None or label == record.accuracy_part:
            continue
        if layout.now() > FORMAT_FULL - ROUNDING and not _rose(moved):
            yield RuleHit(
                severity=Severity.WARNING,
                title="The layout is learned, and nothing else: the format reward is full and accuracy is flat.",
                evidence=(
                    level(layout, FORMAT_FULL, layout.now(), f"{layout.name} is {layout.now():.2f}"),
                    level(
                        accuracy,
                        REWARD_GAIN,
                        moved.difference,
                        _went(accuracy.name, moved),
                    ),
                ),
            )


def diverging(series: Mapping[str, Series]) -> list[tuple[Series, Series]]:
    """Pairs of reward parts of which the first rises while the second falls, each clearly; by how far they move.

    Args:
        series: of a run, by metric.
    """
    parts = [line for name, line in series.items() if name.startswith(PART) and len(line) >= PART_STEPS]
    moves = [(line, moved) for line in parts if (moved := change(line.values)).clear(PART_ERRORS)]
    risen = sorted((pair for pair in moves if pair[1].difference > REWARD_GAIN), key=lambda pair: -pair[1].difference)
    fallen = sorted((pair for pair in moves if pair[1].difference < -REWARD_GAIN), key=lambda pair: pair[1].difference)
    return [(up, down) for down, _ in fallen for up, _ in risen]


def is_penalty(part: Series) -> bool:
    """True for a part that is never above 0: length penalties fall with what makes answers longer."""
    return float(part.values.max()) <= 0


def divergence_text(rising: Series, falling: Series) -> str:
    """What a reader is told of two such parts."""
    up, down = (line.name.removeprefix(PART) for line in (rising, falling))
    return (
        f"the reward part {up!r} rises while {down!r} falls: read the rollouts with the highest reward, and see "
        "whether one is bought with the other"
    )


def _parts_apart(record: Record) -> Iterator[RuleHit]:
    first_of = {falling.name: (rising, falling) for rising, falling in reversed(diverging(record.series))}
    for rising, falling in reversed(first_of.values()):
        label = falling.name.removeprefix(PART)
        serious = label == record.accuracy_part
        penalty = not serious and is_penalty(falling)
        moves = [(line, change(line.values)) for line in (rising, falling)]
        yield RuleHit(
            severity=Severity.SERIOUS if serious else Severity.NOTE if penalty else Severity.WARNING,
            title=f"The reward part {label} falls while {rising.name.removeprefix(PART)} rises.",
            evidence=tuple(
                level(line, REWARD_GAIN, moved.difference, _went(line.name, moved)) for line, moved in moves
            ),
        )


def _went(name: str, moved: Change) -> str:
    return f"{name} went from {moved.first:.3g} to {moved.last:.3g} (± {2 * moved.error:.2g})"


def _rises(metric: str, limit: float, rise: float, title: str) -> Callable[[Record], Iterator[RuleHit]]:
    """Check for a metric that is above a limit now and clearly above its start, which is the base model's value."""

    def check(record: Record) -> Iterator[RuleHit]:
        series: Series = record.series[metric]
        moved = change(series.values)
        if moved.last > limit and moved.difference > rise and moved.clear():
            text = f"{metric} went from {moved.first:.3g} to {moved.last:.3g}; the alarm is {limit:g}"
            yield RuleHit(
                severity=Severity.SERIOUS if moved.last > 2 * limit else Severity.WARNING,
                title=title,
                evidence=(level(series, limit, moved.last, text),),
            )

    return check


def _kl_without_gain(record: Record) -> Iterator[RuleHit]:
    kl, reward = record.series["kl/ref"], record.series["reward/mean"]
    away, earned = change(kl.values), change(reward.values)
    if away.difference > KL_RISE and away.clear() and not _rose(earned):
        yield RuleHit(
            severity=Severity.WARNING,
            title="The policy moves away from the reference and earns nothing by it.",
            evidence=(
                level(kl, KL_RISE, away.last, f"kl/ref went from {away.first:.3g} to {away.last:.3g}"),
                level(reward, None, earned.last, f"reward/mean went from {earned.first:.3g} to {earned.last:.3g}"),
            ),
        )


RULES = (
    Rule(
        name="heldout_flat",
        asks="Does the held-out result follow the training reward?",
        alarm=f"`reward/mean` rose by more than {REWARD_GAIN:g} and 2 standard errors, and the 95 % interval of the "
        "difference in held-out pass@1 (in reward where it is graded) reaches to 0 or below; serious when it lies "
        "below 0 and p < 0.05 on at least 8 prompts",
        source="the definition of reward hacking and of overfitting",
        meaning="The reward is hacked, the training prompts are memorised, or the evaluation is too small to tell.",
        action="Read the rollouts with the highest reward of the last step; tighten the reward; use more training "
        "prompts, and more held-out prompts or eval.samples.",
        needs=("reward/mean",),
        steps=10,
        evals=2,
        check=_heldout,
    ),
    Rule(
        name="format_full",
        asks="Does accuracy rise along with the format reward?",
        alarm=f"a `format` part of {FORMAT_FULL:g} or more over the last {WINDOW} steps while the evaluated part did "
        f"not rise by {REWARD_GAIN:g} and 2 standard errors",
        source=HEURISTIC,
        meaning="A part that every rollout earns has no gradient, and hides in the mean that nothing is learned.",
        action="Lower the weight of the format part; see whether the prompts are too hard.",
        needs=("reward/part/format",),
        steps=WINDOW,
        check=_format,
    ),
    Rule(
        name="parts_apart",
        asks="Do the parts of the reward rise together?",
        alarm=f"a reward part fell by more than {REWARD_GAIN:g} and {PART_ERRORS:g} standard errors while another rose "
        "as much; serious when it is the evaluated part, a note when it is a penalty",
        source=HEURISTIC,
        meaning="One part is bought with another: the sum can rise while what matters gets worse.",
        action="Look at `reward/correlation/…` of the two; change their weights, make one a gate, or normalise each on "
        "its own (advantage.per_reward).",
        needs=("reward/mean",),
        steps=PART_STEPS,
        check=_parts_apart,
    ),
    Rule(
        name="repetition",
        asks="Are completions free of repetition?",
        alarm=f"`repetition/mean` above {REPETITION:g} in the last quarter, {REPETITION_RISE:g} more than in the "
        f"first; serious above {2 * REPETITION:g}",
        source=HEURISTIC,
        meaning="Loops of the same words fill the length and mean nothing; they come before collapse.",
        action="Read rollouts; lower optim.lr, add objective.kl_beta, or reward length less.",
        needs=("repetition/mean",),
        steps=10,
        check=_rises("repetition/mean", REPETITION, REPETITION_RISE, "Completions repeat themselves more and more."),
    ),
    Rule(
        name="copied_prompt",
        asks="Are completions free of copies of the prompt?",
        alarm=f"`prompt_overlap/mean` above {COPIED:g} in the last quarter, {REPETITION_RISE:g} more than in the first",
        source=HEURISTIC,
        meaning="Completions consist of the prompt's own text; a reward that looks for words finds them there.",
        action="Find the reward part that rewards it, and take the prompt's text out of what it reads.",
        needs=("prompt_overlap/mean",),
        steps=10,
        check=_rises("prompt_overlap/mean", COPIED, REPETITION_RISE, "Completions copy the prompt more and more."),
    ),
    Rule(
        name="no_reasoning",
        asks="Is there reasoning before the answer?",
        alarm=f"`think/empty` above {THINK_EMPTY:g} in the last quarter, {REPETITION_RISE:g} more than in the first",
        source=HEURISTIC,
        meaning="The layout is kept, and nothing stands in it: the answer is guessed.",
        action="Lower the weight of the format part, or require a minimum length of reasoning with a `format` pattern.",
        needs=("think/empty",),
        steps=10,
        check=_rises("think/empty", THINK_EMPTY, REPETITION_RISE, "More and more answers come without any reasoning."),
    ),
    Rule(
        name="kl_without_gain",
        asks="Does the reward rise with the KL to the reference?",
        alarm=f"`kl/ref` rose by more than {KL_RISE:g} and 2 standard errors while `reward/mean` did not rise by "
        f"{REWARD_GAIN:g}",
        source=HEURISTIC,
        meaning="Drift without gain: noise moves the weights.",
        action="Lower optim.lr, raise collect.prompts_per_step, or raise objective.kl_beta.",
        needs=("kl/ref", "reward/mean"),
        steps=20,
        check=_kl_without_gain,
    ),
)
