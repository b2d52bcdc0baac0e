"""Who answers: a chat model behind servers with OpenAI's API, asked by many threads and never by too many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama31 import config
from llama31.sampling import answers, capability_probe
from llama31.sampling.answers import Answer
from llama31.sampling.pool import Pool
from llama31.sampling.servers import Refused, Request, Server


@dataclass(frozen=True)
class Drawn:
    """How one answer is drawn."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class ChatModel(Protocol):
    """What programs need of a model: an answer to messages, and its name. Called by several threads at once."""

    def reply(
        self, messages: Sequence[Mapping[str, Any]], drawn: Drawn, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Answer, str]:
        """The answer, and the name of the model that gave it. Raises `Refused`, RunError without servers."""
        ...

    def close(self) -> None:
        """Let go whoever waits for another attempt: the run has ended."""
        ...


@dataclass
class ServerOccupancy:
    """How many requests are under way, and the share of time in which they are fewer than wanted.

    Time counts while `counting`: not when nothing is left to begin, for what drains then cannot fill a server.
    """

    wanted: int
    under_way: int = 0
    requests: int = 0
    total_s: float = 0.0
    short_s: float = 0.0
    counting: bool = True
    _since: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _advance(self) -> None:
        now = time.monotonic()
        if self._since is not None and self.counting:
            self.total_s += now - self._since
            self.short_s += (now - self._since) * (self.under_way < self.wanted)
        self._since = now

    @contextmanager
    def request(self) -> Iterator[None]:
        """One request, from when it is sent until its answer is there."""
        with self._lock:
            self._advance()
            self.under_way += 1
            self.requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self.under_way -= 1

    def count(self, counting: bool) -> None:
        """Whether time counts from now on."""
        with self._lock:
            self._advance()
            self.counting = counting

    @property
    def short_share(self) -> float:
        """Share of the time with fewer requests under way than wanted; 0 where nothing was asked."""
        return self.short_s / self.total_s if self.total_s else 0.0


def connect_chat(settings: config.Server) -> list[Server]:
    """The servers of a chat model that are up; see `capability_probe.connect_chat`."""
    return capability_probe.connect_chat(
        settings, Request((), ({"role": "user", "content": "Say yes."},), 0.0, 1.0, 8, seed=1)
    )


class ServedModel:
    """A chat model behind servers, each with so many requests under way at most; or a reward model (`connect`)."""

    def __init__(
        self, settings: config.Server, key: str = "server",
        connect: Callable[[config.Server], list[Server]] = connect_chat,
    ) -> None:  # fmt: skip
        """Connect to the servers that are up. Raises ValueError (key `KEY.urls`) and RunError as the probe does."""
        try:
            servers = connect(settings)
        except ValueError as error:
            raise ValueError(str(error).replace("server.", f"{key}.")) from error
        self.room = settings.concurrency * len(servers)
        self.occupancy = ServerOccupancy(self.room)
        self._pool = Pool(servers, settings.concurrency)
        self._free = threading.Semaphore(self.room)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], drawn: Drawn, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Answer, str]:
        """See `ChatModel`."""
        asked = Request(
            (), tuple(messages), drawn.temperature, drawn.top_p, drawn.max_new_tokens, drawn.seed, tools=tuple(tools)
        )
        with self._free, self.occupancy.request():
            result, server = self._pool.ask(asked)
        if isinstance(result, Refused):
            raise result
        (answer,) = result
        if answer.wrong is not None:
            raise Refused(f"no message can say what came back: {answer.wrong}")
        return answer, server.model

    def close(self) -> None:
        """See `ChatModel`."""
        for server in self._pool.servers:
            server.closed.set()


def message(answer: Answer) -> dict[str, Any]:
    """An answer as a message of a record: its text, or its call."""
    return dict(answers.message({"text": answer.text, **({"message": answer.message} if answer.message else {})}))
