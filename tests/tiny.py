"""Tiny tokenizers built on the spot, with the awkward corners that real ones have."""

from __future__ import annotations

from functools import cache
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGED = (
    "the",
    "Ġthe",
    "Ġhow",
    "Ġmany",
    "Ġlegs",
    "ing",
    "Ġand",
    "Ġanswer",
    "Ġis",
    "system",
    "user",
    "assistant",
)

Kind = Literal["byte_bpe", "byte_fallback", "word"]


def tiny_tokenizer(
    *,
    kind: Kind = "byte_bpe",
    template: str | None = CHATML,
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|endoftext|>",
    specials: tuple[str, ...] = SPECIALS,
    adds_bos: bool = False,
    lowercase: bool = False,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer of about 300 tokens; the special tokens come first (ids 0, 1, 2 …).

    Args:
        kind: `byte_bpe` like GPT-2 or Qwen; `byte_fallback` like Llama 2 or Gemma (▁ for a space); `word`
            knows whole words and an unknown token.
        template: Jinja chat template, or None.
        bos, eos, pad: texts of the special tokens; None leaves the tokenizer without one.
        adds_bos: plain encoding puts `bos` first, as Llama does.
        lowercase: a normalizer that changes text, special tokens' look-alikes too.
    """
    core = _core(kind, specials)
    if lowercase:
        core.normalizer = normalizers.Lowercase()
    if adds_bos:
        assert bos is not None
        token = (bos, core.token_to_id(bos))
        core.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[token])
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    named = {name: text for name, text in names.items() if text is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    return tokenizer


def _core(kind: Kind, specials: tuple[str, ...]) -> Tokenizer:
    core = Tokenizer.from_str(_serialised(kind, specials))
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return core


@cache
def _serialised(kind: Kind, specials: tuple[str, ...]) -> str:
    vocabulary = {text: index for index, text in enumerate(specials)}
    if kind == "byte_bpe":
        core = _bpe(vocabulary, sorted(pre_tokenizers.ByteLevel.alphabet()), MERGED)
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    elif kind == "byte_fallback":
        letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(33, 127))]
        core = _bpe(vocabulary, letters, tuple(text.replace("Ġ", "▁") for text in MERGED), byte_fallback=True)
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        words = [
            "<unk>",
            "\n",
            *map(str, range(100)),
            "system",
            "user",
            "assistant",
            "how",
            "many",
            "legs",
            "?",
            ".",
        ]
        for word in words:
            vocabulary.setdefault(word, len(vocabulary))
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[0-9]+|[a-z]+|[^\s]"), "removed", invert=True)
    return core.to_str()


def _bpe(
    vocabulary: dict[str, int], letters: list[str], merged: tuple[str, ...], *, byte_fallback: bool = False
) -> Tokenizer:
    for letter in letters:
        vocabulary.setdefault(letter, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for word in merged:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    return Tokenizer(models.BPE(vocabulary, merges, byte_fallback=byte_fallback))
