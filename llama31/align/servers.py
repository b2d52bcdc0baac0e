"""Servers with OpenAI's API: asked for answers, and asked first whether they do what they are asked.

Servers accept `n`, `seed` and `temperature` and ignore them in silence, take text for ids, or put a second
<|begin_of_text|> in front. So each is probed at the start (`probe`): what it honours is a fact of the record, and what
it does not is worked around or refused. No library but Python's own, and no proxies: nodes of a cluster are near.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from llama31 import config

LONGEST_PAUSE_S = 60.0
QUICK_S = 10.0  # for what a server knows without its model
HOT = 2.0  # temperature of the probe, the highest that OpenAI's API knows: any model varies
PROBE_TOKENS = 24
FORMS = ("ids", "text", "text_with_bos")
STOPS = ("stop_token_ids", "generation_config", "stop")
BUSY = (408, 425, 429, 500, 502, 503, 504)


class Words(Protocol):
    """What is needed of a tokenizer."""

    bos_id: int

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Request:
    """A prompt as ids and as messages, and how to go on."""

    ids: tuple[int, ...]
    messages: tuple[Mapping[str, Any], ...]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    n: int = 1


@dataclass(frozen=True)
class Answer:
    """What was said, why it ended (stop, length or another word of the server's), and its tokens where told."""

    text: str
    finish: str
    tokens: int | None = None


@dataclass(frozen=True)
class Facts:
    """What the probe found out about a server. Kept with every answer."""

    url: str
    model: str
    form: str  # how it takes a prompt: one of FORMS, or chat
    stops: str  # how it learns where to stop: one of STOPS
    checked: bool  # whether it told how many tokens it read
    n: bool = False
    seeds: bool = False
    greedy: bool = False

    def told(self) -> str:
        """One line on what it honours and what not."""
        ignored = [
            name for name, good in (("n", self.n), ("seed", self.seeds), ("temperature 0", self.greedy)) if not good
        ]
        said = f"does not honour {', '.join(ignored)}" if ignored else "honours n, seeds and temperature 0"
        read = "" if self.checked else "; it does not tell what it read, so prompts are taken on trust"
        return (
            f"{self.url}: {self.model or 'its own model'}, prompts as {self.form}, ends by {self.stops}; {said}{read}"
        )


class Refused(Exception):
    """A server answered, and with nothing that can be used: this request has failed, others need not."""


class Dead(Exception):
    """A server does not answer any more."""


class _Again(Exception):
    """Worth another attempt, after so many seconds if the server said so. `garbage`: it lives and answers nonsense."""

    def __init__(self, why: str, garbage: bool = False, after_s: float | None = None) -> None:
        super().__init__(why)
        self.garbage, self.after_s = garbage, after_s


@dataclass
class Server:
    """One server. Methods may be called by several threads at once."""

    url: str
    settings: config.Server
    words: Words
    stops: Mapping[str, int]  # names and ids of the tokens that end an answer
    facts: Facts | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    # --- one request ---

    def ask(self, request: Request) -> list[Answer]:
        """Answers to one request, at most `request.n`; they may be fewer. Raises Refused and Dead."""
        facts = self.facts
        assert facts is not None, "probe comes first"
        endpoint = "chat/completions" if facts.form == "chat" else "completions"
        return self._patiently(endpoint, self._body(request, facts), request, facts)

    def _body(self, request: Request, facts: Facts) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "seed": request.seed}
        body |= {"model": facts.model} if facts.model else {}
        body |= {"temperature": request.temperature, "top_p": request.top_p}
        if request.n > 1:
            body["n"] = request.n
        if facts.form == "chat":
            body["messages"] = list(request.messages)
        elif facts.form == "ids":
            body["prompt"] = list(request.ids)
        else:
            body["prompt"] = self.words.decode(request.ids[1:] if facts.form == "text" else request.ids)
        ids = sorted(self.stops.values())
        if facts.stops == "stop_token_ids":
            body["stop_token_ids"] = ids
        elif facts.stops == "generation_config":  # of transformers, which stays greedy unless told here
            given = {"do_sample": request.temperature > 0, "eos_token_id": ids, "pad_token_id": ids[0]}
            body["generation_config"] = json.dumps({**given, "max_new_tokens": request.max_new_tokens})
        else:
            body["stop"] = sorted(self.stops)[:4]  # as many as OpenAI takes
        return body

    def _patiently(self, endpoint: str, body: dict[str, Any], request: Request, facts: Facts) -> list[Answer]:
        last, pause = _Again("never asked"), self.settings.backoff_s
        for attempt in range(self.settings.attempts):
            if attempt and self.closed.wait(min(last.after_s or pause, LONGEST_PAUSE_S)):
                break
            pause = 2 * pause if attempt else pause
            try:
                return self._read(self._post(endpoint, body), request, facts)
            except _Again as error:
                last = error
        tried = f"{last} (after {self.settings.attempts} attempts)"
        raise Refused(tried) if last.garbage else Dead(f"{self.url}: {tried}")

    def _post(self, endpoint: str, body: Mapping[str, Any] | None) -> Any:
        """The JSON that the server answers; a GET without `body`. Raises Refused where it says no."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(self.settings.key_variable or ""):
            headers["Authorization"] = f"Bearer {token}"
        address = f"{self.url.rstrip('/')}/{endpoint}".replace("/v1/../", "/")
        asked = urllib.request.Request(address, data, headers)
        try:
            wait_s = self.settings.timeout_s if data else min(self.settings.timeout_s, QUICK_S)
            with self._opener.open(asked, timeout=wait_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}: {error.read()[:300].decode(errors='replace')}"
            if error.code in BUSY:
                # an error of its own may be this prompt's fault, and no reason to give the server up
                after_s = _seconds(error.headers.get("Retry-After"))
                raise _Again(said, garbage=error.code == 500, after_s=after_s) from error
            raise Refused(said) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Again(str(getattr(error, "reason", error)) or repr(error)) from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise _Again(f"no JSON but {text[:80]!r}", garbage=True) from error

    def _read(self, given: Any, request: Request, facts: Facts) -> list[Answer]:
        choices = given.get("choices") if isinstance(given, dict) else None
        if not isinstance(choices, list) or not choices:
            raise _Again(f"no choices in {json.dumps(given)[:120]}", garbage=True)
        usage = given.get("usage") if isinstance(given.get("usage"), dict) else {}
        read = usage.get("prompt_tokens")
        if facts.checked and isinstance(read, int) and read != len(request.ids):
            raise Refused(f"the server read {read} tokens where the prompt has {len(request.ids)}")
        count = usage.get("completion_tokens") if len(choices) == 1 else None
        return [_answer(choice, count if isinstance(count, int) else None) for choice in choices[: request.n]]

    # --- what it does ---

    def healthy(self) -> bool:
        """Whether it lists its models now, or says that it is well."""
        for endpoint in ("models", "../health"):
            try:
                self._post(endpoint, None)
            except _Again as error:
                if error.garbage and endpoint != "models":  # vLLM is well without a word
                    return True
            except Refused:
                continue
            else:
                return True
        return False

    def probe(self, example: Request) -> Facts:
        """Find out what this server takes and honours, with a prompt of the run. `facts` says so from now on.

        Raises ValueError (key `server.urls`) where it cannot be sampled from: it answers nothing, or the same whatever
        the seed at a high temperature.
        """
        short = replace(example, max_new_tokens=min(example.max_new_tokens, PROBE_TOKENS), temperature=0.0, n=1)
        self.facts = self._dialect(short)
        greedy = {self._one(replace(short, seed=seed)) for seed in (1, 2)}
        # at once, as the run will ask: a server may honour seeds of requests that come one by one
        hot = replace(short, temperature=HOT, top_p=1.0)
        with ThreadPoolExecutor(4) as pool:
            first, again, *others = pool.map(lambda seed: self._one(replace(hot, seed=seed)), (1, 1, 2, 3, 4))
        varied = {first, *others} if first == again else {first, again, *others}
        if len(varied) == 1 and example.temperature > 0:
            raise ValueError(
                f"server.urls={self.url}: five seeds at temperature {HOT:g} give one answer, {first[:40]!r}; "
                "it ignores the temperature (or the model says one thing only): nothing can be sampled from it"
            )
        several = self.ask(replace(hot, n=2))
        n = len(several) == 2 and (several[0].text != several[1].text or len(varied) == 1)
        self.facts = replace(
            self.facts, n=n, seeds=first == again and len({first, *others}) > 1, greedy=len(greedy) == 1
        )
        return self.facts

    def _one(self, request: Request) -> str:
        try:
            return self.ask(request)[0].text
        except (Refused, Dead) as error:
            raise ValueError(f"server.urls={self.url}: the first requests fail: {error}; look at its log") from error

    def _models(self) -> tuple[list[str], list[str]]:
        """Names to ask for, in this order ("": none, so that the server takes its own), and those that it lists.

        The list decides nothing: transformers lists its cache instead of what it serves.
        """
        try:
            listed = [str(one["id"]) for one in self._post("models", None)["data"]]
        except (Refused, _Again, KeyError, TypeError):
            listed = []
        if self.settings.model:
            return [self.settings.model], listed
        return [*(listed if len(listed) == 1 else []), ""], listed

    def _dialect(self, example: Request) -> Facts:
        """The first way of asking that the server takes, and by which it reads as many tokens as the prompt has."""
        models, listed = self._models()
        forms = ("chat",) if self.settings.api == "chat" else FORMS
        trusted, refusals = None, []
        for model, form, stops in itertools.product(models, forms, STOPS):
            facts = Facts(self.url, model, form, stops, checked=form != "chat")
            endpoint = "chat/completions" if form == "chat" else "completions"
            try:
                given = self._post(endpoint, self._body(example, facts))
                self._read(given, example, facts)
            except (Refused, _Again) as error:
                refusals.append(f"{form} with {stops}: {error}")
                continue
            if form == "chat" or isinstance((given.get("usage") or {}).get("prompt_tokens"), int):
                return facts
            trusted = trusted or replace(facts, checked=False)
        if trusted:
            return trusted
        said, names = "\n  ".join(refusals), ", ".join(listed) or "nothing"
        raise ValueError(
            f"server.urls={self.url}: it takes a prompt in no way that we know; it lists {names} (server.model="
            f"{self.settings.model or 'null'}):\n  {said}"
        )


def _answer(choice: Any, tokens: int | None) -> Answer:
    told = choice if isinstance(choice, dict) else {}
    message = told.get("message")
    text = message.get("content") if isinstance(message, dict) else told.get("text")
    finish = told.get("finish_reason")
    if not isinstance(text, str) or not isinstance(finish, str):
        raise _Again(f"a choice without text or finish_reason: {json.dumps(choice)[:120]}", garbage=True)
    return Answer(text, finish, tokens)


def _seconds(given: str | None) -> float | None:
    try:
        return None if given is None else max(0.0, float(given))
    except ValueError:
        return None  # a date, which our own back-off serves as well as


def connect(settings: config.Server, words: Words, stops: Mapping[str, int], example: Request) -> list[Server]:
    """All servers of `settings`, awaited and probed. Raises ValueError, and RunError where one does not come up."""
    found = [Server(url, settings, words, stops) for url in settings.urls]
    until = time.monotonic() + settings.wait_s
    while sick := [server.url for server in found if not server.healthy()]:
        if time.monotonic() >= until:
            waited = f" within {settings.wait_s:g} s" if settings.wait_s else ""
            raise config.RunError(f"no answer{waited} from {', '.join(sick)}; start it, or give server.wait_s time")
        time.sleep(min(1.0, max(0.05, until - time.monotonic())))
    for server in found:
        server.probe(example)
    return found


class Pool:
    """Several servers at work: each request goes to the one with least to do, and to another when that one dies."""

    def __init__(self, servers: Sequence[Server], concurrency: int) -> None:
        self.servers, self._room = list(servers), concurrency * len(servers)
        self._busy = {server.url: 0 for server in servers}
        self._dead: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(self, requests: Iterable[tuple[Any, Request]]) -> Iterator[tuple[Any, list[Answer] | Refused, Facts]]:
        """(key, request) -> (key, answers or why there are none, who answered), as they come in.

        Raises RunError when no server is left, after everything that was under way has been given back.
        """
        waiting, under_way = iter(requests), set[Future[tuple[Any, list[Answer] | Refused, Facts]]]()
        executor, more, ended = ThreadPoolExecutor(self._room), True, False
        try:
            while more or under_way:
                while more and len(under_way) < self._room and len(self._dead) < len(self.servers):
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
                    elif not isinstance(error, Dead):
                        raise error
            if len(self._dead) == len(self.servers):
                raise config.RunError("no server answers any more: " + "; ".join(self._dead.values()))
            ended = True
        finally:
            if not ended:  # nobody waits for another attempt any more
                for server in self.servers:
                    server.closed.set()
            executor.shutdown(cancel_futures=True)

    def _ask(self, key: Any, request: Request) -> tuple[Any, list[Answer] | Refused, Facts]:
        while True:
            server = self._choose()
            assert server.facts is not None
            try:
                return key, server.ask(request), server.facts
            except Refused as error:
                return key, error, server.facts
            except Dead as error:
                with self._lock:
                    self._dead[server.url] = str(error)
            finally:
                with self._lock:
                    self._busy[server.url] -= 1

    def _choose(self) -> Server:
        with self._lock:
            alive = [server for server in self.servers if server.url not in self._dead]
            if not alive:
                raise Dead("none is left")
            chosen = min(alive, key=lambda server: self._busy[server.url])
            self._busy[chosen.url] += 1
            return chosen


def provenance(facts: Facts) -> dict[str, Any]:
    """What a record says about the server that it came from."""
    return asdict(facts)
