"""Supervised fine-tuning: its gradient and its runs; kills are in tests/faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import coterie
from coterie import launch
from coterie.batches.pack import Packing, continuation, pack
from coterie.config.data import DataConfig
from coterie.config.imitation import SftConfig
from coterie.config.optim import OptimConfig
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat
from coterie.errors import CollapseError, DataError, RunError
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.runs import checkpoint, models
from coterie.runs.metrics import MetricsDB
from coterie.train.demonstrations import Demonstration, read_demonstrations
from coterie.train.sft import IMITATION, imitation
from coterie.types import Rollout
from runs_for_tests import Watch, importable, make_config
from tiny import CHATML, tiny_tokenizer
from tiny_models import tiny_model

FAST = {"steps": 6, "optim": {"lr": 1e-2, "schedule": "cosine", "warmup": 1}, "sft": {"batch_size": 5}}


def rows(count: int = 16) -> list[dict[str, Any]]:
    """Half of them with annotated steps, a few of two turns, some that share a prompt."""
    table: list[dict[str, Any]] = []
    for k in range(count):
        if k % 4 == 3:
            texts = [f"the {k}", "how many", "and the answer?", f"legs {k}"]
            roles = ["user", "assistant"] * 2
            talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            table.append({"messages": talk})
        else:
            table.append(
                {"prompt": f"how {k // 2}", "steps": [f"{k} and", "the answer"], "answer": f"is {k}" * (k % 3 + 1)}
            )
    return table


def write(root: Path, table: list[dict[str, Any]]) -> str:
    path = root / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return str(path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(root: Path, **changed: Any) -> dict[str, Any]:
    """What an SFT run changes of the tiny run's settings."""
    source = {"train": [{"type": "file", "path": write(root, rows())}]}
    return {**FAST, "data": source, **{key: FAST.get(key, {}) | value if isinstance(value, dict) else value for key, value in changed.items()}}  # fmt: skip  # noqa: E501


def config(root: Path, **changed: Any) -> RunConfig:
    return make_config(root, **settings(root, **changed))


# The gradient


def demonstrations(tmp_path: Path, chat: Chat) -> list[Demonstration]:
    data = DataConfig.model_validate({"train": [{"type": "file", "path": write(tmp_path, rows())}]})
    return list(read_demonstrations(data, SftConfig(heldout_share=0), chat, heldout=(), seed=0).train)


def naive_gradient(model: Any, rollouts: list[Rollout]) -> tuple[float, dict[str, torch.Tensor]]:
    """Cross-entropy of the assistant's tokens of one conversation after the other, over all of them."""
    count = sum(rollout.trained_tokens for rollout in rollouts)
    total = 0.0
    model.zero_grad()
    for rollout in rollouts:
        tokens, trained, _ = continuation(rollout)
        ids = torch.tensor([[*rollout.turns[0].prompt_tokens, *tokens.tolist()]])
        labels = torch.full_like(ids, -100)
        labels[0, -len(tokens) :] = torch.where(torch.from_numpy(trained), torch.from_numpy(tokens), -100)
        logits = model(input_ids=ids).logits[0, :-1]
        loss = functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def packed_gradient(
    rollouts: list[Rollout], budget: int, sizes: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], float]:
    """The learner's gradient over packed rows of at most `budget` tokens, and the loss that it reports."""
    policy = Policy(tiny_model("llama", **sizes), name="tiny")
    learner = Learner(policy, optim=OptimConfig(), objective=IMITATION, temperature=1.0, total_steps=1)
    packing = Packing(loss_agg_mode="token-mean", max_tokens_per_microbatch=budget, skip_zero=False)
    (batches,) = pack({rollout.id: rollout for rollout in rollouts}, imitation(rollouts), packing, 0)
    assert (len(batches) > 3) is (budget < 100)
    gradient = learner.gradient(batches)
    return gradient, learner.update([batches], IMITATION).metrics["loss"]


@pytest.mark.parametrize("budget", [40, 100_000])
def test_the_gradient_is_that_of_the_mean_over_all_tokens(tmp_path: Path, budget: int) -> None:
    chat = Chat(tiny_tokenizer())
    rollouts = [demo.rollout for demo in demonstrations(tmp_path, chat)]
    sizes: dict[str, Any] = {"vocab_size": len(chat.tokenizer)}
    loss, expected = naive_gradient(tiny_model("llama", **sizes), rollouts)
    gradient, measured = packed_gradient(rollouts, budget, sizes)
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-6, atol=1e-7)  # Llama's norms round to float32
    assert measured == pytest.approx(loss, rel=1e-7)


def test_the_gradient_is_that_of_trl(tmp_path: Path) -> None:
    """On a template without a newline behind the end of a turn, which TRL would train too."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizer = tiny_tokenizer(template=CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer)}
    table = [
        {
            "prompt": [{"role": "user", "content": f"how many legs {k // 2}"}],
            "completion": [{"role": "assistant", "content": f"the answer is {k} " * (k % 4 + 1)}],
        }
        for k in range(12)
    ]
    data = DataConfig.model_validate({"train": [{"type": "file", "path": write(tmp_path, table)}]})
    settings = SftConfig(heldout_share=0)
    rows = read_demonstrations(data, settings, Chat(tokenizer), heldout=(), seed=0).train
    gradient, loss = packed_gradient([row.rollout for row in rows], 60, sizes)
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=12, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, completion_only_loss=True, max_length=None,
    )  # fmt: skip
    model = tiny_model("llama", **sizes)
    trainer = trl.SFTTrainer(
        model=model, args=args, train_dataset=datasets.Dataset.from_list(table), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)


# Runs


def test_a_run_learns_and_keeps_its_best_checkpoint(root: Path) -> None:
    watch = Watch()
    run = launch.train(config(root, steps=12, checkpoint={"every": 5, "keep": 1}, sft={"heldout_share": 0.2}), watch)
    losses = [step["loss"] for step in watch.steps]
    assert losses[-1] < losses[0] / 2
    assert {"loss/steps", "loss/answer", "epoch", "grad_norm", "lr"} <= watch.steps[0].keys()
    assert [result.step for result in watch.evals] == [0, 3, 6, 9, 12]
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        heldout = dict(database.series("heldout/loss"))
    assert list(heldout) == [0, 3, 6, 9, 12]
    best = min((step for step in heldout if step), key=lambda step: heldout[step])
    assert best in checkpoint.steps(run / "checkpoints")
    assert models.resolve("one@best", root / "runs").step == best
    readme = (run / "README.md").read_text(encoding="utf-8")
    assert "supervised fine-tuning" in readme
    assert "coterie sft @" in readme
    assert "GRPO" not in readme


def test_an_older_best_checkpoint_is_kept(root: Path) -> None:
    """A rate that is far too high: the loss is lowest early. The rule of exploding losses keeps the last but one."""
    wild = config(
        root, steps=9, optim={"lr": 0.5, "schedule": "constant", "warmup": 3}, checkpoint={"every": 1, "keep": 1},
        eval={"every": 1}, sft={"heldout_share": 0.2}, stop={"rules": [{"name": "loss_explodes", "threshold": 99}]},
    )  # fmt: skip
    run = launch.train(wild)
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        best = models.best_step(database, "loss")
    assert best is not None
    assert best < 9
    assert checkpoint.steps(run / "checkpoints") == sorted({best, 8, 9})


def test_an_exploding_loss_ends_the_run_by_name(root: Path) -> None:
    with pytest.raises(CollapseError, match="stop rule loss_explodes: the loss explodes: loss, mean of 5 steps"):
        launch.train(config(root, steps=40, optim={"lr": 3.0, "warmup": 4, "schedule": "constant"}))


def test_epochs_set_the_steps_and_a_rate_is_chosen(root: Path) -> None:
    run = coterie.sft(
        root / "model" if make_config(root) else None, rows(16), name="talks", quiet=True, threads=1,
        sft={"epochs": 1.5, "batch_size": 4, "heldout_share": 0},
    )  # fmt: skip
    assert run.config.steps == 6
    assert run.config.optim.lr == 2e-5
    assert len(run.metrics["loss"]) == 6
    assert not run.evaluations


def test_lora_and_a_longer_run(root: Path) -> None:
    run = launch.train(config(root, steps=3, model={"lora": {"rank": 2}}))
    launch.resume(run, steps=5)
    assert checkpoint.steps(run / "checkpoints")[-1] == 5
    assert (run / "checkpoints/step_000005/model/adapter_config.json").exists()


def test_too_few_rows_and_a_context_too_short(root: Path) -> None:
    with pytest.raises(DataError, match="16 conversations to imitate, fewer than the 17"):
        launch.train(config(root, sft={"batch_size": 17, "heldout_share": 0}))
    table = [*rows(), {"prompt": "how", "completion": "the " * 260}]
    changed = settings(root) | {"data": {"train": [{"type": "file", "path": write(root, table)}]}}
    with pytest.raises(DataError, match=r"talks\.jsonl row 17 has \d+ tokens, more than the model's context of 256"):
        launch.train(make_config(root, **changed))
    assert not (root / "runs" / "one").exists()


def test_best_of_a_run_without_a_measure(root: Path) -> None:
    run = launch.train(config(root, steps=2, sft={"heldout_share": 0}))
    with pytest.raises(RunError, match="has no held-out loss of a later step than 0"):
        models.resolve("one@best", run.parent)


def test_other_rows_are_not_resumed(root: Path) -> None:
    run = launch.train(config(root, steps=2))
    write(root, rows(17))
    with pytest.raises(coterie.CoterieError, match="was made with other prompts, answers or chat template"):
        launch.resume(run, steps=4)
