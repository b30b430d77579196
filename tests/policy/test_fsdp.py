"""Ranks that each hold a shard of every tensor take the step of one process, and write and read its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_worlds import World, agree, agree_on_scores, agree_without_rows, same_weights, steps_of, worlds
from safetensors.torch import load_file
from test_learner import rollouts

from coterie.batches.batch import idle_row
from coterie.batches.pack import plan_scoring
from coterie.cluster.sharded_group import ShardedGroup, dealt
from coterie.config.schema import RunConfig
from coterie.errors import CheckpointError, ConfigError, LearnerError, ModelError
from coterie.policy.embedding import embed_prompts
from coterie.policy.sharding import Sharding
from coterie.policy.shared_weights import weights_of
from coterie.policy.tensor_parts import Cut, is_shard, local
from coterie.runs import state_files
from learner_ranks import learner
from tiny_models import tiny_policy


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., World]]:
    with worlds() as begin:
        yield begin


@pytest.fixture(scope="module")
def two(start: Any) -> World:
    return start(2, "fsdp")


CASES: list[Any] = ["plain", "gemma3", "checkpointing", "lora-reference", "lora-continued", "ema", "critic-model"]
CASES += [
    pytest.param(case, marks=pytest.mark.slow)
    for case in ("lora", "entropy", "share", "covariance", "critic", "critic-warmup")
]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one(two: World, case: str) -> None:
    """Ragged rows, of which one rank has more, and a step without rows; a tied embedding in all but one case."""
    group, single = two.learner(case), learner(case)
    agree(group, single, steps_of(single), 1e-10)
    if group.reference is not None and group.reference.copy is not None:
        assert single.reference is not None
        group.reference.renew()
        single.reference.renew()
        agree(group, single, steps_of(single), 1e-10)


def test_a_rank_without_rows_takes_part(two: World) -> None:
    agree_without_rows(two)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_formats_with_fewer_digits_round_and_no_more(two: World, dtype: str) -> None:
    group, single = two.learner(dtype, max_grad_norm=1e9), learner(dtype, max_grad_norm=1e9)
    steps = steps_of(single)
    ours, theirs = group.update(steps).metrics, single.update(steps).metrics
    close = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=close)


def test_a_rank_holds_a_part_of_everything(two: World) -> None:
    """Weights, masters and moments: half of them, up to the rows that do not divide."""
    group, single = two.learner("reference"), learner("reference")
    group.update(steps_of(single)[:1])
    single.update(steps_of(single)[:1])
    for (name, tensors), whole in zip(group.files().items(), single.files().values(), strict=True):
        ours = sum(tensor.numel() for key, tensor in tensors.items() if not key.startswith("step/"))
        theirs = sum(tensor.numel() for key, tensor in whole.items() if not key.startswith("step/"))
        assert 0.5 * theirs <= ours < 0.55 * theirs, name
    assert all(is_shard(parameter) for parameter in group.policy.model.parameters())
    assert group.reference is not None
    assert group.reference.copy is not None
    assert all(is_shard(parameter) for parameter in group.reference.copy.model.parameters())


def test_scores_and_embeddings_are_those_of_one_process(two: World) -> None:
    group, single = two.learner("reference"), learner("reference")
    batches = plan_scoring(rollouts(seed=4), max_tokens_per_microbatch=60)
    agree_on_scores(group, single, batches)
    prompts = [(3, 4, 5), (6, 7)]
    np.testing.assert_allclose(
        embed_prompts(group.policy, prompts), embed_prompts(single.policy, prompts), rtol=1e-12, atol=1e-12
    )


def test_scores_without_the_reference_are_made_up_for(two: World) -> None:
    """Of replayed rollouts, for example: then every row has a pass of the reference, on every rank."""
    group, single = two.learner("reference"), learner("reference")
    steps = steps_of(single)[:1]
    scores = single.score(steps[0]) | single.score(steps[0][:1], with_reference=False)
    ours, theirs = group.update(steps, scores=scores), single.update(steps, scores=scores)
    assert ours.metrics["kl/ref"] == pytest.approx(theirs.metrics["kl/ref"], rel=1e-9)
    same_weights(group.policy, single.policy, 1e-10)


@pytest.mark.parametrize("case", ["lora", "ema", "critic-model", "bfloat16"])
def test_checkpoints_are_those_of_one_process(two: World, tmp_path: Path, case: str) -> None:
    """To the bit where ranks are as many; any strategy resumes any other's up to rounding."""
    (tmp_path / "single").mkdir()
    first, single = two.learner(case), learner(case)
    steps = steps_of(single)
    first.update(steps)
    if first.reference is not None:
        first.reference.renew()
    first.save(tmp_path)
    counters = first.counters()
    expected = first.update(steps).metrics
    after = {name: local(parameter).clone() for name, parameter in first.policy.parameters().items()}
    second = two.learner(case)
    second.load(tmp_path, counters)
    assert second.update(steps).metrics == expected
    for name, parameter in second.policy.parameters().items():
        assert torch.equal(local(parameter), after[name])

    single.load(tmp_path, counters)  # in one process
    single.save(tmp_path / "single")
    for file in single.files():
        ours, theirs = load_file(tmp_path / file), load_file(tmp_path / "single" / file)
        assert set(ours) == set(theirs)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), file
    third = two.learner(case)
    third.load(tmp_path / "single", counters)  # and back
    for name, parameter in third.policy.parameters().items():
        assert is_shard(parameter), name
    if case != "bfloat16":
        agree(third, single, steps, 1e-10)


def test_a_model_is_saved_whole(two: World, tmp_path: Path) -> None:
    for case in ("plain", "lora"):
        group, single = two.learner(case), learner(case)
        for name, policy in (("ours", group.policy), ("theirs", single.policy)):
            policy.save(tmp_path / case / name)
        file = "model.safetensors" if case == "plain" else "adapter_model.safetensors"
        ours, theirs = (load_file(tmp_path / case / name / file) for name in ("ours", "theirs"))
        assert set(ours) == set(theirs)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
        assert (tmp_path / case / "ours/config.json").exists() == (tmp_path / case / "theirs/config.json").exists()
        for key, tensor in weights_of(single.policy).items():  # what vLLM reads, an adapter added to its base
            torch.testing.assert_close(weights_of(group.policy)[key], tensor, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_of_another_model_is_refused(two: World, tmp_path: Path) -> None:
    learner("gemma3").save(tmp_path)
    with pytest.raises(CheckpointError, match="it is of another model, or of another version of coterie"):
        two.learner("plain").load(tmp_path, {})


def test_what_fsdp_cannot_cut_is_refused_by_name(two: World) -> None:
    sharding = two.sharding
    assert sharding is not None
    with pytest.raises(ConfigError, match=r"torch.distributed is in use in this process already"):
        Sharding(two.ranks, torch.device("cpu"))
    mixed = tiny_policy("llama")
    mixed.model.model.norm.float()
    with pytest.raises(ModelError, match=r"formats torch.float32, torch.float64; use cluster.strategy = .replicate"):
        sharding.cut(mixed)
    shared = tiny_policy("llama")
    shared.model.model.layers[1].mlp = shared.model.model.layers[0].mlp
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be cut into shards: its layers share weights"):
        sharding.cut(shared)


def test_settings_that_do_not_go_with_shards_are_refused() -> None:
    for changed, message in (
        (
            {"cluster": {"strategy": "fsdp"}},
            'set cluster.learners = 2 or more with cluster.host = "processes" or "ray"',
        ),
        ({"cluster": {"strategy": "fsdp", "learners": 2}}, 'cluster.host = "local" has none'),
        ({"optim": {"moments": "8bit"}}, 'set optim.moments = "float32"'),
        ({"optim": {"compile_layers": True}}, "optim.compile_layers with cluster.strategy"),
        ({"optim": {"activation_offload": True}}, "use optim.gradient_checkpointing"),
    ):
        cluster = {"strategy": "fsdp", "learners": 2, "host": "processes"}
        with pytest.raises(ValueError, match=message):
            RunConfig.model_validate({"cluster": cluster} | changed)


def test_rows_are_dealt_out_evenly() -> None:
    batches = steps_of(learner("plain"), limit=30)[0]
    parts = dealt(batches, 4)
    assert len({len(part) for part in parts}) == 1
    assert sum(bool(batch.spans) for part in parts for batch in part) == len(batches)
    assert {id(batch) for part in parts for batch in part if batch.spans} == {id(batch) for batch in batches}
    assert [[bool(batch.spans) for batch in part] for part in dealt(batches[:1], 2)] == [[True], [False]]
    assert dealt([], 2) == [[], []]
    assert not len(idle_row().targets)


def test_cuts_are_those_of_torch() -> None:
    for rows in range(1, 9):
        for world in (2, 3, 4):
            chunks = torch.arange(rows).chunk(world)
            ranges = [Cut((rows, 5), world).rows(rank) for rank in range(world)]
            assert [last - first for first, last in ranges if last > first] == [len(chunk) for chunk in chunks]
            assert Cut((rows, 5), world).values(1) == (5 * ranges[1][0], 5 * ranges[1][1])


def test_a_file_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.int16).view(2, 3),
        "b": torch.randn(3, dtype=torch.float64),
        "c": torch.randn(2, 2).bfloat16(),
        "d": torch.zeros(0, 4),
        "e": torch.randn(1),
    }
    asked = []

    def tensor_of(name: str) -> torch.Tensor:
        asked.append(name)
        return tensors[name]

    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    state_files.stream(tmp_path / "whole.safetensors", shapes, tensor_of)
    assert sorted(asked) == sorted(tensors)
    again = state_files.read(tmp_path / "whole.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_its_name(start: Any, two: World) -> None:
    two.close()  # torch has one default group
    group = start(2, "fsdp").learner("plain", "dies")
    with pytest.raises(LearnerError, match=r"learner rank 1 ended by SIGKILL.*coterie resume"):
        group.update(steps_of(group))
    group.close()


@pytest.mark.slow
def test_four_ranks_take_the_steps_of_one(start: Any) -> None:
    world = start(4, "fsdp")
    for case in ("plain", "lora-reference", "critic"):
        group, single = world.learner(case), learner(case)
        assert isinstance(group, ShardedGroup)
        agree(group, single, steps_of(single, limit=30), 1e-10)
    world.close()
