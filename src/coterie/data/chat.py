"""Chat templates: messages to tokens, and sampled tokens to text.

The template is a Jinja program from the model's author. transformers (checked in 5.19) renders it in an
`ImmutableSandboxedEnvironment` without a loader, so it reaches no file, module or attribute; nothing limits its time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coterie.data import tokenizer_files
from coterie.data.answers import THOUGHTS
from coterie.errors import DataError, ModelError
from coterie.types import Message

PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n{% else %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a base model without a template: `User: …`, a line each, then `Assistant:`."""

_TODAY = datetime(2024, 7, 26)
_PRIVATE = range(0xE000, 0xF8FF)


class Chat:
    """A tokenizer and its chat template; equal input gives equal tokens on any day.

    For ordinary text the tokens are those of `tokenizer.apply_chat_template`. Two things differ on purpose: text that
    spells a special token is never read as one, and a template that asks for today's date always gets 26 July 2024 (the
    default in Llama's own templates), since a resumed run must see the same prompt tomorrow.

    Attributes:
        tokenizer: the transformers tokenizer.
        template: the Jinja source in use.
        template_hash: sha256 of it in hex, for the run's record.
        stop_ids: any of these ends a turn: the model's and the tokenizer's end tokens, the template's end-of-turn
            token. Empty when there is none; then only the token limit ends a completion.
        pad_id: a valid id to fill rectangles with. Masks never come from ids, so it may equal an end token.
        opening: start of the model's turn that the template writes at the end of every prompt, such as `<think>\n`;
            empty for most. Rewards and environments see it in front of the completion.
        silent_ids: tokens that `decode` leaves out; `special` is the pattern of all special tokens' texts.
        notes: remarks on this tokenizer for the user, one line each.
        files: files that the tokenizer was loaded from, by name; empty when it was made in memory.
    """

    files: Mapping[str, Path] = MappingProxyType({})

    def __init__(self, tokenizer: Any, *, stop_ids: Iterable[int] = (), skip_special_tokens: bool = False) -> None:
        """
        Args:
            tokenizer: a transformers tokenizer, fast or slow.
            stop_ids: the end tokens of the model's own generation settings.
            skip_special_tokens: leave every special token out of decoded text, not only those that end, begin or pad a
                text or write the template's turns: tags such as `<think>` may be tokens of their own.

        Raises:
            DataError: the template does not compile, or loses the user's words.
        """
        self.tokenizer = tokenizer
        self.tools: list[dict[str, Any]] = []  # schemas for the template, set with the preamble of the system message
        self.preamble = ""  # by data/tool_templates.py
        self.notes: list[str] = []
        self.template = self._own_template()
        self.template_hash = hashlib.sha256(self.template.encode()).hexdigest()
        self.special = _special_token_pattern(tokenizer)
        tail = self._probe()
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.stop_ids = frozenset((*stop_ids, *eos, *self._end_of_turn(tail)))
        if not self.stop_ids:
            self.notes.append(
                "the tokenizer has no end token: only sampling.max_tokens and sampling.stop end a completion"
            )
        self.opening = self._generation_opening()
        if self.opening:
            self.notes.append(
                f"the chat template opens every answer with {self.opening!r}: rewards and environments see it in front "
                "of what the model says"
            )
        self.silent_ids = self._silent_ids(skip_special_tokens)
        filler = (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(self.stop_ids), 0)
        self.pad_id: int = next(token for token in filler if token is not None)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a chat, ready for the assistant's turn.

        Raises:
            DataError: the template refuses these messages, or their text cannot be encoded.
        """
        escaped, spellings = self.escape_special_tokens(messages)
        return self._ids(self.text(escaped, add_generation_prompt=add_generation_prompt), spellings)

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        """Token ids from the end of an assistant's turn to the start of its next one, `messages` in between.

        They begin with the template's end-of-turn token where the model did not sample it: the turn was cut, stopped by
        a stop string, or ended by another of its end tokens. A stop string that the template writes too, such as the
        `\nUser:` of a base model, is not written twice.

        Args:
            messages: the environment's reply to the turn.
            turn_ids: tokens of that turn.
            stop: strings that end a turn.

        Raises:
            DataError: the template refuses these messages here, or leaves the assistant's words out.
        """
        escaped, spellings = self.escape_special_tokens(messages)
        tail = self._tail(escaped)
        end = self.special.match(tail.lstrip())
        ids = [] if end is None else self.encode(end.group())
        if len(ids) == 1 and turn_ids[-1:] and turn_ids[-1] == ids[0] and end is not None:
            tail = tail.lstrip()[end.end() :]
        else:
            text = self.decode(turn_ids)
            doubled = next((string for string in stop if text.endswith(string) and tail.startswith(string)), "")
            tail = tail.removeprefix(doubled)
        return self._ids(tail, spellings)

    def check_turns(self) -> None:
        """Refuse a template that cannot continue a conversation."""
        asked = [Message(role="user", content=text) for text in ("and then?", "what else?")]
        once = self._tail(asked[:1])
        again = self._tail(asked[:1], before=asked[1:])
        if once != again:
            raise DataError(
                "the model's chat template cannot be continued turn by turn: between two turns it writes "
                f"{once[:60]!r} at the start of a conversation and {again[:60]!r} later; expected the same. Give the "
                "model's folder a chat_template that adds each message to the end, or use environment.name = "
                "single_turn"
            )

    def _tail(self, messages: Sequence[Message], before: Sequence[Message] = ()) -> str:
        """Rendered text from the end of an assistant's turn, through `messages`, to its next turn.

        Args:
            messages: without special tokens.
            before: further exchanges that come first.
        """
        free = self._unused_characters([*before, *messages])
        asked, words = next(free), next(free)
        chat: list[Message] = []
        for message in before:
            chat += [message, Message(role="assistant", content=next(free))]
        chat += [Message(role="user", content=asked), Message(role="assistant", content=words), *messages]
        text = self.text(chat, add_generation_prompt=True)
        tail = text.rpartition(words)[2]
        spoken = [message["content"].strip() for message in messages if message["role"] in ("user", "system", "tool")]
        missing = [text_part for text_part in (words, *spoken) if text_part not in text]
        if missing or text.count(words) != 1:
            what = "the assistant's earlier words" if words in missing or not missing else f"{missing[0][:60]!r}"
            raise DataError(
                f"the model's chat template does not write {what} once in a conversation of several turns, which an "
                "environment with several turns needs; give the model's folder a chat_template that writes each "
                "message['content'], or use environment.name = single_turn"
            )
        return tail

    def _ids(self, text: str, spellings: Mapping[str, str]) -> list[int]:
        """Token ids of a rendered text, in which characters stand for special tokens (`spellings`)."""
        if not spellings:
            return self.encode(text)
        ids: list[int] = []
        for part in re.split(f"([{''.join(spellings)}])", text):
            ids += self.encode(spellings[part], plain=True) if part in spellings else self.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens, without end tokens and the others of `silent_ids`; broken UTF-8 becomes U+FFFD.
        For readers and rewards: never encoded again."""
        kept = [token for token in ids if token not in self.silent_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer and its own template, so that the folder opens with transformers 4 and 5 as it is."""
        tokenizer_files.save(self.tokenizer, Path(folder), self.files)

    def check_vocabulary(self, rows: int) -> None:
        """Refuse a tokenizer that can name tokens beyond the model's embedding.

        Args:
            rows: rows of the input embedding.
        """
        highest = max(self.tokenizer.get_vocab().values(), default=-1)
        if highest >= rows:
            raise ModelError(
                f"the tokenizer knows token {highest}, but the model's embedding has {rows} rows: tokens were added "
                "without `model.resize_token_embeddings`; resize and save the model, or use its original tokenizer"
            )

    def _own_template(self) -> str:
        if not self.tokenizer.chat_template:
            self.notes.append(
                "the tokenizer has no chat template: prompts are written as `User: …` and `Assistant:`; "
                'for a base model consider sampling.stop = ["\\nUser:"]'
            )
            return self._bos_prefix() + PLAIN
        try:
            return self.tokenizer.get_chat_template()
        except ValueError as error:
            names = ", ".join(sorted(self.tokenizer.chat_template))
            raise DataError(
                f"the tokenizer has several chat templates ({names}) and none called `default`; "
                "save it with the one to use as its only chat_template"
            ) from error

    def _bos_prefix(self) -> str:
        """Template text of the first token, which Llama and Gemma want even without a template; empty for others."""
        bos = self.tokenizer.bos_token_id
        first = self.tokenizer("a", add_special_tokens=True)["input_ids"][:1]
        return "{{ bos_token }}" if bos is not None and first == [bos] else ""

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """What the template writes for these messages."""
        try:
            return self.tokenizer.apply_chat_template(
                self._shown(messages),
                tools=self.tools or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_TODAY.strftime,
            )
        except Exception as error:  # a template is somebody's program: it can raise anything
            raise DataError(self._refusal(messages, error)) from error

    def _shown(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template gets them: with the preamble, and without calls that stand in the content."""
        shown: list[dict[str, Any]] = [{key: value for key, value in m.items() if key != "error"} for m in messages]
        for message in shown:
            if any("text" in call for call in message.get("tool_calls", ())):
                del message["tool_calls"]
        if self.preamble and (not shown or shown[0]["role"] != "system"):
            return [{"role": "system", "content": self.preamble}, *shown]
        if self.preamble:
            shown[0]["content"] = f"{self.preamble}\n\n{shown[0]['content']}"
        return shown

    def _refusal(self, messages: Sequence[Message], error: Exception) -> str:
        roles = " → ".join(message["role"] for message in messages) or "no messages"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "check the order of the roles, or give the model's folder another chat_template"
        if any(message["role"] == "system" for message in messages):
            remedy = (
                "if it takes no system message, leave data.system out and put the text into the source's instruction"
            )
        return f"the model's chat template refuses these messages ({roles}): {reason}; {remedy}"

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids of a text; with `plain` the spelling of a special token is only letters."""
        try:
            options = {"split_special_tokens": True} if plain else {}
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(f"the text holds a lone surrogate, which no tokenizer can encode: {text[:60]!r}") from error

    def escape_special_tokens(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """Replace the spellings of special tokens by single private-use characters, which templates leave alone.

        Returns:
            The messages, and the spelling of each character; empty when there was nothing to escape.
        """
        if all(self.encode(m["content"]) == self.encode(m["content"], plain=True) for m in messages):
            return messages, {}
        placeholders = self._unused_characters(messages)
        spellings: dict[str, str] = {}
        names: dict[str, str] = {}

        def escape(match: re.Match[str]) -> str:
            word = match.group()
            if word not in names:
                names[word] = next(placeholders)
                spellings[names[word]] = word
            return names[word]

        out: list[Message] = []
        for message in messages:
            content = self.special.sub(escape, message["content"])
            for part in re.split(f"[{''.join(spellings)}]", content) if spellings else [content]:
                if self.encode(part) != self.encode(part, plain=True):
                    raise DataError(
                        f"the text spells a special token in a way that cannot be told apart: {part[:60]!r}; reword it"
                    )
            out.append({**message, "content": content})
        return out, spellings

    def _unused_characters(self, messages: Sequence[Message]) -> Iterator[str]:
        taken = set(self.template).union(*(message["content"] for message in messages))
        return (chr(code) for code in _PRIVATE if chr(code) not in taken)

    def _probe(self) -> str:
        """Render one exchange; the text after the assistant's words, which ends a turn."""
        placeholders = self._unused_characters([])
        user, assistant = next(placeholders), next(placeholders)
        asked: list[Message] = [{"role": "user", "content": user}]
        text = self.text(asked, add_generation_prompt=True)
        if user not in text:
            raise DataError(
                "the model's chat template leaves out what the user says, so every prompt would look the same; "
                "give the model's folder a chat_template that writes message['content']"
            )
        try:
            text = self.text([*asked, {"role": "assistant", "content": assistant}], add_generation_prompt=False)
        except DataError:
            return ""  # a template for single questions
        return text.rpartition(assistant)[2] if assistant in text else ""

    def _generation_opening(self) -> str:
        """Open tag at the end of the generation prompt, beyond the header of an assistant's turn.

        Templates open a thought, `<think>` and a new line, which is told by its name; any other tag is told by what the
        template writes before the words of an assistant whose turn is over.
        """
        placeholders = self._unused_characters([])
        user, assistant = next(placeholders), next(placeholders)
        asked: list[Message] = [{"role": "user", "content": user}]
        prompt = self.text(asked, add_generation_prompt=True).rpartition(user)[2]
        tags = "|".join(map(re.escape, THOUGHTS))
        thought = re.search(rf"(?:{tags})\s*\Z", prompt)
        if thought is not None:
            return thought.group()
        try:
            answered = self.text([*asked, {"role": "assistant", "content": assistant}], add_generation_prompt=False)
        except DataError:
            return ""  # a template for single questions
        header = answered.rpartition(user)[2].partition(assistant)[0]
        extra = prompt.removeprefix(header) if header and prompt.startswith(header) else ""
        return extra if re.fullmatch(r"\s*<[A-Za-z][\w:-]*>\s*", extra) else ""

    def _silent_ids(self, skip_special_tokens: bool) -> frozenset[int]:
        """End tokens, and of the special tokens those that begin, end, pad or stand for unknown text, and those with
        which the template writes turns; all of them with `skip_special_tokens`."""
        special = {token: str(added) for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        special |= dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        if skip_special_tokens:
            return self.stop_ids | special.keys()
        named = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        roles = {getattr(self.tokenizer, f"{name}_token_id", None) for name in named}
        texts = set(special.values())
        tags = {self.opening.strip(), *THOUGHTS, *THOUGHTS.values()}
        # A template's own system prompt may speak of <answer>…</answer> without writing turns with it.
        tags |= {
            tag for text in texts if text[:1] == "<" and (close := f"</{text[1:]}") in texts for tag in (text, close)
        }
        turns = self._template_text()
        written = {token for token, text in special.items() if text in turns and text not in tags}
        return self.stop_ids | written | {token for token in special if token in roles}

    def _template_text(self) -> str:
        """Template text around a conversation, with and without a system message."""
        placeholders = self._unused_characters([])
        chat: list[Message] = [
            {"role": role, "content": next(placeholders)} for role in ("system", "user", "assistant", "user")
        ]
        texts = []
        for messages in (chat, chat[1:], chat[1:3], chat[1:2]):
            for prompt in (True, False):
                with suppress(DataError):
                    texts.append(self.text(messages, add_generation_prompt=prompt))
        return "\n".join(texts)

    def _end_of_turn(self, tail: str) -> list[int]:
        """The special token that directly follows the assistant's words, e.g. <|im_end|>, <|eot_id|>, <end_of_turn>."""
        match = self.special.match(tail.lstrip())
        if match is None:
            return []
        ids = self.encode(match.group())
        return ids if len(ids) == 1 else []


def load_chat(source: str | Path, revision: str | None = None, *, skip_special_tokens: bool = False) -> Chat:
    """The tokenizer, template and end tokens of a model.

    Args:
        source: a local folder, or a transformers id.
        revision: pinned revision of an id.
        skip_special_tokens: as of `Chat`.

    Raises:
        ModelError: no tokenizer there that transformers can load without running the folder's own code.
        DataError: as `Chat`.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"revision": revision} if revision else {}
    source = _with_tokenizer(source)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"cannot load the tokenizer of {str(source)!r}: {reason}; expected an asset name (`coterie assets ls`), a "
            "folder with tokenizer.json and tokenizer_config.json, or a reachable transformers id"
        ) from error
    files = ("generation_config.json", "config.json")
    ends = [end for name in files for end in _end_tokens(_json_of(str(source), name, options))]
    chat = Chat(tokenizer, stop_ids=ends, skip_special_tokens=skip_special_tokens)
    chat.files = tokenizer_files.files_of(str(source), tokenizer.vocab_files_names, revision)
    return chat


def _with_tokenizer(source: str | Path) -> str | Path:
    """Folder or id of the tokenizer: the model's, or its base's where an adapter has none."""
    folder = Path(source)
    if not folder.is_dir() or tokenizer_files.has_vocabulary(folder):
        return source
    base = _json_of(str(source), "adapter_config.json", {}).get("base_model_name_or_path")
    if base and (not Path(base).is_dir() or tokenizer_files.has_vocabulary(Path(base))):
        return base
    raise ModelError(
        f"{folder} has no tokenizer files; expected tokenizer.json and tokenizer_config.json beside the weights. Copy "
        "them from the base model, or write them with `AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)`"
    )


def _json_of(source: str, name: str, options: Mapping[str, Any]) -> Any:
    from transformers.utils import cached_file

    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
    if path is None:
        return {}
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); fetch the model again") from error


def _end_tokens(facts: Any) -> list[int]:
    ends = facts.get("eos_token_id") if isinstance(facts, Mapping) else None
    many = ends if isinstance(ends, list) else [ends]
    return [end for end in many if isinstance(end, int) and not isinstance(end, bool) and end >= 0]


def _special_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Pattern of all special tokens' texts, longest first; case-insensitive, since normalizers may fold it."""
    texts = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    ordered = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)", re.IGNORECASE)
