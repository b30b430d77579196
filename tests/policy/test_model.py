"""Loading: safe, and only architectures whose numbers coterie reproduces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from coterie.batches.batch import Segment
from coterie.config.schema import LoraConfig, ModelConfig
from coterie.errors import ModelError
from coterie.policy.attention import PackedLayout
from coterie.policy.model import Policy, load
from tiny_models import KINDS, tiny_model, tiny_policy

CPU = torch.device("cpu")


def read(folder: Path, **settings: object) -> Policy:
    config = ModelConfig(name=str(folder), **settings)  # ty: ignore[invalid-argument-type]
    return load(config, folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_are_the_models_own(kind: str) -> None:
    model, policy = tiny_model(kind), tiny_policy(kind)
    prompt, first, second = [5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18, 19, 20, 21]
    layout = PackedLayout([Segment(start=0, prompt=6, lengths=(3, 8))], torch.device("cpu"))
    tokens = torch.tensor([prompt + first + second])
    positions = torch.tensor([[*range(6), *range(6, 9), *range(6, 14)]])
    logits = policy.head(policy.hidden(tokens, positions, layout))[0]
    alone = [model(input_ids=torch.tensor([prompt + rest]), use_cache=False).logits[0] for rest in (first, second)]
    torch.testing.assert_close(logits[:9], alone[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits[9:], alone[1][6:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rests", [[[7, 8], [9, 10, 11]], [[7], [8, 9, 10, 11, 12, 13]]], ids=["alike", "unlike"])
def test_a_head_that_prompts_share_changes_nothing(kind: str, rests: list[list[int]]) -> None:
    """Neither what is said after it nor any gradient, whether the rests are computed at once or one by one."""
    policy = tiny_policy(kind, dtype=torch.float64)
    head, answers = [3, 4, 5, 6], [[[20, 21, 22], [23]], [[24, 25]]]
    tokens, positions, segments, whole = list(head), list(range(4)), [], []
    for rest, completions in zip(rests, answers, strict=True):
        lengths = tuple(map(len, completions))
        segments.append(Segment(start=len(tokens), prompt=len(rest), lengths=lengths, head=4))
        prompt = head + rest
        positions += range(4, len(prompt))
        tokens += rest
        for completion in completions:
            whole.append((len(tokens), prompt, completion))
            positions += range(len(prompt), len(prompt) + len(completion))
            tokens += completion
    packed = policy.hidden(torch.tensor([tokens]), torch.tensor([positions]), PackedLayout(segments, CPU))[0]
    parts, alone = [], []
    for start, prompt, completion in whole:
        layout = PackedLayout([Segment(start=0, prompt=len(prompt) + len(completion), lengths=())], CPU)
        ids = torch.tensor([prompt + completion])
        alone.append(policy.hidden(ids, torch.arange(ids.shape[1])[None], layout)[0, len(prompt) :])
        parts.append(packed[start : start + len(completion)])
    got, want = torch.cat(parts), torch.cat(alone)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    parameters = list(policy.parameters().values())
    gradients = [
        torch.autograd.grad((logprobs * weights).sum(), parameters, allow_unused=True) for logprobs in (got, want)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_way_up_the_other_half_is_not_run(kind: str) -> None:
    model, policy = tiny_model(kind), tiny_policy(kind)
    tokens, positions = torch.tensor([[5, 6, 7, 8]]), torch.arange(4)[None]
    layout = PackedLayout([Segment(start=0, prompt=4, lengths=())], CPU)
    before = policy.hidden(tokens, positions, layout)
    ran: list[int] = []
    for number, layer in enumerate(policy.decoder.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        middle = policy.mid_layer_states(tokens, positions, layout)
        states = model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    half = len(policy.decoder.layers) // 2
    assert ran == list(range(half))
    torch.testing.assert_close(middle, states[half], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(policy.hidden(tokens, positions, layout), before, atol=0, rtol=0)


def test_saved_and_read_again_it_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    policy = read(folder)
    policy.save(tmp_path / "copy")
    again = read(tmp_path / "copy")
    for name, parameter in policy.parameters().items():
        assert torch.equal(parameter, again.parameters()[name])


def test_an_adapter_folder_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    policy = read(folder, lora=LoraConfig(rank=2, alpha=4))
    assert all("lora" in name for name in policy.parameters())
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.05)
    policy.save(tmp_path / "adapter")
    merged = read(tmp_path / "adapter")
    layout = PackedLayout([Segment(start=0, prompt=4, lengths=())], torch.device("cpu"))
    tokens, positions = torch.tensor([[5, 6, 7, 8]]), torch.arange(4)[None]
    torch.testing.assert_close(
        merged.hidden(tokens, positions, layout), policy.hidden(tokens, positions, layout), atol=1e-4, rtol=1e-4
    )


def test_pickled_weights_are_refused_with_the_remedy(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model\.bin\).*convert them to safetensors"):
        read(folder)


def test_repository_code_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    facts = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    path.write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="asks to run code from the model folder"):
        read(folder)


def test_a_folder_without_a_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        read(tmp_path)


def test_an_unknown_name_says_what_is_possible() -> None:
    with pytest.raises(ModelError, match=r"cannot load the model 'no-such-folder'.*coterie assets ls"):
        load(ModelConfig(name="x"), "no-such-folder", dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_rounds_badly_is_judged_in_float32_and_not_changed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind, dtype=torch.bfloat16)
    before = {
        name: (tensor.dtype, tensor.clone()) for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    monkeypatch.setattr("coterie.policy.model.ROUNDED", 0.0)
    Policy(model, name="rounded")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        dtype, bits = before[name]
        assert tensor.dtype == dtype
        assert torch.equal(tensor, bits)


def test_an_architecture_without_pluggable_positions_is_refused_or_right() -> None:
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    try:
        policy = Policy(model, name="gpt2")
    except ModelError as error:
        assert "GPT2LMHeadModel" in str(error)  # noqa: PT017
        return
    assert policy.context == 64


def test_the_reference_needs_adapters() -> None:
    with pytest.raises(ModelError, match="without_adapters needs LoRA"), tiny_policy().without_adapters():
        pass


def test_missing_weights_are_never_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*layers\.1\.mlp\.up_proj\.weight.*random numbers"):
        read(folder)


def test_a_damaged_weight_file_is_named(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot load the model"):
        read(folder)


def test_generation_settings_that_transformers_will_not_save_do_not_lose_a_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]}')
    read(folder).save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["eos_token_id"] == [2, 3]


def test_lora_targets_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"does not fit this model.*all-linear"):
        read(folder, lora=LoraConfig(targets=["nothing_like_this"]))
    with pytest.raises(ModelError, match="names the head"):
        read(folder, lora=LoraConfig(targets=["lm_head"]))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=3, alpha=4), r"made with model\.lora\.rank = 2, and the settings say model\.lora\.rank = 3"),
        (LoraConfig(rank=2, alpha=5), r"made with model\.lora\.alpha = 4.0, and .* model\.lora\.alpha = 5.0"),
        (LoraConfig(rank=2, alpha=4, targets=["v_proj"]), r"model\.lora\.targets = \["),
        (LoraConfig(rank=2, alpha=4), r"leaves \d+ linear layers .* set model\.lora\.targets = \[\"q_proj\"\]"),
    ],
    ids=["rank", "alpha", "targets", "all of them"],
)
def test_an_adapter_is_trained_further_as_it_was_made_or_not_at_all(
    folder: Path, tmp_path: Path, lora: LoraConfig, message: str
) -> None:
    targets: Any = ["q_proj"] if "leaves" in message else "all-linear"
    read(folder, lora=LoraConfig(rank=2, alpha=4, targets=targets)).save(tmp_path / "adapter")
    with pytest.raises(ModelError, match=message):
        read(tmp_path / "adapter", lora=lora)


def test_the_reference_of_an_adapter_that_goes_on_is_its_beginning(folder: Path, tmp_path: Path) -> None:
    first = read(folder, lora=LoraConfig(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in first.parameters().values():
            parameter.add_(0.05)
    first.save(tmp_path / "adapter")
    policy = read(tmp_path / "adapter", lora=LoraConfig(rank=2, alpha=4))
    layout = PackedLayout([Segment(start=0, prompt=4, lengths=())], CPU)
    inputs = torch.tensor([[5, 6, 7, 8]]), torch.arange(4)[None], layout
    before = policy.hidden(*inputs)
    assert policy.parameters().keys() == first.parameters().keys()
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(1.5)
    after = policy.hidden(*inputs)
    assert not torch.equal(after, before)
    with torch.no_grad(), policy.without_adapters():
        torch.testing.assert_close(policy.hidden(*inputs), before, atol=0, rtol=0)
    loss = policy.hidden(*inputs).sum()  # a pass of the reference between the two halves of a step harms no gradient
    with torch.no_grad(), policy.without_adapters():
        policy.hidden(*inputs)
    loss.backward()
    gradients = [parameter.grad for parameter in policy.parameters().values()]
    policy.model.zero_grad()
    policy.hidden(*inputs).sum().backward()
    for gradient, parameter in zip(gradients, policy.parameters().values(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, atol=0, rtol=0)
    torch.testing.assert_close(policy.hidden(*inputs), after, atol=0, rtol=0)


def test_an_adapter_of_another_model_is_told(folder: Path, tmp_path: Path) -> None:
    read(folder, lora=LoraConfig(rank=2, alpha=4)).save(tmp_path / "adapter")
    tiny_model(dtype=torch.float32, hidden_size=24, num_attention_heads=3, num_key_value_heads=1).save_pretrained(
        folder
    )
    with pytest.raises(ModelError, match=r"the adapter .*adapter cannot be put on LlamaForCausalLM: "):
        read(tmp_path / "adapter")
