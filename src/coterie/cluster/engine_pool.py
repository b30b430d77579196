"""A pool of engine services behind the interface of one engine: requests are shared out, a lost service is replaced.

Every call of a service stands in a journal from the last commit on. What a service answers is a function of its calls,
so a new one that makes them again is where the lost one was, to the last bit where the engine repeats itself; a turn
that was given out before is not given out again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from coterie.cluster.frames import packed_request, packed_sampling, turn_of
from coterie.cluster.hosts import Host, LostError, Service, WeightMemory
from coterie.engines.base import Engine, Request, Sampling, check_idle, check_request
from coterie.errors import EngineError
from coterie.types import StopReason, Turn


@dataclass(frozen=True, kw_only=True)
class ServiceOrder:
    """What each service builds, and how long it may take.

    Args:
        target: the function `module:function`, called in the service with `arguments` and `weights`, the descriptor
            and the slots of `SharedWeights`; returns a `ServedEngine`.
        start_s: seconds until a service is ready.
        timeout_s: seconds for one answer, about a token of each sequence; then a service counts as hung.
        restarts: losses in the sampling of one policy version after which the run ends.
        sleeps: `EnginePool.sleep` has them give their memory back.
    """

    target: str
    arguments: Mapping[str, Any]
    start_s: float = 600.0
    timeout_s: float = 300.0
    restarts: int = 5
    sleeps: bool = False


@dataclass(kw_only=True, eq=False)
class _Member:
    """A service's place in the pool."""

    name: str
    service: Service | None = None
    ready: bool = False
    journal: list[list[Any]] = field(default_factory=list)
    """Calls since the commit, or since nothing was open or kept."""
    sent: int = 0
    """Of these, how many the service has been sent."""
    expected: int = 0
    """Number of the last message."""
    open: set[int] = field(default_factory=set)
    keeps: bool = False
    """It may keep what was computed of a conversation."""


class EnginePool(Engine):
    """Engine whose work is done by services.

    A prompt's requests go to one service, so that its prefill is shared and its conversations find what was kept: the
    service with the fewest open requests when the prompt first comes. That depends on tokens alone, so a run repeats.

    Args:
        host: where services live.
        weights: the policy's weights, read once a version; the memory that is shared is made from them.
        vocabulary: token ids are below this.
        context: most tokens of a prompt and its turn.
        replicas: number of services.
        report: told of each lost service, in a line of text.
    """

    def __init__(
        self,
        host: Host,
        order: ServiceOrder,
        weights: Callable[[], Mapping[str, Tensor]],
        *,
        vocabulary: int,
        context: int,
        replicas: int = 1,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._host, self._order, self._weights = host, order, weights
        self._vocabulary, self._context, self.report = vocabulary, context, report
        self._members = [_Member(name=f"engine-{index}") for index in range(replicas)]
        self._version, self._submitted, self._messages, self._losses = 0, 0, 0, 0
        self._commits = 0
        """Weights change with these alone, so that a service reads them once a commit."""
        self._open: dict[int, Request] = {}
        self._places: dict[str, _Member] = {}
        """Prompt → its service, since the last commit."""
        self._keepers: dict[int, _Member] = {}
        """Requests that ended and may continue."""
        self._late: dict[int, dict[str, Any]] = {}
        """Turns that ended while a new service made calls again, of an engine that does not repeat itself."""
        self._memory: WeightMemory | None = None
        self._written: int | None = None
        """Commit whose weights are in the memory."""
        self._reset()
        for member in self._members:
            self._start(member)

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def version(self) -> int:
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def submit(self, request: Request, sampling: Sampling) -> int:
        check_request(request, sampling, version=self._version, context=self._context)
        self._submitted += 1
        number, prompt = self._submitted, request.key.prompt
        if prompt not in self._places:
            self._places[prompt] = min(self._members, key=lambda member: len(member.open))
        member = self._places[prompt]
        member.journal.append(["submit", number, packed_request(request), packed_sampling(sampling)])
        member.open.add(number)
        member.keeps |= request.may_continue
        self._open[number] = request
        return number

    def step(self) -> list[tuple[int, Turn]]:
        busy = [member for member in self._members if member.open]
        for member in busy:
            member.journal.append(["step"])
        answers = self._exchange(busy)
        rows = {**self._late, **{number: row for answer in answers for number, row in answer["ended"]}}
        ended = [(number, turn_of(row)) for number, row in rows.items() if number in self._open]
        for number, _ in ended:
            self._end(number)
        return ended

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        keeper = self._keepers.pop(request, None)
        if keeper is not None:
            keeper.journal.append(["abort", request, reason.value])
        if request not in self._open:
            return None
        member = self._places[self._open[request].key.prompt]
        member.journal.append(["abort", request, reason.value])
        (answer,) = self._exchange([member])
        turn = turn_of(self._late.get(request) or answer["value"])
        self._end(request, kept=False)
        return turn

    def sampled(self, request: int, start: int) -> tuple[list[int], list[float]] | None:
        member = self._places[self._open[request].key.prompt]
        (answer,) = self._exchange([member], ["sampled", request, start])
        value = answer["value"]
        return None if value is None else (value[0], value[1])

    def commit(self, version: int) -> None:
        check_idle(self, version)
        self._version, self._losses = version, 0
        self._commits += 1
        self._reset()

    def publish(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights of the present version at once instead of before its first request, so that the policy may
        change while it is sampled.

        Args:
            weights: a former `copy_weights`; None: the policy's.
        """
        memory = self._shared()
        memory.write(self._weights() if weights is None else weights)
        self._written = self._commits

    def copy_weights(self) -> dict[str, Tensor]:
        """A copy of the policy's present weights, for `publish`."""
        return {name: tensor.detach().clone() for name, tensor in self._weights().items()}

    def sleep(self) -> None:
        """Have each service that was asked something since the commit give its memory back; the next request wakes it.

        Raises:
            EngineError: requests are open, or a service was lost too often.
        """
        if not self._order.sleeps:
            return
        check_idle(self, self._version)
        self._exchange([member for member in self._members if member.sent], ["sleep"])

    def close(self) -> None:
        for member in self._members:
            if member.service is not None:
                member.service.close()
                member.service = None
        self._reset()
        if self._memory is not None:
            self._memory.close()
            self._memory = self._written = None
        self._host.close()

    def _end(self, number: int, *, kept: bool = True) -> None:
        """Count a request as ended; where nothing is open or kept, no call of before matters any more."""
        request = self._open.pop(number)
        self._late.pop(number, None)
        member = self._places[request.key.prompt]
        member.open.discard(number)
        if kept and request.may_continue:
            self._keepers[number] = member
        if not member.open and not member.keeps:
            del member.journal[1:]
            member.sent = 1
        if not self._open and not any(member.keeps for member in self._members):
            self._places.clear()

    def _reset(self) -> None:
        """Forget all requests; a commit, the first call of a journal, has a service forget them too."""
        self._open.clear()
        self._places.clear()
        self._keepers.clear()
        self._late.clear()
        for member in self._members:
            member.journal, member.sent = [["commit", self._version, self._commits]], 0
            member.open.clear()
            member.keeps = False

    def _start(self, member: _Member) -> None:
        memory = self._shared()
        arguments = {**self._order.arguments, "weights": memory.arguments}
        order = {"target": self._order.target, "arguments": arguments}
        member.service = self._host.start(member.name, order, memory)
        member.ready = False

    def _shared(self) -> WeightMemory:
        """The memory that is shared, made when it is first needed."""
        if self._memory is None:
            self._memory = self._host.memory(self._weights())
        return self._memory

    def _exchange(self, members: Sequence[_Member], question: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Send what has not been sent, and a question that no journal holds; the answers, a member each.

        Raises:
            EngineError: a service refused, or was lost too often; nothing is open then.
        """
        try:
            lost = {member.name: cause for member in members if (cause := self._posted(member, question))}
            return [
                self._made_again(member, lost[member.name], question)
                if member.name in lost
                else self._answered(member, question)
                for member in members
            ]
        except EngineError:
            self._reset()
            raise
        except BaseException:  # Ctrl-C between two bytes of an answer
            self._kill_all()
            self._reset()
            raise

    def _posted(self, member: _Member, question: Sequence[Any] | None) -> str:
        """Send; returns how the service was lost, or nothing."""
        try:
            self._post(member, question)
        except LostError as error:
            return str(error)
        return ""

    def _answered(self, member: _Member, question: Sequence[Any] | None) -> dict[str, Any]:
        try:
            return self._answer(member)
        except LostError as error:
            return self._made_again(member, str(error), question)

    def _post(self, member: _Member, question: Sequence[Any] | None = None, upto: int | None = None) -> None:
        """Send the calls of the journal up to a place that have not been sent, and a question."""
        if member.service is None:
            self._start(member)
        service = member.service
        assert service is not None
        if not member.ready:
            answer = service.receive(self._order.start_s)
            if "error" in answer:
                self._kill(member)
                raise EngineError(f"the service {member.name} cannot start: {answer['error']}")
            member.ready = True
        if self._written != self._commits:
            self.publish()
        end = len(member.journal) if upto is None else upto
        calls = [*member.journal[member.sent : end], *([] if question is None else [question])]
        self._messages += 1
        member.sent, member.expected = end, self._messages
        service.send({"id": self._messages, "calls": calls}, self._order.timeout_s)

    def _answer(self, member: _Member) -> dict[str, Any]:
        """The answer to the last message; those to messages that an error cut off are passed over."""
        assert member.service is not None
        answer = member.service.receive(self._order.timeout_s)
        while answer["id"] < member.expected:
            answer = member.service.receive(self._order.timeout_s)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def _made_again(self, member: _Member, cause: str, question: Sequence[Any] | None) -> dict[str, Any]:
        """The answer of a new service in the place of a lost one, which has made all calls again.

        Raises:
            EngineError: services of this policy version were lost too often.
        """
        while True:
            self._kill(member)
            self._losses += 1
            passes = sum(call[0] == "step" for call in member.journal)
            if self._losses > self._order.restarts:
                raise EngineError(
                    f"the service {member.name} {cause}; services were lost {self._losses} times while policy version "
                    f"{self._version} was sampled, and cluster.restarts allows {self._order.restarts}. Its log in the "
                    "run's folder logs/ has what it said; continue with `coterie resume`"
                )
            self.report(f"the service {member.name} {cause}; a new one makes its {passes} passes again")
            try:
                return self._replay(member, question)
            except LostError as error:
                cause = str(error)

    def _replay(self, member: _Member, question: Sequence[Any] | None) -> dict[str, Any]:
        """Make the calls of the journal again, a pass a message; the answer to the last one."""
        member.sent = 0
        ends = [place for place, call in enumerate(member.journal, 1) if call[0] == "step"]
        for end in ends:
            if end < len(member.journal):
                self._post(member, upto=end)
                rows = dict(self._answer(member)["ended"])
                self._late |= {number: row for number, row in rows.items() if number in self._open}
        self._post(member, question)
        return self._answer(member)

    def _kill(self, member: _Member) -> None:
        if member.service is not None:
            member.service.kill()
            member.service = None

    def _kill_all(self) -> None:
        for member in self._members:
            self._kill(member)
