"""What the pages show as settings and commands is read by the code that would read it from a user."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import PAGES, ROOT, Block, blocks, load_module, section, write_files

from coterie.cli.main import app
from coterie.cli.options import split_target
from coterie.cli.sample import settings_of
from coterie.config.data import ReasoningGymSource, Source
from coterie.config.keys import bare, is_section
from coterie.config.load import load
from coterie.config.pipeline import load_pipeline
from coterie.config.schema import RunConfig
from coterie.config.user_functions import search_in, user_function
from coterie.data import assets, tasks
from coterie.envs.registry import environment_for
from coterie.rewards import registry
from coterie.stages.pipeline import Pipeline
from coterie.sweep.grid import cells, parse_arms, parse_seeds, parse_vary

FACTS = "geonames-facts"
"""The asset that recipes search, checked where it has been fetched, as is what asks about it."""
QUESTIONS = ("coterie.data.geonames:questions", "episodes:worked", "library:rows", "library:worked")
SETTINGS_VERBS = ("demo", "train", "sft", "distill", "eval", "drift", "rollout", "validate", "print")
RECIPES = sorted((ROOT / "recipes").glob("*/config.toml"))
PIPELINES = sorted((ROOT / "recipes").glob("*/pipeline.toml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with every file that the pages show."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def sources(config: RunConfig) -> list[Source]:
    return [*config.data.train, *config.data.heldout]


def check_names(config: RunConfig) -> None:
    """Every reward, asset and own function that a configuration names is really there."""
    search_in(config.module_path)
    for part in (*config.rewards.functions, *config.rewards.steps):
        if ":" in part.name:
            user_function(part.name)  # imports its module, which a reward worker would find by its own path
    for part in config.rewards.functions:
        if part.name != "math" and part.name != "task":
            registry.load(part.name, part.params)
        assert registry.target(part.name)
    targets = (config.objective.loss, config.advantage.baseline, config.grouping.preset, config.grouping.key or "")
    for target in targets:
        if ":" in target:
            user_function(target)
    if FACTS not in str(config.environment.params) or assets.locate(FACTS) is not None:
        environment_for(config.environment)
    for step in config.rewards.steps:
        registry.load(step.name, step.params, steps=True)
    for source in sources(config):
        if source.type == "asset":
            assert source.name in assets.ASSETS
        if source.type == "python":
            function = user_function(source.target)
            if source.target not in QUESTIONS or assets.locate(FACTS) is not None:
                assert list(function(**source.params))


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_settings_load(block: Block, folder: Path) -> None:
    (folder / "block.toml").write_text(block.text, encoding="utf-8")
    if block.note.startswith("pipeline"):
        pipeline = Pipeline(config=load_pipeline(folder / "block.toml")[0], place=folder)
        for stage in pipeline.config.stage:
            check_names(pipeline.config_of(stage))
        return
    config = load(["@", "block.toml"], env={}).config
    if block.note == "sketch":
        return  # it names servers that are nowhere
    check_names(config)
    if block.note != "fragment":
        assert config.data.train, "a whole file trains on something; mark a part of one as `toml fragment`"
        assert config.data.heldout


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_recipes_load_and_have_a_page(file: Path) -> None:
    config = load(["@", str(file)], env={}).config
    check_names(config)
    page = (file.parent / "README.md").read_text(encoding="utf-8")
    assert f"recipes/{file.parent.name}/config.toml" in page
    assert f"({file.parent.name}/README.md)" in (ROOT / "recipes/README.md").read_text(encoding="utf-8")
    for source in sources(config):
        assert f"`{getattr(source, 'name', source.type)}`" in page
        if isinstance(source, ReasoningGymSource):
            assert len(list(tasks.items(source.name, source.params, 2, source.seed))) == 2


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.parent.name)
def test_pipelines_of_recipes_load_and_have_a_page(file: Path) -> None:
    pipeline = Pipeline(config=load_pipeline(file)[0], place=file.parent)
    for stage in pipeline.config.stage:
        check_names(pipeline.config_of(stage))
    for evaluation in pipeline.config.evaluation:
        config = pipeline.config.evaluation_config(evaluation, file.parent)
        check_names(config)
        assert config.data.heldout
    assert f"recipes/{file.parent.name}/pipeline.toml" in (file.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every command in a ```sh block, with what is written before `coterie`."""
    command_lines = []
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                command_lines.append((f"{block} {line}", words))
    return command_lines


@pytest.mark.parametrize("words", [pytest.param(words, id=where) for where, words in commands()])
def test_commands_are_understood(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    while re.fullmatch(r"COTERIE_\w+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    if words[0] in ("python", "python3"):
        check_script(words)
    else:
        assert words[0] == "coterie"
        check_coterie(words[1:])


def check_script(words: list[str]) -> None:
    """`python3 bootstrap.py VERB`, a file of the repository, or one that a page shows."""
    assert (ROOT / words[1]).is_file() or Path(words[1]).is_file()
    if words[1] == "bootstrap.py":
        assert words[2] in load_module(ROOT / "bootstrap.py").EXTRAS


def check_coterie(words: list[str]) -> None:
    """The command line takes the words, and the settings among them load."""
    command: Any = typer.main.get_command(app)
    verb = ""
    while hasattr(command, "commands") and not (command.invoke_without_command and words[:1] != ["export"]):
        verb = words.pop(0)
        assert verb in command.commands, f"{verb} is no verb; there are {', '.join(command.commands)}"
        command = command.commands[verb]
    if "--help" in words or "--help-all" in words:
        return
    context = command.make_context(verb, list(words))  # refuses unknown options and missing arguments
    if verb in SETTINGS_VERBS:
        target, settings = split_target(context.args) if verb in ("eval", "drift", "rollout") else (None, context.args)
        config = load([*settings_of(target), *settings]).config
        check_names(config)
        assert config.data.train or verb == "demo"
    if verb == "sweep":
        given = context.params
        for cell in cells(parse_vary(given["vary"]), parse_seeds(given["seeds"])[:1], parse_arms(given["arm"])):
            check_names(load([*context.args, *cell.words()]).config)


def test_every_verb_is_in_the_table() -> None:
    command: Any = typer.main.get_command(app)
    table = section(ROOT / "README.md", "Command line")
    assert set(re.findall(r"`coterie ([a-z]+)", table)) == set(command.commands)
    for verb in ("assets", "board", "config"):
        for below in command.commands[verb].commands:
            assert re.search(rf"`(coterie )?({verb} )?{below}\b", table), f"{verb} {below}"


def test_every_section_is_on_the_page() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    table = section(ROOT / "docs/configuration.md", "Sections")
    for name, field in RunConfig.model_fields.items():
        plain = not is_section(bare(field.annotation))
        assert (f"`{name}`" if plain else f"`[{name}]`") in table, name
    assert "COTERIE_" in text


def test_settings_named_in_prose_exist() -> None:
    """`objective.kl_beta` and the like, in code spans on any page."""
    tables = "|".join(
        name for name, field in RunConfig.model_fields.items() if hasattr(field.annotation, "model_fields")
    )
    keys = load([], env={}).provenance.keys() | {"model.lora", "model.revision", "data.train", "data.heldout"}
    keys |= {"rewards.functions", "data.system"}
    for page in PAGES:
        spans = re.findall(rf"`((?:{tables})\.[a-z_0-9.]+)", page.read_text(encoding="utf-8"))
        for key in spans:
            assert key in keys or key.startswith("data.train.0") or key.endswith(".py"), f"{page.name}: {key}"
