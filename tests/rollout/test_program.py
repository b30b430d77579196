"""Programs that call the model as episodes: their turns token for token, their rewards, and every way to fail."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from coterie.config.load import load_file
from coterie.config.schema import EnvironmentConfig
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.base import Limits
from coterie.envs.program import ProgramEnvironment
from coterie.envs.program_endpoint import CallError, Conversation, ProgramEndpoint
from coterie.envs.registry import environment_for
from coterie.errors import ConfigError
from coterie.launch import train
from coterie.rollout.episodes import Attempt, Episodes
from coterie.runs import rollouts
from coterie.types import Prompt, StopReason
from runs_for_tests import importable, make_config
from served_models import tiny_chat

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
CLIENT = """
import json, os, sys, urllib.error, urllib.request

def post(path, key=None, data=None, **body):
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + path,
        json.dumps(body).encode() if data is None else data,
        {"content-type": "application/json", "authorization": "Bearer " + (key or os.environ["OPENAI_API_KEY"])},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]["message"]

def ask(messages, **settings):
    answer = post("/chat/completions", model="gpt-4o", messages=messages, **settings)
    return answer if isinstance(answer, str) else answer["choices"][0]["message"]

def earn(reward):
    with open(os.environ["COTERIE_REWARD"], "w") as file:
        file.write(str(reward))

prompt = sys.argv[1]
messages = [{"role": "user", "content": prompt}]
"""
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def environment(tmp_path: Path, code: str, **params: Any) -> ProgramEnvironment:
    (tmp_path / "agent.py").write_text(CLIENT + code)
    command = [sys.executable, str(tmp_path / "agent.py"), "{prompt}"]
    settings: dict[str, Any] = {"timeout_s": 20.0, **params}
    return ProgramEnvironment(command, **settings)


def played(
    programs: ProgramEnvironment, texts: Sequence[str] = ("hello", "again", "third"), turns: int = 4, prompts: int = 1
) -> list[Attempt]:
    """Attempts in which the model says `texts` turn by turn."""
    chat = tiny_chat()

    def script(request: Request) -> list[int]:
        return [*chat.tokenizer(texts[request.key.turn], add_special_tokens=False)["input_ids"], 2]

    engine = ScriptedEngine(script, vocabulary=len(chat.tokenizer))
    limits = Limits(turns=turns, tokens=4000, timeout_s=30.0)
    pairs = [
        (Prompt(id=str(k), messages=({"role": "user", "content": f"how many {k}"},), answer="7", task="t"), 0)
        for k in range(prompts)
    ]
    return Episodes(engine, programs, chat, seed=0, limits=limits).run(pairs, Sampling(temperature=1.0, max_tokens=200))


def test_calls_are_turns_of_one_conversation(tmp_path: Path) -> None:
    """With a tool: what the model is shown continues, token for token, what it said."""
    code = f"""
answer = ask(messages, tools=[{ADD!r}], temperature=0)
messages += [answer, {{"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "it is 3"}}]
answer = ask(messages, tools=[{ADD!r}])
earn(0.5 if answer["content"] == "3" else 0)
print("seen by nobody")
"""
    (attempt,) = played(environment(tmp_path, code), [f"I add. {CALL}", "3"])
    assert attempt.error is None
    first, second = attempt.turns
    assert second.prompt_tokens[: len(first.prompt_tokens) + len(first.tokens)] == first.prompt_tokens + first.tokens
    chat = tiny_chat()
    assert '"name": "add"' in chat.decode(first.prompt_tokens)
    between = chat.decode(second.prompt_tokens[len(first.prompt_tokens) + len(first.tokens) :])
    assert between.split() == ["user", "<tool_response>", "it", "is", "3", "</tool_response>", "assistant"]
    assert (first.reward, second.reward) == (0.0, 0.5)
    assert attempt.texts == [f"I add. {CALL}", "3"]


def test_the_agent_of_the_recipes() -> None:
    """With the official package, whose messages come back with more fields than were sent."""
    pytest.importorskip("openai")
    agent = Path(__file__).parents[2] / "recipes/program_agent.py"
    programs = ProgramEnvironment([sys.executable, str(agent), "{prompt}", "{answer}"], timeout_s=60.0)
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "1 + 2 * 3"}}</tool_call>'
    wrong = '<tool_call>{"name": "calculate", "arguments": {"expression": "2 ** 9"}}</tool_call>'
    (attempt,) = played(programs, [f"{wrong}", f"I see. {call}", " 7\n"])
    assert attempt.error is None, attempt.error
    assert [message["content"] for message in attempt.messages if message["role"] == "user"][1:] == [
        "<tool_response>\nerror: only whole numbers with +, - and *\n</tool_response>",
        "<tool_response>\n7\n</tool_response>",
    ]
    assert [turn.reward for turn in attempt.turns] == [0.0, 0.0, 1.0]


def test_programs_side_by_side_have_conversations_of_their_own(tmp_path: Path) -> None:
    code = """
for _ in range(2):
    messages += [ask(messages), {"role": "user", "content": "and " + prompt}]
post("/reward", reward=float(prompt[-1]))
assert "no episode has this key" in post("/reward", key="other", reward=9.0)
"""
    attempts = played(environment(tmp_path, code), prompts=6)
    assert [attempt.error for attempt in attempts] == [None] * 6
    assert [sum(turn.reward for turn in attempt.turns) for attempt in attempts] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [attempt.messages[2]["content"] for attempt in attempts] == [f"and how many {k}" for k in range(6)]


REFUSALS = {
    "shortened": ("ask(messages[:1])", "the call has 1 messages, and more than the 4 so far are expected"),
    "same again": ("ask(messages)", "has 4 messages, and more than the 4"),
    "changed": (
        "ask([{'role': 'user', 'content': 'other'}, *messages[1:], {'role': 'user', 'content': 'b'}])",
        "message 0 is",
    ),
    "other answer": (
        "ask([messages[0], {'role': 'assistant', 'content': 'I never'}, {'role': 'user', 'content': 'b'}])",
        "may not shorten, change or branch it",
    ),
    "invented answer": (
        "ask([*messages, {'role': 'user', 'content': 'b'}, {'role': 'assistant', 'content': 'c'}])",
        "the model did not give",
    ),
    "other tools": (f"ask([*messages, messages[0]], tools=[{ADD!r}])", "the tools are others"),
    "stop": ("ask([*messages, messages[0]], stop=['a'])", "there is sampling.stop in its place"),
    "n": ("ask([*messages, messages[0]], n=2)", "expected 1"),
    "format": ("ask([*messages, messages[0]], response_format={'type': 'json_object'})", "answers with text"),
    "choice": ("ask([*messages, messages[0]], tool_choice='required')", "expected auto or none"),
    "no messages": ("ask([])", "expected a list of messages"),
    "no role": ("ask([{'content': 'a'}])", "expected one with a role"),
    "picture": ("ask([{'role': 'user', 'content': [{'type': 'image_url'}]}])", "reads nothing else"),
    "no json": ("post('/chat/completions', data=b'{')", "the body is no JSON"),
    "no object": ("post('/chat/completions', data=b'[]')", "expected a JSON object"),
    "no number": ("post('/reward', reward='high')", "gave the reward 'high'"),
    "no such place": ("post('/embeddings')", "POST /v1/chat/completions or /v1/reward"),
}


def test_what_does_not_continue_is_refused(tmp_path: Path) -> None:
    """The program is told why, and may go on."""
    code = "messages += [ask(messages), {'role': 'user', 'content': 'so?'}]\nmessages += [ask(messages)]\nsaid = {}\n"
    code += "".join(f"said[{name!r}] = {call}\n" for name, (call, _) in REFUSALS.items())
    code += f"json.dump(said, open({str(tmp_path / 'said.json')!r}, 'w'))\nearn(1)\n"
    (attempt,) = played(environment(tmp_path, code))
    assert attempt.error is None, attempt.error
    assert len(attempt.turns) == 2
    told = json.loads((tmp_path / "said.json").read_text())
    for name, (_, message) in REFUSALS.items():
        assert message in str(told[name]), (name, told[name])


def test_calls_in_parallel_are_refused(tmp_path: Path) -> None:
    code = """
import threading
told = []
threads = [threading.Thread(target=lambda: told.append(ask(messages))) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
earn(sum(isinstance(text, str) and ("another call is open" in text or "1 messages" in text) for text in told))
"""
    (attempt,) = played(environment(tmp_path, code))
    assert (attempt.error, len(attempt.turns), attempt.turns[0].reward) == (None, 1, 3.0)


@pytest.mark.parametrize(
    ("code", "params", "message"),
    [
        ("earn(1)", {}, "the program ended without a call to the model"),
        (
            "ask(messages)\nprint('no')\nraise KeyError('a tool')",
            {},
            "ended with exit code 1 after 1 calls; it wrote: .*KeyError",
        ),
        ("ask(messages)\nos.kill(os.getpid(), 9)", {}, "was ended by signal 9 after 1 calls"),
        ("ask(messages)", {}, "the program gave no reward"),
        ("ask(messages)\nearn('much')", {}, "wrote the reward 'much'; expected a number"),
        ("ask(messages)\nearn('nan')", {}, "gave the reward nan"),
        (
            "ask(messages)\nimport time\ntime.sleep(60)",
            {"timeout_s": 0.5},
            "nor ended for timeout_s = 0.5 s after 1 calls, and was killed",
        ),
    ],
)
def test_programs_that_fail(tmp_path: Path, code: str, params: dict[str, Any], message: str) -> None:
    (attempt,) = played(environment(tmp_path, code, **params))
    assert attempt.error is not None
    assert re.search(message, attempt.error), attempt.error


def test_a_program_that_is_cut_is_killed(tmp_path: Path) -> None:
    """By the limit on turns; its children too."""
    code = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
while True:
    messages += [ask(messages), {{"role": "user", "content": "go on"}}]
"""
    (attempt,) = played(environment(tmp_path, code), turns=2)
    assert (attempt.error, len(attempt.turns)) == (None, 2)
    assert attempt.turns[-1].stop_reason is StopReason.EPISODE
    deadline = time.monotonic() + 10
    while _alive(int((tmp_path / "pid").read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(int((tmp_path / "pid").read_text()))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_the_endpoint_is_for_programs_of_this_machine() -> None:
    endpoint = ProgramEndpoint()
    conversation = endpoint.open()

    def status(**headers: str) -> int:
        request = urllib.request.Request(endpoint.address + "/reward", b'{"reward": 1}', headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status(Authorization=f"Bearer {conversation.token}") == 200
    assert status() == 401
    assert status(Authorization=f"Bearer {conversation.token}", Host="evil.example") == 401
    endpoint.close(conversation)
    assert status(Authorization=f"Bearer {conversation.token}") == 401
    with pytest.raises(CallError, match="the episode is over"):
        conversation.ask({"messages": [{"role": "user", "content": "a"}]})
    assert Conversation().token != conversation.token


def test_settings_that_name_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, message in (
        ("python a.py", "expected a list"),
        ([], "expected a list"),
        (["no-such-program"], "there is no"),
    ):
        with pytest.raises(ConfigError, match=message):
            environment_for(EnvironmentConfig(name="program", params={"command": command}))
    with pytest.raises(ConfigError, match="timeout_s = 0"):
        environment_for(EnvironmentConfig(name="program", params={"command": [sys.executable], "timeout_s": 0}))
    (tmp_path / "agent.py").write_text("")
    (tmp_path / "run.toml").write_text(
        'environment = { name = "program", params = { command = ["python3", "agent.py", "{prompt}", "word"] } }'
    )
    monkeypatch.chdir("/")
    config = load_file(tmp_path / "run.toml").config
    assert config.environment.params["command"] == ["python3", str(tmp_path / "agent.py"), "{prompt}", "word"]


def test_a_run_trains_on_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and tokens of each call are in the run's records; the secret of the run is none of the program's."""
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.setenv("COTERIE_API_KEY", "geheim")
    code = """
answer = ask(messages)
messages += [answer, {"role": "user", "content": "sure?"}]
answer = ask(messages)
assert "COTERIE_API_KEY" not in os.environ
assert json.load(open(os.environ["COTERIE_TASK"]))["messages"][0]["content"] == prompt
earn(answer["content"].count("a"))
"""
    (tmp_path / "agent.py").write_text(CLIENT + code)
    environment_ = {
        "name": "program",
        "max_tokens": 200,
        "params": {"command": [sys.executable, str(tmp_path / "agent.py"), "{prompt}"]},
    }
    config = make_config(
        tmp_path,
        steps=1,
        environment=environment_,
        data={"heldout": []},
        rewards={"functions": [{"name": "environment"}]},
        collect={"prompts_per_step": 1, "group_size": 3},
    )
    folder = train(config)
    rows = [row.rollout for row in rollouts.read_step(folder / "rollouts", 1)]
    assert [len(rollout.turns) for rollout in rows] == [2, 2, 2]
    for rollout in rows:
        list(rollout.continuations())
        assert rollout.reward == rollout.completion.count("a")
    assert os.environ["COTERIE_API_KEY"] == "geheim"
