"""Environment of an unchanged program that speaks OpenAI's API: it runs its own loop and its own tools.

[environment]
name = "program"
params = { command = ["python", "agent.py", "{prompt}"] }
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty
from typing import Any

from coterie.envs.base import Episode, EpisodeError, Observation, check_reward
from coterie.envs.program_endpoint import MODEL, Conversation, ProgramEndpoint, ProgramExit
from coterie.errors import ConfigError
from coterie.text import one_line
from coterie.types import Prompt

LONGEST = 1 << 16
"""Bytes of a reward's file, and of the end of the program's output that is read."""
SECRET = ("COTERIE_API_KEY",)
"""Variables of the environment that a program does not get."""
_MARK = re.compile(r"\{(?:prompt|answer|id)\}")


class ProgramEnvironment:
    """Starts a program for each episode; each call that it makes to the model is a turn.

    The program gets the address and key of its endpoint as OPENAI_BASE_URL and OPENAI_API_KEY, the model's name as
    OPENAI_MODEL, the prompt as JSON in the file COTERIE_TASK, and writes its reward, a number, to the file
    COTERIE_REWARD, or sends it: `POST $OPENAI_BASE_URL/reward {"reward": 1.0}`. It runs in a new empty folder.

    Args:
        command: program and arguments; `{prompt}`, `{answer}` and `{id}` are the prompt's last message, its gold answer
            and its id.
        timeout_s: between two calls, and from the last call to the end. Less than `environment.timeout_s`.
        reward: whether a program must give one; without it, reward functions judge the last turn.
        env: variables of the program's environment beside those of the run's.
    """

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float = 100.0,
        reward: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
            raise ConfigError(
                f'environment.params has command = {command!r}; expected a list, such as ["python", "agent.py"]'
            )
        program = shutil.which(command[0])
        if program is None:
            raise ConfigError(
                f"environment.params has command = {list(command)}, but there is no program {command[0]!r}; give its "
                "path, or install it"
            )
        if not timeout_s > 0:
            raise ConfigError(f"environment.params has timeout_s = {timeout_s}; expected more than 0")
        self.command = [str(Path(program).absolute()), *command[1:]]
        self.timeout_s, self.reward, self.env = timeout_s, reward, dict(env or {})
        self._endpoint: ProgramEndpoint | None = None
        self._lock = threading.Lock()

    def episode(self, prompt: Prompt) -> Episode:
        with self._lock:
            self._endpoint = endpoint = self._endpoint or ProgramEndpoint()
        conversation = endpoint.open()
        folder = Path(tempfile.mkdtemp(prefix="coterie-program-"))
        process: subprocess.Popen[bytes] | None = None
        try:
            process = self._start(prompt, folder, endpoint.address, conversation)
            calls = 0
            while not isinstance(event := self._next(conversation, folder, calls), ProgramExit):
                calls += 1
                text = yield Observation(messages=event.messages)
                conversation.answer(text)
            return self._earned(event, folder, conversation, calls)
        finally:
            endpoint.close(conversation)
            if process is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, prompt: Prompt, folder: Path, address: str, conversation: Conversation) -> subprocess.Popen[bytes]:
        words = {"{prompt}": prompt.messages[-1]["content"], "{answer}": prompt.answer or "", "{id}": prompt.id}
        # In one go: what a prompt says is no mark.
        arguments = [_MARK.sub(lambda mark: words[mark[0]].replace("\0", ""), word) for word in self.command[1:]]
        command = [self.command[0], *arguments]
        (folder / "task.json").write_text(json.dumps(asdict(prompt), ensure_ascii=False, default=str), "utf-8")
        (folder / "work").mkdir()
        variables = {name: value for name, value in os.environ.items() if name not in SECRET} | self.env
        variables |= {
            "OPENAI_BASE_URL": address,
            "OPENAI_API_KEY": conversation.token,
            "OPENAI_MODEL": MODEL,
            "COTERIE_TASK": str(folder / "task.json"),
            "COTERIE_REWARD": str(folder / "reward"),
        }
        try:
            with (folder / "output").open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=folder / "work",
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise EpisodeError(f"the program {self.command[0]} cannot be started: {error}") from error

        def watch() -> None:
            conversation.events.put(ProgramExit(code=process.wait()))

        threading.Thread(target=watch, name="program", daemon=True).start()
        return process

    def _next(self, conversation: Conversation, folder: Path, calls: int) -> Any:
        """The program's next call, or its end."""
        try:
            return conversation.events.get(timeout=self.timeout_s)
        except Empty:
            raise EpisodeError(
                f"the program has neither called the model nor ended for timeout_s = {self.timeout_s:g} s after "
                f"{calls} calls, and was killed{_last_words(folder)}"
            ) from None

    def _earned(self, end: ProgramExit, folder: Path, conversation: Conversation, calls: int) -> float:
        """The episode's reward.

        Raises:
            EpisodeError: the program failed, never called the model, or gave no reward.
        """
        if end.code:
            how = f"was ended by signal {-end.code}" if end.code < 0 else f"ended with exit code {end.code}"
            raise EpisodeError(f"the program {how} after {calls} calls{_last_words(folder)}")
        if not calls:
            raise EpisodeError(
                "the program ended without a call to the model; it must use OPENAI_BASE_URL and OPENAI_API_KEY"
                + _last_words(folder)
            )
        reward = conversation.reward
        if (folder / "reward").is_file():
            text = (folder / "reward").read_bytes()[:LONGEST].decode(errors="replace").strip()
            try:
                reward = check_reward(float(text))
            except ValueError:
                raise EpisodeError(f"the program wrote the reward {text!r:.80}; expected a number") from None
        if reward is None and self.reward:
            raise EpisodeError(
                "the program gave no reward: it neither wrote a number to the file COTERIE_REWARD nor sent one; set "
                f"environment.params.reward = false if only reward functions judge{_last_words(folder)}"
            )
        return reward or 0.0


def _last_words(folder: Path) -> str:
    """The end of the program's output, for a message."""
    try:
        with (folder / "output").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"; it wrote: {one_line(' | '.join(lines[-3:]), 300)}" if lines else ""
