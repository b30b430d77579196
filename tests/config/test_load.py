"""Layers, their precedence and sources, the grammar of the command line, and every kind of bad input."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from coterie.config.keys import parse_text, settings
from coterie.config.load import Loaded, load, load_file, parse_args
from coterie.errors import ConfigError

GYM = ["--data.train.0.type", "reasoning_gym", "--data.train.0.name", "leg_counting"]


def at(*words: str, env: dict[str, str] | None = None) -> Loaded:
    return load(words, env or {})


def refusal(*words: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        at(*words, env=env)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str | bytes, name: str = "a.toml") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def test_defaults_need_nothing():
    loaded = at()
    assert loaded.config.optim.lr == 1e-6
    assert set(loaded.provenance.values()) == {"default"}


def test_precedence_and_provenance(toml):
    first = toml("steps = 1\nseed = 1\nthreads = 1\n[optim]\nlr = 1e-3\nwarmup = 1", "one.toml")
    second = toml("seed = 2\nthreads = 2\n[optim]\nwarmup = 2", "two.toml")
    env = {"COTERIE_THREADS": "3", "COTERIE_OPTIM__WARMUP": "3", "COTERIE_HOME": "/x", "HOME": "/y"}
    loaded = at("--optim.warmup", "4", "@", first, f"@{second}", "optim.warmup=5", env=env)
    config, source = loaded.config, loaded.provenance
    assert (config.steps, config.seed, config.threads, config.optim.warmup) == (1, 2, 3, 5)
    assert config.optim.lr == 1e-3
    assert source["steps"] == source["optim.lr"] == first
    assert source["seed"] == second
    assert source["threads"] == "COTERIE_THREADS"
    assert source["optim.warmup"] == "optim.warmup=5"
    assert source["optim.eps"] == "default"


@pytest.mark.parametrize(
    "words",
    [
        ["--optim.max-grad-norm", "2"],
        ["--optim.max_grad_norm=2.0"],
        ["optim.max_grad_norm=2"],
        ["optim.max-grad-norm=2e0"],
    ],
)
def test_ways_to_write_one_setting(words):
    assert at(*words).config.optim.max_grad_norm == 2.0


@pytest.mark.parametrize("how", [["@"], ["--config"], None])
def test_ways_to_name_a_file(toml, how):
    file = toml("steps = 7")
    words = [f"--config={file}"] if how is None else [*how, file]
    assert at(*words).config.steps == 7


def test_folder_stands_for_its_config(toml, tmp_path):
    toml("steps = 7", "config.toml")
    assert at("@", str(tmp_path)).config.steps == 7
    assert load_file(tmp_path).config.steps == 7


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--objective.mask-truncated"], True),
        (["--objective.mask-truncated", "false"], False),
        (["--objective.mask-truncated=off"], False),
        (["--no-objective.mask-truncated"], False),
        (["--objective.no-mask-truncated", "--steps", "3"], False),
        (["--no-objective.mask-truncated", "--objective.mask-truncated"], True),
    ],
)
def test_booleans(words, value):
    assert at(*words).config.objective.mask_truncated is value


def test_text_is_read_by_the_type_of_the_field():
    config = at("--optim.lr", "1e-6", "--steps", "1e3", "--model.name", "7", "--data.system", "None").config
    assert (config.optim.lr, config.steps, config.model.name, config.data.system) == (1e-6, 1000, "7", None)


def test_json_lists_and_tables():
    config = at("--sampling.stop", '["a", "b"]', "--optim", '{"lr": 0.5}', "--model.lora", "{}").config
    assert config.sampling.stop == ["a", "b"]
    assert config.optim.lr == 0.5
    assert config.model.lora is not None
    assert config.model.lora.rank == 16


def test_none_undoes_a_lower_layer(toml):
    lora, off = toml("[model.lora]\nrank = 4", "lora.toml"), toml('model.lora = "none"', "off.toml")
    assert at("@", lora).config.model.lora is not None
    by_flag, by_file = at("@", lora, "--model.lora", "none"), at("@", lora, "@", off)
    assert by_flag.config.model.lora is None
    assert by_file.config.model.lora is None
    assert by_file.provenance["model.lora"] == off


def test_list_items_by_index(toml):
    file = toml('[[data.train]]\ntype = "file"\npath = "x"\n[[data.train]]\ntype = "file"\npath = "y"')
    loaded = at("@", file, "--data.train.1.path", "z", "--sampling.stop", '["a"]', "--sampling.stop.1", "b")
    paths = [source.path for source in loaded.config.data.train if source.type == "file"]
    assert paths == [str(Path(file).with_name("x")), str(Path.cwd() / "z")]
    assert loaded.config.sampling.stop == ["a", "b"]
    assert loaded.provenance["data.train.0.path"] == file
    assert loaded.provenance["data.train.1.path"] == "--data.train.1.path"
    assert loaded.provenance["sampling.stop"] == "--sampling.stop.1"


def test_index_reaches_the_default_list_and_appends():
    loaded = at(*GYM, "--rewards.functions.0.weight", "2", "--rewards.functions.1.name", "format")
    assert [(part.name, part.weight) for part in loaded.config.rewards.functions] == [
        ("task", 2.0),
        ("format", 1.0),
    ]
    assert loaded.provenance["rewards.functions.0.name"] == "default"


def test_lists_replace_and_tables_merge(toml):
    first = toml('[[data.train]]\ntype = "file"\npath = "x"\n[[data.train]]\ntype = "file"\npath = "y"', "one.toml")
    second = toml('[[data.train]]\ntype = "reasoning_gym"\nname = "n"\n[data.train.params]\na = 1', "two.toml")
    loaded = at("@", first, "@", second, "--data.train.0.params.max-animals", "3", "--data.train.0.params.word", "hi")
    assert loaded.config.model_dump()["data"]["train"] == [
        {
            "type": "reasoning_gym",
            "name": "n",
            "size": 1000,
            "seed": 0,
            "params": {"a": 1, "max_animals": 3, "word": "hi"},
            "task": None,
            "instruction": "",
            "after": 0,
            "until": None,
        }
    ]
    assert loaded.provenance["data.train.0.params.a"] == second
    assert first not in loaded.provenance.values()


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b""])
def test_byte_order_mark_and_windows_lines(toml, prefix):
    config = at("@", toml(prefix + b'steps = 3\r\n[model]\r\nname = "m"\r\n')).config
    assert (config.steps, config.model.name) == (3, "m")


def test_resolved_settings_reproduce(toml):
    from coterie.config.toml import dumps

    shape = ("--data.train.0.params.x", "[1, 2]", "--model.lora.rank", "3", "--optim.lr", "3e-5")
    parts = ("--rewards.functions", '[{"name": "exact"}, {"name": "call_useful", "gate": true}]')
    loaded = at(*GYM, *shape, *parts, "--runs", "out")
    again = load_file(Path(toml(dumps(loaded.config.model_dump()))))
    assert again.config == loaded.config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "3"], "unknown setting optim.lrr (from --optim.lrr); did you mean optim.lr?"),
        (["--lr=3"], "unknown setting lr (from --lr); did you mean optim.lr?"),
        (["--num-generations", "8"], "did you mean collect.group_size?"),
        (["--optm.lr", "1"], "did you mean optim.lr?"),
        (["--qqqq"], "unknown setting qqqq (from --qqqq)"),
        (["--optim.lr", "abc"], "optim.lr = 'abc' (from --optim.lr): expected a number"),
        (["--steps=1.5"], "steps = '1.5' (from --steps): expected an int"),
        (["--steps", "0"], "steps = 0 (from --steps): expected at least 1"),
        (["--optim.lr", "0"], "optim.lr = 0.0 (from --optim.lr): expected more than 0"),
        (["--optim.beta1", "1"], "expected less than 1"),
        (["--data.max-bad-share", "2"], "expected at most 1"),
        (["--optim.lr", "nan"], "optim.lr = NaN (from --optim.lr): expected a finite number"),
        (
            ["--model.dtype", "bf16"],
            "expected one of auto, bfloat16, float32, float64; did you mean 'bfloat16'?",
        ),
        (["--objective.mask-truncated=maybe"], "expected true or false"),
        (["--sampling.stop", "x"], "sampling.stop = 'x' (from --sampling.stop): expected a list"),
        (["--sampling.stop", "[1]"], "expected a string"),
        (["--optim", "3"], "optim = '3' (from --optim): expected a table"),
        (
            ["--model.lora.targets", "q,v"],
            "model.lora.targets = 'q,v' (from --model.lora.targets): expected a list or",
        ),
        (["--data.train.0.type", "fil"], "data.train.0.type = 'fil'"),
        (["--data.train.0.type", "fil"], "did you mean 'file'?"),
        (
            ["--data.train.0.path", "x"],
            "data.train.0.type is missing (from --data.train.0.path): expected one of",
        ),
        (
            ["--data.train.0.type", "file"],
            "data.train.0.path is missing (from --data.train.0.type): Path of the file or folder.",
        ),
        (
            [*GYM, "--data.train.0.limit", "3"],
            "unknown setting data.train.0.limit in a source of type 'reasoning_gym'",
        ),
        (
            ["--rewards.functions.5.name", "x"],
            "rewards.functions has no item 5 (from --rewards.functions.5.name): it has 1 item(s)",
        ),
        (["--eval.k", "9"], "eval.samples, which is 4 (eval.k from --eval.k; eval.samples from default)"),
        (["--optim.minibatches", "100"], "optim.minibatches from --optim.minibatches"),
        (["--steps"], "--steps needs a value; the command line ends"),
        (["--steps", "--seed", "1"], "--steps needs a value; the command line goes on with --seed"),
        (["@"], "@ needs a file"),
        (["stray"], "'stray' is not a setting: expected @ FILE.toml, --key value or key=value"),
        (["mine.toml"], "did you mean @ mine.toml?"),
        (["--model.name", "\udc80"], "model.name = '\\udc80' (from --model.name): expected text in UTF-8"),
        (["--optim", "[" * 100_000], "expected a table"),
    ],
)
def test_bad_words(words, message):
    assert message in refusal(*words)


def test_all_problems_of_all_sources_are_told_at_once(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('steps = "many"\n[optim]\nlr = -1\n[sampling]\nbeam = 3\n', encoding="utf-8")
    message = refusal(
        *("@", str(file), "num_generations=5", "--loss_type", "dapo", "--algorithm", "dappo"),
        *("--seed", "x", "stray", "--collect.prompts-per-step=0", "--data.train.3.size", "4", "--eval.every"),
        env={"COTERIE_OPTM__LR": "1"},
    )
    expected = [
        "'stray' is not a setting",
        "--eval.every needs a value; the command line ends",
        "did you mean dapo or dppo? (from --algorithm)",
        "unknown setting optm.lr (from COTERIE_OPTM__LR); did you mean optim.lr?",
        "unknown setting num_generations (from num_generations=5)",
        "unknown setting loss_type (from --loss_type)",
        "data.train has no item 3",
        "seed = 'x' (from --seed): expected an int",
        f"steps = 'many' (from {file}): expected an int",
        "collect.prompts_per_step = 0 (from --collect.prompts-per-step): expected at least 1",
        f"optim.lr = -1 (from {file}): expected more than 0",
        f"unknown setting sampling.beam (from {file})",
    ]
    for text in expected:
        assert text in message
    assert len(message.splitlines()) == len(expected)


def test_a_missing_file_is_told_with_the_flags_problems_but_not_with_what_it_may_hold(tmp_path):
    message = refusal("@", str(tmp_path / "no.toml"), "beam=3", "eval.k=9")
    assert len(message.splitlines()) == 2
    assert "no.toml does not exist" in message
    assert "unknown setting beam" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"steps = 1\nsteps = 2\n",
            "a key or table is given twice: cannot overwrite a value (at line 2, column 10)",
        ),
        (b"[optim]\n[optim]", "a key or table is given twice"),
        (b"steps = = 3", "is not valid TOML: Invalid value (at line 1, column 9)"),
        (b"steps = 3\nname = 'caf\xe9'", "is not UTF-8: byte 0xe9 in line 2 (Latin-1?); save it as UTF-8"),
        ("steps = 3".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nests its values too deeply"),
        (b"optim.lr = '1e-6'", "optim.lr = '1e-6' (from "),
        (b"optim.lr = '1e-6'", "expected a number; write it without quotes"),
        (b"steps = 3.0", "steps = 3.0 (from "),
        (b"objective.mask_truncated = 1", "expected true or false"),
        (b"name = 2026-01-01", "a date is not expected here; quote it"),
        (b"optim.lr = inf", "expected a finite number"),
        (b"[optimm]\nlr = 1", "unknown setting optimm (from "),
        (b"[optimm]\nlr = 1", "did you mean optim?"),
        (b"data.train = {type = 'file', path = 'x'}", "expected a list"),
        (b"optim = 3", "expected a table"),
        (b"[[optim]]\nlr = 1.0", "expected a table"),
        (b"steps = " + b"9" * 5000, "is not valid TOML"),
    ],
)
def test_bad_files(toml, text, message):
    file = toml(text)
    problem = refusal("@", file)
    assert message in problem
    assert file in problem


def test_every_problem_is_reported_on_its_own_line(toml):
    file = toml('steps = "x"\n[optim]\nlr = -1.0\nlrr = 2\n')
    lines = refusal("@", file, "--eval.samples", "0").splitlines()
    assert [line.split()[0] for line in lines] == ["steps", "optim.lr", "unknown", "eval.samples"]


def test_missing_file_names_its_neighbours(toml, tmp_path):
    toml("", "reading.toml")
    assert "did you mean" in refusal("@", str(tmp_path / "readin.toml"))
    assert "reading.toml" in refusal("@", str(tmp_path / "readin.toml"))
    assert "does not exist" in refusal("@", str(tmp_path))


def test_other_formats_and_huge_files_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-6")
    assert "settings are TOML" in refusal("--config", str(tmp_path / "a.yaml"))
    with (tmp_path / "big.toml").open("wb") as big:
        big.truncate(5 << 20)
    assert "larger than" in refusal("@", str(tmp_path / "big.toml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(toml):
    file = toml("steps = 1")
    Path(file).chmod(0)
    assert "cannot be read: Permission denied" in refusal("@", file)


def test_bad_variables():
    assert "unknown setting optim.lrr (from COTERIE_OPTIM__LRR)" in refusal(env={"COTERIE_OPTIM__LRR": "1"})
    assert "steps = 'x' (from COTERIE_STEPS)" in refusal(env={"COTERIE_STEPS": "x"})


@pytest.mark.parametrize("key", [key for key in settings() if "*" not in key])
def test_every_key_misspelt_or_retyped_is_an_error(key):
    assert "unknown setting" in refusal(f"--{key}x", "1")
    setting = settings()[key]
    if setting.expected.startswith(("str", "list", "table")):
        return
    assert f"{key} = 'garbage'" in refusal(f"--{key}=garbage")


@effort(max_examples=40)
@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_words_load_or_are_refused_cleanly(words):
    with suppress(ConfigError):
        at(*words)


@given(st.text(max_size=20))
def test_text_for_a_text_field_stays_text(text):
    assert parse_text(text, str) == text


def test_parse_keeps_order():
    files, flags = parse_args(["steps=1", "@", "a.toml", "--steps", "2", "@b.toml"])
    assert [str(file) for file in files] == ["a.toml", "b.toml"]
    assert [flag.value for flag in flags] == ["1", "2"]


def test_eval_k_follows_eval_samples_where_only_these_are_set() -> None:
    assert load(["--eval.samples", "2"]).config.eval.k == 2
    assert load(["--eval.samples", "9"]).config.eval.k == 4
    assert load([]).config.eval.k == 4
    with pytest.raises(ConfigError, match=r"eval.k = 4 needs at least as many eval.samples, which is 2"):
        load(["--eval.samples", "2", "--eval.k", "4"])
