"""Families of words, days and times: sorting, counting, weekdays, dates, durations."""

from __future__ import annotations

import datetime
import random
import re
from typing import Any

from coterie.traces.family import Family, Lines, Problem, last_number

WORDS = (
    "apple", "bread", "candle", "door", "engine", "flower", "garden", "horse", "island", "jacket", "kettle", "lemon",
    "mirror", "needle", "orange", "pencil", "queen", "river", "stone", "table", "umbrella", "valley", "window",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
    "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
"""Months of a year of 365 days."""
_DATE = re.compile(rf"({'|'.join(MONTHS)}) (\d{{1,4}})")
_DURATION = re.compile(r"(\d+) h (\d+) min")


# Sorting, by putting one word after the other where it belongs


def _make_words(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"words": draw.sample(WORDS, difficulty)}


def _follow_sorting(problem: Problem, lines: Lines) -> str | None:
    words, place = problem["words"], len(lines)
    if place >= len(words):
        return None
    before = lines[-1].split() if lines else []
    return " ".join(sorted([*before, words[place]]))


# Counting


def _make_count(draw: random.Random, difficulty: int) -> dict[str, Any]:
    words = draw.sample(WORDS, 3)
    return {"word": words[0], "list": [draw.choice(words) for _ in range(difficulty)]}


def _follow_count(problem: Problem, lines: Lines) -> str | None:
    before = last_number(lines[-1]) if lines else 0
    if len(lines) >= len(problem["list"]) or before is None:
        return None
    word = problem["list"][len(lines)]
    return f"{word} {before + (word == problem['word'])}"


# Weekdays


def _make_weekday(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"day": draw.choice(DAYS), "after": draw.randint(2, 5 * difficulty)}


def _follow_weekday(problem: Problem, lines: Lines) -> str | None:
    if len(lines) >= problem["after"]:
        return None
    before = lines[-1].split()[-1:] if lines else [problem["day"]]
    if not before or before[0] not in DAYS:
        return None
    return f"{len(lines) + 1} {DAYS[(DAYS.index(before[0]) + 1) % 7]}"


def _last_word(problem: Problem, lines: Lines) -> str | None:
    return lines[-1].split()[-1] if lines and lines[-1].split() else None


# Dates


def _make_date(draw: random.Random, difficulty: int) -> dict[str, Any]:
    month = draw.choice(list(MONTHS))
    return {"month": month, "day": draw.randint(1, MONTHS[month]), "after": draw.randint(3, 20 * difficulty)}


def _follow_date(problem: Problem, lines: Lines) -> str | None:
    if not lines:
        month, day, after = problem["month"], problem["day"], problem["after"]
        return f"{month} {day} + {after} = {month} {day + after}"
    dates = _DATE.findall(lines[-1])
    if not dates or int(dates[-1][1]) <= MONTHS[dates[-1][0]]:
        return None
    month, day = dates[-1][0], int(dates[-1][1])
    names = list(MONTHS)
    behind = names[(names.index(month) + 1) % 12]
    return f"{month} {day} - {MONTHS[month]} = {behind} {day - MONTHS[month]}"


def _conclude_date(problem: Problem, lines: Lines) -> str | None:
    dates = _DATE.findall(lines[-1]) if lines else []
    return f"{dates[-1][0]} {int(dates[-1][1])}" if dates else None


def _true_date(problem: Problem) -> str:
    start = datetime.date(2022, list(MONTHS).index(problem["month"]) + 1, problem["day"])
    date = start + datetime.timedelta(problem["after"])
    return f"{list(MONTHS)[date.month - 1]} {date.day}"


# Durations


def _make_durations(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"times": [[draw.randint(1, 5), draw.randint(1, 11) * 5] for _ in range(difficulty)]}


def _follow_durations(problem: Problem, lines: Lines) -> str | None:
    hours, minutes = zip(*problem["times"], strict=True)
    if not lines:
        return f"minutes: {' + '.join(map(str, minutes))} = {sum(minutes)}"
    times = _DURATION.findall(lines[-1]) if len(lines) == 2 else []
    number = last_number(lines[-1])
    if len(lines) == 1 and number is not None:
        return f"{number} min = {number // 60} h {number % 60} min"
    if len(lines) == 2 and times:
        total = sum(hours) + int(times[-1][0])
        return f"hours: {' + '.join(map(str, hours))} + {times[-1][0]} = {total}"
    rest = _DURATION.findall(lines[1]) if len(lines) == 3 else []
    return f"{number} h {rest[-1][1]} min" if rest and number is not None else None


def _conclude_durations(problem: Problem, lines: Lines) -> str | None:
    times = _DURATION.findall(lines[-1]) if lines else []
    return f"{int(times[-1][0])} h {int(times[-1][1])} min" if times else None


def _true_durations(problem: Problem) -> str:
    total = sum(60 * hours + minutes for hours, minutes in problem["times"])
    return f"{total // 60} h {total % 60} min"


def _ask_durations(problem: Problem) -> str:
    return f"How long are {' + '.join(f'{hours} h {minutes} min' for hours, minutes in problem['times'])} together?"


FAMILIES = (
    Family(
        name="sorting", title="words in alphabetical order, put in one after the other", scale="words", hardest=10,
        make=_make_words, follow=_follow_sorting,
        ask=lambda problem: f"Sort the words: {' '.join(problem['words'])}.",
        truth=lambda problem: " ".join(sorted(problem["words"])),
        conclude=lambda problem, lines: " ".join(lines[-1].split()) if lines else None,
    ),
    Family(
        name="counting", title="how often a word stands in a list", scale="words", hardest=20,
        make=_make_count, follow=_follow_count,
        ask=lambda problem: f"How often is {problem['word']} in this list? {' '.join(problem['list'])}",
        truth=lambda problem: str(problem["list"].count(problem["word"])),
    ),
    Family(
        name="weekdays", title="the weekday some days later", scale="fives of days", hardest=10,
        make=_make_weekday, follow=_follow_weekday, conclude=_last_word,
        ask=lambda problem: f"Which weekday is {problem['after']} days after {problem['day']}?",
        truth=lambda problem: DAYS[(DAYS.index(problem["day"]) + problem["after"]) % 7],
    ),
    Family(
        name="dates", title="the date some days later, in a year of 365 days", scale="twenties of days", hardest=15,
        make=_make_date, follow=_follow_date, truth=_true_date, conclude=_conclude_date,
        ask=lambda problem: f"Which date is {problem['after']} days after {problem['month']} {problem['day']}?",
    ),
    Family(
        name="durations", title="hours and minutes added", scale="durations", hardest=6,
        make=_make_durations, follow=_follow_durations, truth=_true_durations, conclude=_conclude_durations,
        ask=_ask_durations,
    ),
)  # fmt: skip
