"""Evaluation harnesses against the server: lm-eval's local-completions and inspect-ai."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import coterie
from runs_for_tests import make_model
from served_models import tiny_chat
from tiny_models import tiny_model

KEY = "geheim"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("harness") / "tiny")


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with coterie.serve(model, port=0, quiet=True, api_key=KEY, name="tiny", dtype="float32") as endpoint:
        yield endpoint.address


@pytest.mark.filterwarnings("ignore")
def test_lm_eval(model: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-likelihoods are the model's own, several prompts a request; greedy generation up to a stop string."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("aiohttp")  # of lm-eval's extra `api`; bootstrap.py installs lm-eval alone
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    client: Any = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{address}/completions",
        tokenizer=str(model),
        tokenizer_backend="huggingface",
        batch_size=2,
        max_length=200,
        num_concurrent=1,
    )
    pairs = [("how many legs ", "7"), ("the answer is ", "the legs"), ("a", "b")]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)
    ]
    scores = client.loglikelihood(requests)
    tokenizer = tiny_chat().tokenizer
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
    reference = tiny_model("llama", dtype=torch.float32, **ids)
    for (context, continuation), (score, greedy) in zip(pairs, scores, strict=True):
        before, tokens = client._encode_pair(context, continuation)
        with torch.no_grad():
            logprobs = reference(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(tokens)[:, None]).sum().item()
        assert score == pytest.approx(expected, rel=1e-4)
        assert greedy == (logprobs.argmax(-1).tolist() == tokens)
    until = {"until": ["zz", "<|im_end|>"], "max_gen_toks": 6, "do_sample": False}
    generation = Instance(request_type="generate_until", doc={}, arguments=("how many legs", until), idx=0)
    (text,) = client.generate_until([generation])
    assert isinstance(text, str)


@pytest.mark.filterwarnings("ignore")
def test_inspect_ai(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of two samples with a scorer, through its provider for OpenAI-compatible servers."""
    pytest.importorskip("inspect_ai")
    pytest.importorskip("openai")
    from inspect_ai import Task, eval  # ty: ignore[import-not-found]
    from inspect_ai.dataset import Sample  # ty: ignore[import-not-found]
    from inspect_ai.model import get_model  # ty: ignore[import-not-found]
    from inspect_ai.scorer import includes  # ty: ignore[import-not-found]

    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    policy = get_model("openai-api/coterie/tiny", base_url=address, api_key=KEY)
    samples = [Sample(input="how many legs 7?", target="a"), Sample(input="the?", target="b")]
    task = Task(dataset=samples, scorer=includes())
    (log,) = eval(task, model=policy, max_tokens=6, seed=3, log_dir=str(tmp_path), display="none", temperature=0.7)
    assert log.status == "success", log.error
    assert log.samples is not None
    assert [sample.output.stop_reason in ("stop", "max_tokens") for sample in log.samples] == [True, True]
    assert all(sample.output.usage.output_tokens <= 6 for sample in log.samples)
