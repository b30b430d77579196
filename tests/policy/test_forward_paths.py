"""Whatever its layers: log-probs packed and sampled, and the gradient of the update, are those of the model's own code.

Public reports of the opposite: transformers#46093, transformers#33129, slime#1686, ms-swift#9565 (recurrent and
convolution layers over packed sequences; rotary embeddings that switch with the length).
"""

from __future__ import annotations

import copy
import functools
from logging import StreamHandler
from typing import Any

import pytest
import torch
from test_learner import gradient, learner, naive_loss, rollouts
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)
from transformers.utils import logging

from coterie.batches.batch import Segment, unpack
from coterie.config.optim import OptimConfig
from coterie.config.schema import LoraConfig, ModelConfig
from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import EngineError, ModelError
from coterie.policy import fidelity
from coterie.policy.attention import PackedLayout
from coterie.policy.fidelity import choose_path, rope_switch
from coterie.policy.kernels import FlexLayout, choose_kernel, compile_layers
from coterie.policy.model import Policy, load
from coterie.policy.path import Path
from coterie.types import SampleKey, Turn
from tiny_models import SIZES, tiny_model

CPU = torch.device("cpu")
EXACT = 1e-4
"""nats"""

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed

_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 48,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 4.0, 8.0, 16.0],
        "original_max_position_embeddings": 48,
    },
}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_GRANITE: dict[str, Any] = {
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 16,
    "logits_scaling": 3.0,
}
FAMILIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "llama": (LlamaConfig, {}, "packed"),
    "gemma2": (
        Gemma2Config,
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "packed",
    ),
    "gemma3-capped": (
        Gemma3TextConfig,
        {"query_pre_attn_scalar": 8, "sliding_window": 5, "layer_types": _WINDOWS, "final_logit_softcapping": 2.0},
        "packed",
    ),
    "gpt-oss": (GptOssConfig, {"sliding_window": 5, "layer_types": _WINDOWS, "num_local_experts": 4}, "packed"),
    "granite": (GraniteConfig, {"logits_scaling": 1.05, "attention_multiplier": 0.2}, "packed"),
    "cohere": (CohereConfig, {"logit_scale": 0.25}, "packed"),
    "phi3-longrope": (Phi3Config, _LONGROPE, "packed"),
    "qwen3.5": (Qwen3_5TextConfig, _LINEAR, "plain"),
    "qwen3-next": (Qwen3NextConfig, _LINEAR | _EXPERTS | {"num_experts": 4}, "plain"),
    "lfm2": (
        Lfm2Config,
        {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
        "plain",
    ),
    "granite-hybrid": (GraniteMoeHybridConfig, _GRANITE, "plain"),
    "falcon": (FalconConfig, {"alibi": False, "head_dim": None}, "plain"),
    "falcon-alibi": (
        FalconConfig,
        {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
        "plain",
    ),
    "phimoe-window": (PhimoeConfig, {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2}, "plain"),
    "mamba": (
        MambaConfig,
        {"state_size": 8, **dict.fromkeys(("head_dim", "num_attention_heads", "num_key_value_heads"))},
        "plain",
    ),
}


def make(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config_class, shape, _ = FAMILIES[kind]
    config = config_class(**{name: value for name, value in (SIZES | shape | settings).items() if value is not None})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.float().eval()


@functools.cache
def family(kind: str) -> tuple[Any, Policy]:
    """The model on its own, and a policy of the same weights."""
    model = make(kind)
    return copy.deepcopy(model), Policy(model, name=kind, longest=rope_switch(model.config))


def own_logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)


def drawn(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]


def distance(computed: torch.Tensor, expected: torch.Tensor) -> float:
    return float((computed - expected).abs().max())


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_path_is_the_fastest_exact_one(kind: str) -> None:
    _, policy = family(kind)
    assert policy.path.kind == FAMILIES[kind][2]
    assert policy.path.cached
    assert (policy.path.kind == "plain") == any("own forward pass" in note for note in policy.notes)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logprobs_of_a_packed_row_are_the_models_own(kind: str) -> None:
    model, policy = family(kind)
    p, a, b, q, c = drawn(12, 9, 14, 7, 5)
    segments = [
        Segment(start=0, prompt=12, lengths=(9, 0, 14)),
        Segment(start=35, prompt=7, lengths=(5,)),
    ]
    positions = [*range(12), *range(12, 21), *range(12, 26), *range(7), *range(7, 12)]
    layout = PackedLayout(segments, CPU)
    with torch.no_grad():
        states = policy.hidden(torch.tensor([p + a + b + q + c]), torch.tensor([positions]), layout)
        computed = torch.log_softmax(policy.head(states)[0].double(), -1)
    first, second, third = (own_logprobs(model, tokens) for tokens in (p + a, p + b, q + c))
    assert distance(computed[:21], first) < EXACT
    assert distance(computed[21:35], second[12:]) < EXACT
    assert distance(computed[35:], third) < EXACT


class Codec:
    stop_ids = frozenset({2})

    def decode(self, ids: Any) -> str:
        return ""


def sampled(policy: Policy, prompts: list[list[int]], *, slots: int = 4, tokens: int = 12) -> list[Turn]:
    requests = [
        Request(key=SampleKey(seed=0, version=0, prompt=str(number), sample=sample), prompt_tokens=tuple(prompt))
        for number, prompt in enumerate(prompts)
        for sample in range(2)
    ]
    return EmbeddedEngine(policy, Codec(), max_num_seqs=slots).generate(
        requests, Sampling(temperature=1.0, max_tokens=tokens)
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_logprobs_of_sampled_tokens_are_the_models_own(kind: str) -> None:
    model, policy = family(kind)
    turns = sampled(policy, drawn(12, 7, 12))
    assert len(turns) == 6
    for turn in turns:
        expected = own_logprobs(model, [*turn.prompt_tokens, *turn.tokens])[len(turn.prompt_tokens) - 1 :]
        for position, (token, logprob) in enumerate(zip(turn.tokens, turn.sampler_logprobs, strict=True)):
            assert abs(float(expected[position, token]) - logprob) < EXACT


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_of_the_update_is_the_naive_one(kind: str) -> None:
    model, policy = family(kind)
    model.zero_grad()
    items = rollouts(prompts=2, size=3)
    computed = gradient(learner(policy), items)
    naive_loss(model, items, "seq-mean-token-mean").backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert max(float(grad.abs().max()) for grad in expected.values()) > 1e-4
    error = sum(float((computed[name] - grad).square().sum()) for name, grad in expected.items() if name in computed)
    size = sum(float(grad.square().sum()) for grad in expected.values())
    assert {name for name, grad in expected.items() if grad.abs().max() > 1e-6} <= computed.keys()
    assert (error / size) ** 0.5 < EXACT


def test_a_plain_sampler_does_not_depend_on_slots_nor_order() -> None:
    _, policy = family("qwen3.5")
    prompts = drawn(12, 7, 12, 5)
    few, many = sampled(policy, prompts, slots=1), sampled(policy, prompts, slots=64)
    assert [turn.tokens for turn in few] == [turn.tokens for turn in many]


def test_without_an_exact_cache_the_whole_sequence_is_computed_for_every_token() -> None:
    from dataclasses import replace

    _, policy = family("lfm2")
    expected = sampled(policy, drawn(6, 9))
    path = policy.runner.path
    try:
        policy.runner.path = replace(path, cached=False)
        computed = sampled(policy, drawn(6, 9))
    finally:
        policy.runner.path = path
    assert [turn.tokens for turn in computed] == [turn.tokens for turn in expected]


@pytest.mark.parametrize("kind", ["qwen3.5", "mamba"])
def test_lora_and_its_reference_work_on_the_plain_path(kind: str) -> None:
    policy = Policy(make(kind), name=kind, lora=LoraConfig(rank=2, alpha=4))
    items = rollouts(prompts=2, size=3)
    trained = learner(policy, beta=0.1)
    before = gradient(trained, items)
    assert before
    assert all("lora" in name for name in before)
    with policy.without_adapters():
        (turn, *_) = sampled(policy, drawn(6), tokens=3)
    expected = own_logprobs(make(kind), [*turn.prompt_tokens, *turn.tokens])
    assert abs(float(expected[5, turn.tokens[0]]) - turn.sampler_logprobs[0]) < EXACT


def test_a_head_that_prompts_share_is_put_back_in_front_of_each() -> None:
    segments = [Segment(start=3, prompt=2, lengths=(6, 1), head=3), Segment(start=12, prompt=1, lengths=(), head=3)]
    parts = unpack(segments)
    rows = [group.tolist() for group in parts.groups]
    assert rows == [[[0, 1, 2, 12, 12, 12], [0, 1, 2, 3, 4, 11]], [list(range(11))]]
    flat = [index for group in parts.groups for index in group.ravel()]
    assert [flat[index] for index in parts.order] == list(range(13))


def test_states_half_way_up_are_those_of_the_model() -> None:
    model, policy = family("qwen3.5")
    ids = torch.tensor([drawn(8)[0]])
    layout = PackedLayout([Segment(start=0, prompt=8, lengths=())], CPU)
    with torch.no_grad():
        middle = policy.mid_layer_states(ids, torch.arange(8)[None], layout)
        expected = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(middle, expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_switches_its_rotary_embedding_ends_there(tmp_path: Any) -> None:
    model = make("phi3-longrope")
    with pytest.raises(ModelError, match=r"once it is longer than 48 tokens \(longrope\).*longest = 48"):
        Policy(model, name="phi3")
    model.save_pretrained(tmp_path)
    policy = load(ModelConfig(name=str(tmp_path)), tmp_path, dtype=torch.float32, device=CPU)
    assert policy.context == 48
    assert any("beyond 48 tokens" in note for note in policy.notes)
    with pytest.raises(EngineError, match="context of 48"):
        sampled(policy, drawn(40))


def test_an_encoder_is_refused_with_the_remedy_and_works_as_a_decoder() -> None:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    for decoder in (False, True):
        config = BertConfig(**sizes, num_attention_heads=4, max_position_embeddings=64, is_decoder=decoder)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        if not decoder:
            with pytest.raises(ModelError, match=r"is not causal.*is_decoder = true"):
                Policy(model, name="bert")
        else:
            assert Policy(model, name="bert").path.kind in ("packed", "plain")


def test_bfloat16_does_not_hide_capped_logits() -> None:
    model = make("gemma3-capped", final_logit_softcapping=30.0).bfloat16()
    assert choose_path(model).transform.cap == 30.0


def test_the_check_leaves_random_streams_and_weights_alone() -> None:
    model = make("llama")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Policy(model, name="llama")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_what_needs_packed_rows_says_so_on_the_plain_path() -> None:
    _, policy = family("mamba")
    assert choose_kernel(policy).name == "sdpa"
    with pytest.raises(ModelError, match="own attention; use auto"):
        choose_kernel(policy, "flex")
    with pytest.raises(ModelError, match=r"optim\.compile_layers = false"):
        compile_layers(policy)
    assert policy.head_size == 0
    assert policy.cache_bytes() == 0
    assert OptimConfig().attention == "auto"


@pytest.mark.parametrize("kind", ["gemma2", "gpt-oss"])
def test_caps_and_sinks_in_flex_are_those_of_the_plain_calls(kind: str) -> None:
    _, policy = family(kind)
    (tokens,) = drawn(40)
    segments = [Segment(start=0, prompt=12, lengths=(9, 19))]
    positions = torch.tensor([[*range(12), *range(12, 21), *range(12, 31)]])
    parameters = list(policy.parameters().values())
    results = []
    for layout in (PackedLayout(segments, CPU), FlexLayout(segments, CPU)):
        states = policy.hidden(torch.tensor([tokens]), positions, layout)
        weights = torch.linspace(-1, 1, states.numel()).view_as(states)
        results.append([states, *torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True)])
    for expected, computed in zip(*results, strict=True):
        if expected is not None:
            assert distance(computed, expected) < 1e-3 * float(expected.abs().max())


def test_the_probe_of_a_model_leaves_no_warning_of_transformers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hybrid models warn of kernels that are missing, once for each copy that is tried."""
    logger = logging.get_logger("transformers.models.lfm2")
    handler = StreamHandler()  # on the standard error that is captured here
    monkeypatch.setattr(fidelity, "_CHOSEN", {})
    model = tiny_model("llama")

    def choose(*_: Any) -> Path:
        logger.warning("The fast path is not available")
        return Path(kind="packed")

    monkeypatch.setattr(fidelity, "_choose", choose)
    logger.addHandler(handler)
    try:
        assert fidelity.choose_path(model.eval()).kind == "packed"
        assert "fast path" not in capfd.readouterr().err
        logger.warning("The fast path is not available")
        assert "fast path" in capfd.readouterr().err
    finally:
        logger.removeHandler(handler)
