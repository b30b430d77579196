"""Where settings point: relative to the file that names them, wherever the program is started."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.config.keys import leaves
from coterie.config.load import load, load_file
from coterie.config.paths import FUNCTIONS, MODELS, PATHS, hashed, portable
from coterie.config.schema import RunConfig
from coterie.config.toml import dumps
from coterie.config.user_functions import search_in, user_function
from coterie.errors import ConfigError

FILE = """
runs = "runs"
[model]
name = "modelle/größe 2"
[grouping]
preset = "empirical_bayes"
embedding = "encoder"
key = "mine.keys:key"
[[data.train]]
type = "file"
path = "../data/train.jsonl"
[[data.train]]
type = "python"
target = "questions:rows"
[[data.train]]
type = "hub"
name = "open-r1/maths"
[[data.train]]
type = "reasoning_gym"
name = "chain_sum"
[[data.heldout]]
type = "file"
path = "~/held.jsonl"
[[rewards.functions]]
name = "rewards:near"
[[rewards.functions]]
name = "number"
weight = 0
"""


@pytest.fixture(autouse=True)
def quiet_search():
    yield
    search_in(())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, data, models and modules; the current directory is another one."""
    folder = tmp_path / "ein projekt" / "settings"
    for name in ("modelle/größe 2", "encoder", "mine", "chain_sum"):
        (folder / name).mkdir(parents=True)
    for name in ("questions.py", "rewards.py", "mine/__init__.py", "mine/keys.py"):
        (folder / name).write_text("")
    (folder / "a.toml").write_text(FILE, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def at(*words: str, env: dict[str, str] | None = None) -> RunConfig:
    return load(words, env or {}).config


def _name_of(source: Any) -> str:
    return next(getattr(source, name) for name in ("path", "name", "target") if hasattr(source, name))


def paths_of(config: RunConfig) -> dict[str, Any]:
    train, heldout = config.data.train, config.data.heldout
    return {
        "runs": config.runs,
        "model": config.model.name,
        "encoder": config.grouping.embedding,
        "train": [_name_of(source) for source in train],
        "held": [source.path for source in heldout if source.type == "file"],
        "modules": config.module_path,
    }


def test_paths_of_a_file_start_at_the_file(project: Path) -> None:
    expected = {
        "runs": str(project / "runs"),
        "model": str(project / "modelle" / "größe 2"),
        "encoder": str(project / "encoder"),
        "train": [str(project.parent / "data" / "train.jsonl"), "questions:rows", "open-r1/maths", "chain_sum"],
        "held": [str(project.parents[1] / "home" / "held.jsonl")],
        "modules": [str(project)],
    }
    assert paths_of(at("@", str(project / "a.toml"))) == expected
    assert paths_of(at("@", "../ein projekt/settings/a.toml")) == expected
    (project / "config.toml").write_text(FILE, encoding="utf-8")
    with contextlib.chdir(project):
        assert paths_of(at("@", ".")) == expected


def test_paths_of_flags_and_variables_start_at_the_current_directory(project: Path) -> None:
    file, here = ("@", str(project / "a.toml")), Path.cwd()
    paths = paths_of(at(*file, "--data.train.0.path", "x.jsonl", "--runs", "~/out", env={"COTERIE_MODEL__NAME": "./m"}))
    assert paths["train"][0] == str(here / "x.jsonl")
    assert (paths["runs"], paths["model"]) == (str(project.parents[1] / "home" / "out"), str(here / "m"))
    (here / "rewards.py").write_text("")
    assert at("--rewards.functions", '[{"name": "rewards:near"}]').module_path == [str(here)]


def test_the_default_folder_of_runs_is_in_the_current_directory(project: Path) -> None:
    (project / "b.toml").write_text("steps = 3")
    assert at("@", str(project / "b.toml")).runs == "runs"


@pytest.mark.parametrize("name", ["smollm2-135m", "Qwen/Qwen3-0.6B", "policy"])
def test_names_that_are_no_folders_stay_names(project: Path, name: str) -> None:
    (project / "b.toml").write_text(f'[model]\nname = "{name}"', encoding="utf-8")
    assert at("@", str(project / "b.toml")).model.name == name


def test_a_model_in_the_current_directory_is_found_too(project: Path) -> None:
    (Path.cwd() / "tiny").mkdir()
    (project / "b.toml").write_text('[model]\nname = "tiny"')
    assert at("@", str(project / "b.toml")).model.name == str(Path.cwd() / "tiny")
    (project / "tiny").mkdir()
    assert at("@", str(project / "b.toml")).model.name == str(project / "tiny")


def test_backslashes_lead_to_what_exists(project: Path) -> None:
    (project / "daten").mkdir()
    (project / "daten" / "a b.jsonl").write_text("")
    text = "[[data.train]]\ntype = 'file'\npath = 'daten\\a b.jsonl'"
    (project / "b.toml").write_text(text)
    (source,) = at("@", str(project / "b.toml")).data.train
    assert source.type == "file"
    assert source.path == str(project / "daten" / "a b.jsonl")


def test_parents_of_symbolic_links_are_those_of_the_system(project: Path) -> None:
    (project.parents[1] / "link").symlink_to(project)
    (project.parent / "train.jsonl").write_text("")
    text = '[[data.train]]\ntype = "file"\npath = "../train.jsonl"'
    (project / "b.toml").write_text(text)
    (source,) = at("@", str(project.parents[1] / "link" / "b.toml")).data.train
    assert source.type == "file"
    assert Path(source.path).is_file()


def test_what_is_printed_loads_to_the_same_from_any_folder(project: Path) -> None:
    import io

    from coterie.config.show import print_config

    loaded, out = load(["@", str(project / "a.toml")], {}), io.StringIO()
    print_config(loaded, out)
    (Path.cwd() / "printed.toml").write_text(out.getvalue(), encoding="utf-8")
    assert load_file(Path.cwd() / "printed.toml").config == loaded.config
    assert loaded.provenance["module_path"] == str(project / "a.toml")


def test_functions_are_found_beside_the_file_then_here_then_installed(project: Path) -> None:
    (project / "b.toml").write_text('[environment]\nname = "talks:game"')
    for folder, value in ((project, 1), (Path.cwd(), 2)):
        (folder / "talks.py").write_text(f"def game(prompt):\n    yield\nVALUE = {value}\n")

    def value() -> int:
        search_in(at("@", str(project / "b.toml")).module_path)
        return sys.modules[user_function("talks:game").__module__].VALUE

    assert value() == 1
    (project / "talks.py").unlink()
    assert value() == 2  # also though another module of that name was imported before
    assert user_function("json:dumps")([]) == "[]"


def test_an_error_says_where_it_was_looked_for(project: Path) -> None:
    (project / "b.toml").write_text('[environment]\nname = "nowhere:game"')
    search_in(at("@", str(project / "b.toml")).module_path)
    with pytest.raises(ConfigError) as caught:
        user_function("nowhere:game")
    assert f"no module 'nowhere' in {project}, {Path.cwd()} nor among the installed ones" in str(caught.value)
    with pytest.raises(ConfigError, match=r"write `sub\.mine:game`"):
        user_function("sub/mine.py:game")
    (project / "json.py").write_text("")
    with pytest.raises(ConfigError, match=r"the module 'json' of .* rename yours"):
        user_function("json:dumps")


def test_two_modules_of_one_name_in_two_folders_are_refused(project: Path) -> None:
    other = project.parent / "other"
    other.mkdir()
    (other / "rewards.py").write_text("")
    (other / "b.toml").write_text('[environment]\nname = "rewards:game"')
    with pytest.raises(ConfigError, match=r"names the module 'rewards' of .*, but .* rename one of them"):
        at("@", str(project / "a.toml"), "@", str(other / "b.toml"))
    (other / "b.toml").write_text('[environment]\nname = "game:game"')
    (other / "game.py").write_text("")
    assert at("@", str(project / "a.toml"), "@", str(other / "b.toml")).module_path == [str(project), str(other)]


def test_a_missing_file_of_settings_says_where(project: Path) -> None:
    with pytest.raises(ConfigError, match=rf"b\.toml does not exist in {Path.cwd()}"):
        at("@", "b.toml")
    home = project.parents[1] / "home"
    home.mkdir()
    (home / "c.toml").write_text("steps = 7")
    assert at("@", "~/c.toml").steps == at("@~/c.toml").steps == at("--config=~/c.toml").steps == 7


def stored_run(project: Path, **changed: Any) -> Path:
    """The config.toml of a run in the project, as a run stores it."""
    run = project / "runs" / "one"
    for name in ("checkpoints", "logs"):
        (run / name).mkdir(parents=True)
    config = at("@", str(project / "a.toml")).model_copy(update=changed)
    (run / "config.toml").write_text(dumps(config.model_dump(mode="json")), encoding="utf-8")
    return run / "config.toml"


def test_a_stored_run_of_before_starts_at_the_current_directory(project: Path) -> None:
    """Older versions stored paths as they were given."""
    file = stored_run(project)
    text = file.read_text(encoding="utf-8").replace(f"{project}/", "").replace(f'"{project}"', "")
    file.write_text(text, encoding="utf-8")
    with contextlib.chdir(project):
        paths = paths_of(load_file(file).config)
    assert paths["model"] == str(project / "modelle" / "größe 2")
    assert (paths["runs"], paths["modules"]) == (str(project / "runs"), [str(project)])


def test_a_project_that_moved_as_a_whole_is_followed(project: Path) -> None:
    (project.parent / "data").mkdir()
    (project.parent / "data" / "train.jsonl").write_text("")
    file = stored_run(project)
    before = load_file(file).config
    new = project.parents[1] / "umgezogen"
    shutil.move(project.parent, new)
    after = load_file(new / file.relative_to(project.parent)).config
    moved = {key: _renamed(value, project.parent, new) for key, value in paths_of(before).items()}
    assert paths_of(after) == moved


def _renamed(value: Any, old: Path, new: Path) -> Any:
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    return value.replace(str(old), str(new))


def test_what_a_checkpoint_belongs_to_does_not_name_places(project: Path) -> None:
    config = at("@", str(project / "a.toml"))
    other = at("@", str(project / "a.toml"), "--data.train.0.path", "/far/away/train.jsonl")
    dump, there = (settings.model_dump(mode="json", exclude={"runs", "module_path"}) for settings in (config, other))
    assert hashed(dump, dump, verbatim=False) == hashed(there, there, verbatim=False)
    assert hashed(dump, dump, verbatim=False)["data"]["train"][0]["path"] == "train.jsonl"
    changed = at("@", str(project / "a.toml"), "--data.train.0.path", "other.jsonl").model_dump(mode="json")
    assert hashed(dump, dump, verbatim=False)["data"] != hashed(changed, changed, verbatim=False)["data"]
    assert (portable("org/name"), portable("a/b.jsonl"), portable("/a/b.jsonl")) == ("org/name", "a/b.jsonl", "b.jsonl")


def test_a_checkpoint_of_before_is_still_named_as_it_was(project: Path) -> None:
    """Settings and paths as they are written, whatever settings came into being since."""
    written = RunConfig().model_dump(mode="json", exclude={"name", "runs", "module_path", "steps", "stop"})
    written["data"]["train"] = [{"type": "file", "path": "data/a.jsonl", "task": None}]
    del written["optim"]["subsample"]

    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_nulls(item) for key, item in value.items() if item is not None}
        return [without_nulls(item) for item in value] if isinstance(value, list) else value

    dump = RunConfig().model_dump(mode="json")
    dump["data"]["train"] = [{"type": "file", "path": "/abs/data/a.jsonl", "task": None, "limit": None}]
    for key in ("name", "runs", "module_path", "steps", "stop"):
        del dump[key]
    settings = hashed(dump, without_nulls(written), verbatim=True)
    assert repr(settings) == repr(without_nulls(written))
    assert hashlib.sha256(repr(settings).encode()).digest()


def test_tools_and_indexes_of_an_environment_are_found_beside_the_file(project: Path) -> None:
    (project / "settings").mkdir(exist_ok=True)
    (project / "settings/shed.py").write_text("def saw(): pass\n")
    file = project / "settings/tools.toml"
    file.write_text(
        '[environment]\nname = "tools"\n[environment.params]\ntools = ["shed:saw", {name = "shed:saw"}, '
        '{name = "search", index = "facts.sqlite"}, {name = "search", index = "geonames-facts"}, '
        '{name = "search", index = "http://127.0.0.1:1/retrieve"}]\n'
    )
    config = load(["@", str(file)], env={}).config
    indexes = [tool["index"] for tool in config.environment.params["tools"] if "index" in tool]
    place = str(project / "settings/facts.sqlite")
    assert indexes == [place, "geonames-facts", "http://127.0.0.1:1/retrieve"]
    assert config.module_path == [str(project / "settings")]


def test_every_setting_that_names_a_place_or_a_function_is_known_to_be_one() -> None:
    keys = {*PATHS, *MODELS, *FUNCTIONS, "module_path"}
    for setting in leaves():
        text = setting.description
        if (
            "`module:function`" in text
            or text.startswith(("Folder that", "Folders", "Path of"))
            or "folder or transformers" in text
        ):
            assert setting.key in keys, setting.key
