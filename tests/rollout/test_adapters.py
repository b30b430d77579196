"""Environments of other libraries, played with what they are made for: TRL, OpenEnv, Gymnasium, GEM, verifiers."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.config.environment import EnvironmentConfig
from coterie.config.user_functions import search_in
from coterie.envs import verifiers_taskset
from coterie.envs.base import Episode, EpisodeError, Observation
from coterie.envs.registry import environment_for
from coterie.errors import ConfigError
from coterie.types import Prompt
from coterie.web.local_server import listen
from served_models import tiny_chat

COUNTER = '''
class Base:
    def add(self, number: int) -> str:
        """Add a number.

        Args:
            number: to add
        """
        self.total += number
        return f"the total is {self.total}"


class Counter(Base):
    def reset(self, start: int = 0, **row) -> str:
        self.total = start
        return f" It begins at {start}."

    async def half(self) -> int:
        """Halve the total."""
        if self.total % 2:
            raise ValueError("odd")
        self.total //= 2
        return self.total

    def _hidden(self): ...

    def get_reward(self) -> float:
        return float(self.total == 7)


def make_counter():
    return Counter()


class Stateless:
    def add(self): ...
'''
ROW = Prompt(
    id="a",
    messages=({"role": "user", "content": "Reach 7."},),
    answer="7",
    task="t",
    attributes={"start": 3, "seed": 5},
)


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_counter.py").write_text(COUNTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_counter", None)
    search_in([str(tmp_path)])


def environment(name: str, **params: Any) -> Any:
    return environment_for(EnvironmentConfig(name=name, params=params))


def played(episode: Any, say: Callable[[str], str], most: int = 20) -> tuple[list[Observation], float]:
    """What the model was shown, and the sum of the rewards, when it says `say(newest message)`."""
    shown, total = [next(episode)], 0.0
    for _ in range(most):
        try:
            shown.append(episode.send(say(shown[-1].messages[-1]["content"])))
            total += shown[-1].reward
        except StopIteration as end:
            return shown, total + (end.value or 0.0)
    episode.close()
    return shown, total


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_an_environment_of_trl() -> None:
    """Calls, faults of calls, a base class's method, an async one, `reset` with the row, `get_reward`."""
    words = [called("add", number=9), called("half"), called("add", number="x"), called("add", number=1), "done: 7"]
    words += [called("wrong")]
    turns = iter([words[0], words[1], words[2], words[5], words[3], words[4]])
    shown, reward = played(environment("trl", factory="my_counter:make_counter").episode(ROW), lambda _: next(turns))
    words = [observation.messages[-1]["content"] for observation in shown]
    assert words[0] == "Reach 7. It begins at 3."
    assert words[1:3] == ["the total is 12", "6"]
    assert "number" in words[3]
    assert "there is no tool 'wrong'" in words[4]
    assert (words[5], reward) == ("the total is 7", 1.0)
    odd = iter([called("half"), "3"])
    shown, reward = played(environment("trl", factory="my_counter:Counter").episode(ROW), lambda _: next(odd))
    assert (shown[1].messages[-1]["content"], reward) == ("Error: odd", 0.0)
    with pytest.raises(ConfigError, match="makes a Stateless, which has no `reset`"):
        environment("trl", factory="my_counter:Stateless")


@pytest.mark.filterwarnings("ignore")
def test_trl_gives_the_model_the_same_tools(tmp_path: Path) -> None:
    """Schemas, against TRL's own trainer."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    import my_counter  # ty: ignore[import-not-found]
    from transformers.utils import get_json_schema
    from trl.chat_template_utils import qwen2_5_chat_template  # ty: ignore[import-not-found]

    from tiny_models import tiny_model

    chat = tiny_chat()
    ours = environment("trl", factory="my_counter:Counter")
    chat.tokenizer.chat_template = qwen2_5_chat_template  # TRL knows how calls are read of its own list alone
    trainer = trl.GRPOTrainer(
        model=tiny_model(vocab_size=len(chat.tokenizer)),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_train_batch_size=2, num_generations=2
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": [dict(message) for message in ROW.messages], "start": 3}]),
        processing_class=chat.tokenizer,
        environment_factory=my_counter.Counter,
    )
    theirs = {tool.__name__: get_json_schema(tool) for tool in trainer._env_tools[None]}
    assert theirs.keys() == ours.tools.keys()
    for name, schema in theirs.items():
        schema["function"].pop("return", None)
        assert schema == ours.tools[name].schema


@pytest.mark.filterwarnings("ignore")
def test_an_openenv_server() -> None:
    """A real server with sessions; rewards, the end, the state, and a field that is not there."""
    pytest.importorskip("openenv")
    import uvicorn
    from openenv.core.env_server import (  # ty: ignore[import-not-found]
        Action,
        Environment,
        State,
        create_fastapi_app,
    )
    from openenv.core.env_server import Observation as Seen  # ty: ignore[import-not-found]

    class Guess(Action):
        message: str
        loud: bool = False

    class Hint(Seen):
        text: str

    class Game(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Hint:
            self.gold, self.turns = (seed or 0) % 10, 0
            return Hint(text="Which digit?")

        def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Hint:
            self.turns += 1
            right = action.message == str(self.gold)
            return Hint(
                text="right!" if right else f"no, loud={action.loud}", done=right, reward=1.0 if right else -0.1
            )

        @property
        def state(self) -> State:
            return State(step_count=self.turns)

    listener = listen("127.0.0.1", [0])
    application = create_fastapi_app(Game, Guess, Hint, max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        game = environment("openenv", url=url, observation="text", fixed={"loud": True}, state=["step_count"])
        digits = iter("345")
        shown, reward = played(game.episode(ROW), lambda _: next(digits))
        assert [observation.messages[-1]["content"] for observation in shown] == [
            "Reach 7.\n\nWhich digit?",
            "no, loud=True",
            "no, loud=True",
        ]
        assert reward == pytest.approx(0.8)
        assert [observation.state for observation in shown] == [("0",), ("1",), ("2",)]
        shown, _ = played(environment("openenv", url=url).episode(ROW), lambda _: "5")
        assert '"text": "Which digit?"' in shown[0].messages[-1]["content"]
        with pytest.raises(EpisodeError, match="has no field 'words'; expected one of"):
            next(environment("openenv", url=url, observation="words").episode(ROW))
    finally:
        server.should_exit = True
        thread.join(timeout=20)
    with pytest.raises(EpisodeError, match="cannot be reached"):
        next(game.episode(ROW))


def test_a_missing_openenv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openenv.core.generic_client", None)
    monkeypatch.setitem(sys.modules, "openenv", None)
    with pytest.raises(ConfigError, match="needs the package openenv"):
        environment("openenv", url="http://127.0.0.1:1")


class Countdown:
    """Gymnasium's interface, over text."""

    def __init__(self, start: int = 3) -> None:
        self.start = start

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.left, self.seed = self.start, seed
        return f"{self.left} left, seed {seed}", {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        if action == "silence":
            return 7, 0.0, False, False, {}
        return f"{self.left} left", float(len(action)), self.left == 0, False, {}


def make_countdown(id: str, **options: Any) -> Countdown:
    if id != "countdown":
        raise KeyError(id)
    return Countdown(**options)


def test_a_text_environment_of_gymnasiums_kind() -> None:
    make = f"{__name__}:make_countdown"
    shown, reward = played(environment("gymnasium", id="countdown", make=make).episode(ROW), lambda text: "ab")
    assert [observation.messages[-1]["content"] for observation in shown] == [
        "Reach 7.\n\n3 left, seed 5",
        "2 left",
        "1 left",
    ]
    assert reward == 6.0
    plain = Prompt(id="b", messages=ROW.messages, answer=None, task="t")
    episode: Episode = environment("gymnasium", id="countdown", make=make, options={"start": 1}).episode(plain)
    first = next(episode)
    assert first == next(environment("gymnasium", id="countdown", make=make, options={"start": 1}).episode(plain))
    next(episode := environment("gymnasium", id="countdown", make=make).episode(ROW))
    with pytest.raises(EpisodeError, match="observed 7, a int; expected text"):
        episode.send("silence")
    with pytest.raises(ConfigError, match="raised KeyError: 'other'"):
        environment("gymnasium", id="other", make=make)


@pytest.mark.filterwarnings("ignore")
def test_a_game_of_gem() -> None:
    pytest.importorskip("gem")
    game = environment("gymnasium", make="gem:make", id="game:GuessTheNumber-v0-easy")
    low, high = 1, 10

    def bisect(text: str) -> str:
        nonlocal low, high
        middle = (low + high) // 2
        if "higher" in text:
            low = middle + 1
        elif "lower" in text:
            high = middle - 1
        return f"\\boxed{{{(low + high) // 2}}}"

    shown, reward = played(game.episode(ROW), bisect)
    assert "Guess" in shown[0].messages[-1]["content"]
    assert len(shown) >= 1
    assert reward != 0.0


@pytest.mark.filterwarnings("ignore")
def test_an_environment_of_gymnasium() -> None:
    gymnasium: Any = pytest.importorskip("gymnasium")

    class Echo(gymnasium.Env):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            return str(self.np_random.integers(100)), {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "bye", 1.0, False, True, {}

    gymnasium.register("Echo-v0", entry_point=Echo, disable_env_checker=True, order_enforce=False)
    numbers = []
    for _ in range(2):
        shown, reward = played(environment("gymnasium", id="Echo-v0").episode(ROW), lambda _: "x")
        numbers.append(shown[0].messages[-1]["content"])
        assert reward == 1.0
    assert numbers[0] == numbers[1], "the seed of the row"


SUMS = """
import verifiers.v1 as vf


class Data(vf.TaskData):
    answer: str = ""


class Sum(vf.Task[Data]):
    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.5)
    async def asked(self, trace) -> float:
        return float(len(trace.messages) == 3 and trace.num_turns == 1)


class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        for number in range(4):
            yield Sum(Data(prompt=f"{number} + 1?", system_prompt="Number only.", answer=str(number + 1)))


class Boxed(vf.Task[Data]):
    @vf.reward
    async def inside(self, runtime) -> float:
        return 1.0


class Boxes(vf.Taskset[Boxed, vf.TasksetConfig]):
    def load(self):
        yield Boxed(Data(prompt="a"))


class Finished(Sum):
    async def finalize(self, trace, runtime):
        trace.info["file"] = await runtime.read("answer.txt")


class Mixed(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        yield Sum(Data(prompt="a"))
        yield Finished(Data(prompt="b"))


class Pictures(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        yield Sum(Data(prompt="a"))
        yield Sum(Data(prompt="b", image="ubuntu:24.04"))


class Tooled(vf.Taskset[Sum, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return ["a server of tools"]

    def load(self):
        yield Sum(Data(prompt="a"))
"""


@pytest.mark.filterwarnings("ignore")
def test_a_taskset_of_verifiers(tmp_path: Path) -> None:
    pytest.importorskip("verifiers")
    (tmp_path / "my_sums.py").write_text(SUMS)
    sys.modules.pop("my_sums", None)
    table = list(verifiers_taskset.rows("my_sums:Sums", limit=3))
    assert table[2]["prompt"] == [
        {"role": "system", "content": "Number only."},
        {"role": "user", "content": "2 + 1?"},
    ]
    sums = environment("verifiers", taskset="my_sums:Sums")
    prompt = Prompt(
        id="a",
        messages=tuple(table[2]["prompt"]),
        answer=None,
        task="t",
        attributes={verifiers_taskset.COLUMN: table[2][verifiers_taskset.COLUMN]},
    )
    shown, reward = played(sums.episode(prompt), lambda _: " 3")
    assert (list(shown[0].messages), reward) == (table[2]["prompt"], 1.5)
    assert played(sums.episode(prompt), lambda _: "4")[1] == 0.5
    with pytest.raises(EpisodeError, match="expected the place of one of the 4 tasks"):
        next(sums.episode(ROW))
    for name, message in {
        "Boxes": "have the reward inside, which needs a runtime",
        "Mixed": "need a runtime of their own",
        "Pictures": "need a runtime of their own",
        "Tooled": "has tools for its tasks",
    }.items():
        with pytest.raises(ConfigError, match=message):
            environment("verifiers", taskset=f"my_sums:{name}")
