"""Every kind of causal language model in transformers, made tiny and random, and the path that coterie takes for it.

`python tests/architectures.py` writes the table of docs/models.md anew; tests compare both.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from coterie.errors import ModelError
from coterie.policy import attention
from coterie.policy.fidelity import choose_path
from coterie.policy.miniature import build, small

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
ALL: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_DECODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod reformer"
)
_SETTINGS: dict[str, dict[str, Any]] = {
    **{kind: {"is_decoder": True} for kind in _DECODERS.split()},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "xlm": {"causal": True},
    # What transformers' defaults leave open and released models set:
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"] * 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5},
    "nemotron": {"num_key_value_heads": 8},
}
_REASONS = {
    "packing several sequences": "layers with a state or an attention of their own",
    "it stops with": "its code does not take coterie's attention",
    "the logits of one sequence": "its attention needs more than queries, keys and values",
    "tokens decoded one by one": "layers that attend several times to a cache of their own",
    "the gradient is off": "its packed gradient is not its own",
    "it has windows": "no tiny model of it can be made",
}
_REFUSALS = {
    "is not causal": "a token's logits depend on later tokens",
    "cannot be run on token ids alone": "takes more than token ids",
    "cannot be trained exactly": "neither packed nor plain is exact",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one kind of model."""

    kind: str
    path: str
    """packed, plain, refused, or untested where no tiny model can be made."""
    remark: str

    def line(self) -> str:
        return f"| `{self.kind}` | {self.path} | {self.remark} |"


@functools.cache
def tiny(kind: str) -> Any:
    """A tiny random model of this kind.

    Raises:
        Exception: whatever its configuration or its code raises.
    """
    config = CONFIG_MAPPING[kind](**_SETTINGS.get(kind, {}))
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, model_class.config_class):
        config = config.get_text_config()
    model = build(model_class, small(config, switch=64))
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
    return model


def examine(kind: str) -> Row:
    """The row of one kind of model."""
    attention.register()
    remarks = [f"with {name} = {value!r}" for name, value in _SETTINGS.get(kind, {}).items() if name == "is_decoder"]
    try:
        model = tiny(kind)
    except Exception as error:
        return Row(kind, "untested", f"no tiny model can be made: {type(error).__name__}")
    try:
        path = choose_path(model, longest=32)
    except ModelError as error:
        reason = next((text for part, text in _REFUSALS.items() if part in str(error)), str(error))
        return Row(kind, "refused", "; ".join([reason, *remarks]))
    if path.kind == "plain":
        remarks.insert(0, next(text for start, text in _REASONS.items() if path.reason.startswith(start)))
        if not path.cached:
            remarks.append("sampled without a cache")
    if path.ruled:
        remarks.append("score caps or sinks")
    if not path.transform.identity:
        remarks.append("logits capped" if path.transform.cap else "logits scaled")
    return Row(kind, path.kind, "; ".join(remarks))


def table() -> dict[str, Row]:
    """The rows of docs/models.md by kind."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    return {kind: Row(kind, path, remark) for kind, path, remark in rows}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for kind in ALL:
        rows.append(examine(kind))
        tiny.cache_clear()
        print(rows[-1].line(), file=sys.stderr, flush=True)
    count = {path: sum(row.path == path for row in rows) for path in ("packed", "plain", "refused", "untested")}
    heads = ["", ", ".join(f"{number} {path}" for path, number in count.items()) + ".", ""]
    lines = [*heads, "| model_type | path | remark |", "| --- | --- | --- |", *(row.line() for row in rows), ""]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
