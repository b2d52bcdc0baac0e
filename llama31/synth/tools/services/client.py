"""Requests to a service that costs money: with its key, not too fast, again where it is worth it, each answer kept.

The key comes from an environment variable and goes into a header, never into an address (which clients log), a file or
a message; a service that sends elsewhere is not followed, for the key would go there too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping

import httpx2

from llama31 import config
from llama31.sampling.servers import LONGEST_PAUSE_S, Refused
from llama31.synth.pipeline.journal import digest
from llama31.synth.tools.interface import ToolResult
from llama31.synth.tools.services.answered import AnsweredQueries

NO_KEY = (401, 402, 403)  # it does not take the key, or wants to be paid
BUSY = 429
LATER = (408, 425, BUSY)  # and all of 500 and more that are no answers
SHOWN_CHARACTERS = 300
GOES_ON = "What is done stays, and the same command goes on"


class PaidClient:
    """A service. Several threads may ask at once; who asks the same waits for the answer of the first.

    Args:
        service: its name, by which its keys stand under `services`.
        header: the header that carries the key, by the key.
        answers: where what was asked is kept.
        pause: waits so many seconds; true where the run has ended meanwhile.
    """

    def __init__(
        self, service: str, settings: config.PaidService, header: Callable[[str], Mapping[str, str]],
        answers: AnsweredQueries, clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:  # fmt: skip
        self._service, self._settings, self._header, self._answers = service, settings, header, answers
        self._clock, self._ended = clock, threading.Event()
        self._pause = pause or self._ended.wait
        self._lock, self._asking = threading.Lock(), dict[str, threading.Lock]()
        self._next_s, self._fatal = float("-inf"), ""
        self._client: httpx2.Client | None = None

    def ask(
        self, fingerprint: str, query: str, parameters: Mapping[str, str], read: Callable[[int, str], ToolResult],
        statuses: Collection[int] = (200,),
    ) -> ToolResult:  # fmt: skip
        """The result of a query, as it was kept, or as `read` makes it of status and text.

        Args:
            fingerprint: what the result depends on beside the query.
            read: raises ValueError for what is no answer; the service is asked again then.
            statuses: of HTTP that are answers.

        Raises Refused where this query alone has failed; RunError where no other would do better: without a key that
        the service takes, and where budget or plan is used up.
        """
        asked = digest(fingerprint, query)
        with self._lock:
            turn = self._asking.setdefault(asked, threading.Lock())
        with turn:
            if (known := self._answers.get(asked)) is not None:
                return known
            try:
                return self._answers.keep(asked, self._attempts(asked, query, parameters, read, statuses))
            except config.RunError as error:
                self._fatal = self._fatal or str(error)
                self._ended.set()  # whoever waits need not
                raise

    def _attempts(
        self, asked: str, query: str, parameters: Mapping[str, str], read: Callable[[int, str], ToolResult],
        statuses: Collection[int],
    ) -> ToolResult:  # fmt: skip
        key, backoff, said = self._key(), self._settings.backoff_s, ""
        for attempt in range(1, self._settings.attempts + 1):
            self._wait_for_turn()
            self._answers.sending(asked, query)
            wait_s: float | None = None
            try:
                response = self._connected().get(self._settings.url, params=parameters, headers=self._header(key))
            except httpx2.HTTPError as error:
                said = (str(error) or repr(error)).replace(key, "[key]")
            else:
                text, code = response.text, response.status_code
                shown = f"HTTP {code}: {text[:SHOWN_CHARACTERS].replace(key, '[key]')}"
                if code in statuses:
                    try:
                        return read(code, text)
                    except ValueError as error:
                        said = f"no answer ({error}): {shown}"
                elif code in LATER or code >= 500:
                    if code == BUSY and used_up(response.headers):
                        raise config.RunError(
                            f"services.{self._service}: the requests of its plan are used up ({shown}); wait for its "
                            f"next month, or take a larger plan. {GOES_ON}"
                        )
                    said, wait_s = shown, asked_wait(response.headers)
                else:
                    raise self._refusal(code, text, shown)
            if attempt < self._settings.attempts:
                self._hold(min(wait_s if wait_s is not None else backoff, LONGEST_PAUSE_S))
                backoff = min(2 * backoff, LONGEST_PAUSE_S)
        raise Refused(f"{self._service}: {said} (after {self._settings.attempts} attempts)")

    def _refusal(self, code: int, text: str, shown: str) -> config.RunError | Refused:
        """What an answer means that another attempt would not change."""
        variable = self._settings.key_variable
        if code in NO_KEY or "SUBSCRIPTION_TOKEN" in text:
            return config.RunError(
                f"services.{self._service}.key_variable={variable}: the service does not take the key in it ({shown}); "
                f"export {variable} with one of a plan that has this API. {GOES_ON}"
            )
        if 300 <= code < 400:
            return config.RunError(
                f"services.{self._service}.url={self._settings.url}: it sends elsewhere (HTTP {code}), where no key is "
                f"taken; give the address itself. {GOES_ON}"
            )
        return Refused(f"{self._service}: {shown}", code)

    def _key(self) -> str:
        """The key. Raises RunError where there is none, or what no header can carry."""
        variable = self._settings.key_variable
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            what = "holds what is no key" if key else "there is no such environment variable"
            raise config.RunError(
                f"services.{self._service}.key_variable={variable}: {what}; export {variable}=KEY before the command"
            )
        return key

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(timeout=self._settings.timeout_s)  # by the proxies of the environment
            return self._client

    def _hold(self, seconds: float) -> None:
        """Nobody asks before so many seconds are over."""
        with self._lock:
            self._next_s = max(self._next_s, self._clock() + seconds)

    def _wait_for_turn(self) -> None:
        """Until the pace allows another request. Raises RunError where the run has ended meanwhile."""
        while True:
            with self._lock:
                now_s = self._clock()
                if (wait_s := self._next_s - now_s) <= 0:
                    self._next_s = now_s + 1 / self._settings.per_second
            if self._fatal or (wait_s > 0 and self._pause(wait_s)):
                raise config.RunError(self._fatal)
            if wait_s <= 0:
                return


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds until another request, as the service says; None where it does not."""
    for name in ("Retry-After", "X-RateLimit-Reset"):  # the second: of the shortest window first
        try:
            return max(0.0, float(headers.get(name, "").partition(",")[0]))
        except ValueError:
            continue  # a date, which our own back-off serves as well, or nothing
    return None


def used_up(headers: Mapping[str, str]) -> bool:
    """Whether nothing is left of the longest window of several, a month; a plan that has no limit of it says 0 of 0."""
    left, most = (
        [part.strip() for part in headers.get(f"X-RateLimit-{name}", "").split(",")] for name in ("Remaining", "Limit")
    )
    return len(left) > 1 and left[-1] == "0" and most[-1] != "0"
