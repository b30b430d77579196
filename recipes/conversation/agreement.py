"""On how many replies lm-eval's checks and the own ones agree, kind by kind.

coterie rollout @ recipes/conversation/config.toml --count 72 --json > before.jsonl
python recipes/conversation/agreement.py before.jsonl

Each reply is checked with every word, number and ending that an instruction may have.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conversation
import instruction_checks as checks

WORDS = sorted({word for pair in conversation.TOPICS.values() for word in pair})


def main(files: list[str]) -> int:
    """Print a line for each kind, and the first replies on which the checks differ; the exit code."""
    logging.disable(logging.ERROR)  # langdetect's "unable to detect" of every reply without letters
    texts = [text for file in files for text in replies(Path(file))]
    print(f"{len(texts)} replies, {len(set(texts))} different")
    for name in checks.CHECKS:
        print(f"{name}: {compared(name, texts)}")
    return 0


def replies(file: Path) -> list[str]:
    """Replies of all turns in what `coterie rollout --json` printed; empty ones are left out."""
    rollouts = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    texts = [text for rollout in rollouts for text in (_turns(rollout) or [rollout["completion"]])]
    return [text for text in texts if text.strip()]


def _turns(rollout: dict[str, Any]) -> list[str]:
    messages = rollout.get("episode") or []
    texts = [message["content"] for message in messages if message.get("role") == "assistant"]
    return texts[-len(rollout["turns"]) :] if messages else []  # those before them are the worked conversation's


def arguments(name: str) -> Iterator[dict[str, Any]]:
    """All arguments that the recipe's instructions of a kind may have."""
    match name.partition(":")[2]:
        case "number_words":
            yield from ({"num_words": number, "relation": "at most"} for number in range(10, 16))
        case "number_sentences":
            yield {"num_sentences": 1, "relation": "at most"}
        case "existence":
            yield from ({"keywords": [word]} for word in WORDS)
        case "forbidden_words":
            yield from ({"forbidden_words": [word]} for word in WORDS)
        case "frequency":
            yield from ({"keyword": word, "frequency": 2, "relation": "at least"} for word in WORDS)
        case "end_checker":
            yield from ({"end_phrase": words} for words in conversation.ENDINGS)
        case _:
            yield {}


def compared(name: str, texts: list[str]) -> str:
    """How often each of the two says followed, how often they differ, and examples of it."""
    package = checks.packaged(name)
    pairs = [(text, kwargs) for text in texts for kwargs in arguments(name)]
    try:
        flags = [(checks.OWN[name](text, **kwargs), package(text, **kwargs)) for text, kwargs in pairs]
    except LookupError as error:
        return f"cannot run: {next(line.strip() for line in str(error).splitlines() if 'Resource' in line)}"
    kept, kept_by_package = (sum(values) for values in zip(*flags, strict=True))
    differ = [(pair, two) for pair, two in zip(pairs, flags, strict=True) if two[0] != two[1]]
    examples = "".join(f"\n    own {two[0]}: {text!r} {kwargs}" for (text, kwargs), two in differ[:3])
    share = 100 * len(differ) / len(pairs)
    followed = f"own {kept} followed, lm-eval {kept_by_package}"
    return f"{len(pairs)} checks, {followed}, {len(differ)} differ ({share:.2f} %){examples}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
