"""Several servers at work at once: each request to the one with least to do, and to another when one dies."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from llama31 import config
from llama31.sampling.answers import Answer
from llama31.sampling.servers import Capabilities, Refused, Request, Server, ServersUnavailable


class Pool:
    """Several servers at work: each request goes to the one with least to do, and to another when that one dies."""

    def __init__(self, servers: Sequence[Server], concurrency: int) -> None:
        self.servers, self._concurrency = list(servers), concurrency
        self._busy = {server.url: 0 for server in servers}
        self._dead: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(
        self, requests: Iterable[tuple[Any, Request]]
    ) -> Iterator[tuple[Any, list[Answer] | Refused, Capabilities]]:
        """(key, request) -> (key, answers or why there are none, who answered), as they come in.

        Raises RunError when no server is left, after everything that was under way has been given back.
        """
        waiting, under_way = iter(requests), set[Future[tuple[Any, list[Answer] | Refused, Capabilities]]]()
        executor, more, ended = ThreadPoolExecutor(self._room()), True, False
        try:
            while more or under_way:
                while more and len(under_way) < self._room():
                    item = next(waiting, None)
                    more = item is not None
                    if item is not None:
                        under_way.add(executor.submit(self._ask, *item))
                if not under_way:
                    break
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    if (error := future.exception()) is None:
                        yield future.result()
                    elif not isinstance(error, ServersUnavailable):
                        raise error
            if len(self._dead) == len(self.servers):
                raise self._silent("; ".join(self._dead.values()))
            ended = True
        finally:
            if not ended:  # nobody waits for another attempt any more
                for server in self.servers:
                    server.closed.set()
            executor.shutdown(cancel_futures=True)

    def ask(self, request: Request) -> tuple[list[Answer] | Refused, Capabilities]:
        """One request, by any thread; see `run`. Who calls it sees to how many are under way."""
        try:
            _, answers, capabilities = self._ask(None, request)
        except ServersUnavailable as error:
            why = "; ".join(self._dead.values()) or str(error)
            raise self._silent(why) from error
        return answers, capabilities

    def _silent(self, why: str) -> config.RunError:
        urls = ", ".join(server.url for server in self.servers)
        return config.RunError(
            f"no server answers any more: {why}. What they answered is kept: start them again ({urls}), or give the "
            "addresses of others, and the same command goes on where it stopped"
        )

    def _room(self) -> int:
        """Requests that may be under way: so many for each server that is left."""
        return self._concurrency * (len(self.servers) - len(self._dead))

    def _ask(self, key: Any, request: Request) -> tuple[Any, list[Answer] | Refused, Capabilities]:
        while True:
            server = self._choose()
            assert server.capabilities is not None
            try:
                return key, server.ask(request), server.capabilities
            except Refused as error:
                return key, error, server.capabilities
            except ServersUnavailable as error:
                with self._lock:
                    self._dead[server.url] = str(error)
            finally:
                with self._lock:
                    self._busy[server.url] -= 1

    def _choose(self) -> Server:
        with self._lock:
            alive = [server for server in self.servers if server.url not in self._dead]
            if not alive:
                raise ServersUnavailable("none is left")
            chosen = min(alive, key=lambda server: self._busy[server.url])
            self._busy[chosen.url] += 1
            return chosen
