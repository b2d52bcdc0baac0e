"""Servers with OpenAI's API: one request to one of them. `dialects` says how to ask it, `pool` asks several at once.

No library but Python's own, and no proxies: nodes of a cluster are near.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from llama31 import config
from llama31.sampling import answers
from llama31.sampling.answers import Answer

LONGEST_PAUSE_S = 60.0
HEALTH = "health"  # an endpoint beside /v1, not under it
NOT_FOUND = 404
QUICK_S = 10.0  # for what a server knows without its model
PATIENT_S = 60.0  # the same, of a server that may be hard at work
FORMS = ("ids", "text", "text_with_bos")
STOPS = ("stop_token_ids", "generation_config", "stop")
BUSY = (425, 429, 503)
UNKNOWN = 401  # it wants a key
SILENT = (408, 502, 504)  # words of somebody before the server: it says nothing
# Sampling parameters that a server may have defaults for, of its own or of the folder's generation_config.json, with
# the value that changes nothing: vLLM's, SGLang's and OpenAI's, then what llama.cpp has beyond them.
NEUTRAL: Mapping[str, float] = {
    **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    **{"repeat_penalty": 1.0, "typical_p": 1.0, "top_n_sigma": -1.0, "dynatemp_range": 0.0, "mirostat": 0},
    **{"xtc_probability": 0.0, "dry_multiplier": 0.0},
}
# The same as transformers' generation_config has it, whose gaps it fills with the folder's values and its own.
PLAIN: Mapping[str, float] = {
    **{"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1},
}
REASONED = ("reasoning_content", "reasoning")  # where parsers of servers put what they take out of an answer
FINISHES = {"eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop", "max_tokens": "length"}
BROKEN = ("abort", "aborted", "cancelled", "error")  # finish reasons of answers that the server gave up


class Words(Protocol):
    """What is needed of a tokenizer."""

    bos_id: int
    vocab_size: int
    special: dict[str, int]

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
    tools: tuple[Mapping[str, Any], ...] = ()  # for chat; the ids have them


@dataclass(frozen=True)
class Facts:
    """What the probe found out about a server. Kept with every answer."""

    url: str
    model: str
    form: str  # how it takes a prompt: one of FORMS, or chat
    stops: str  # how it learns where to stop: one of STOPS
    checked: bool  # whether it tells how many tokens it reads, and these are the prompt's
    extra: int = 0  # tokens that its own template read beyond the prompt's, of the prompt that it was tried with
    keeps: bool = False  # whether it takes the wish that <|python_tag|> be kept in its text
    n: bool = False
    seeds: bool = False
    greedy: bool = False
    neutral: Mapping[str, float] = field(default_factory=dict)  # of NEUTRAL what it is asked besides
    truncated: bool | None = None  # whether it draws from a few tokens alone; None: that could not be found out
    lengths: bool = True  # whether it tells an answer that was cut off at max_new_tokens from one that ended

    @property
    def endpoint(self) -> str:
        return "chat/completions" if self.form == "chat" else "completions"

    def told(self) -> str:
        """One line on what it honours and what not."""
        ignored = [
            name for name, good in (("n", self.n), ("seed", self.seeds), ("temperature 0", self.greedy)) if not good
        ]
        said = f"does not honour {', '.join(ignored)}" if ignored else "honours n, seeds and temperature 0"
        read = "" if self.checked else "; it does not tell what it read, so prompts are taken on trust"
        if not self.lengths:
            read += "; it does not tell which answers were cut off"
        if self.truncated:
            read += "; it draws from a few tokens alone, whatever is asked"
        if self.extra:
            read += f"; its template makes another prompt of them, {self.extra:+} tokens: it answers that one"
        return (
            f"{self.url}: {self.model or 'its own model'}, prompts as {self.form}, ends by {self.stops}; {said}{read}"
        )


class Refused(Exception):
    """A server answered, and with nothing that can be used: this request has failed, others need not."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code  # of HTTP


class Dead(Exception):
    """A server does not answer any more."""


class Again(Exception):
    """Worth another attempt, after so many seconds if the server said so.

    `what` it did: garbage (it lives, and answers nonsense), busy (it lives, and says so), or silent.
    """

    def __init__(self, why: str, what: str = "silent", after_s: float | None = None) -> None:
        super().__init__(why)
        self.what, self.after_s = what, after_s


def _print(text: str) -> None:
    print(text, flush=True)


@dataclass
class Server:
    """One server. Methods may be called by several threads at once."""

    url: str
    settings: config.Server
    words: Words
    stops: Mapping[str, int]  # names and ids of the tokens that end an answer
    facts: Facts | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    ill: Refused | Again | None = None  # what it said when it was last asked whether it is well, and was not
    say: Callable[[str], None] = _print

    def __post_init__(self) -> None:
        self.url = address(self.url)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._answered_s = self._told_s = -math.inf
        self._lock = threading.Lock()

    def ask(self, request: Request) -> list[Answer]:
        """Answers to one request, at most `request.n`; they may be fewer. Raises Refused and Dead."""
        facts = self.facts
        assert facts is not None, "the probe comes first"
        if facts.form != "ids" and (name := spelled(request.ids, self.words)):
            raise Refused(f"the prompt's text spells {name}, which would become a token: this server takes no ids")
        return self._patiently(facts.endpoint, self.body(request, facts), request, facts)

    def body(self, request: Request, facts: Facts) -> dict[str, Any]:
        """What is sent, in the way that `facts` say."""
        body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "seed": request.seed}
        body |= {"model": facts.model} if facts.model else {}
        body |= {"temperature": request.temperature, "top_p": request.top_p}
        if request.n > 1:
            body["n"] = request.n
        if facts.form == "chat":
            body["messages"] = list(request.messages)
            body |= {"tools": list(request.tools)} if request.tools else {}
        elif facts.form == "ids":
            body["prompt"] = list(request.ids)
        else:
            body["prompt"] = self.words.decode(request.ids[1:] if facts.form == "text" else request.ids)
        if facts.keeps:
            body["skip_special_tokens"] = False
        body |= facts.neutral
        ids = sorted(self.stops.values())
        if facts.stops == "stop_token_ids":
            body["stop_token_ids"] = ids
        elif facts.stops == "generation_config":  # of transformers, which stays greedy unless told here
            given = {**PLAIN, "do_sample": request.temperature > 0, "eos_token_id": ids, "pad_token_id": ids[0]}
            body["generation_config"] = json.dumps({**given, "max_new_tokens": request.max_new_tokens})
        else:
            body["stop"] = sorted(self.stops)[:4]  # as many as OpenAI takes
        return body

    def _patiently(self, endpoint: str, body: dict[str, Any], request: Request, facts: Facts) -> list[Answer]:
        began_s, pause = time.monotonic(), self.settings.backoff_s
        for attempt in range(1, self.settings.attempts + 1):
            try:
                found = self.read(self.unhurried(endpoint, body), request, facts)
            except Again as error:
                last = error
            else:
                self._answered_s = time.monotonic()
                return found
            if last.what == "busy" or attempt == self.settings.attempts or self.closed.wait(pause):
                break
            pause = min(2 * pause, LONGEST_PAUSE_S)
        tried = f"{last} (after {attempt} attempts)" if last.what != "busy" else f"{last}, for too long"
        if last.what == "garbage" or (last.what == "busy" and self._answered_s > began_s) or self.closed.is_set():
            raise Refused(tried)
        if last.what == "silent" and self.healthy(PATIENT_S):
            raise Refused(f"{tried}; the server is well, so it is this prompt")
        raise Dead(f"{self.url}: {tried}")

    def unhurried(self, endpoint: str, body: Mapping[str, Any]) -> Any:
        """What `post` gives, asked again as long as the server says that it is busy: for `timeout_s` at most."""
        until_s, pause = time.monotonic() + self.settings.timeout_s, self.settings.backoff_s
        while True:
            try:
                return self.post(endpoint, body)
            except Again as error:
                if error.what != "busy" or time.monotonic() >= until_s:
                    raise
                self._tell_busy(error)
                if self.closed.wait(min(error.after_s or pause, LONGEST_PAUSE_S)):
                    raise
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _tell_busy(self, error: Again) -> None:
        """Once in a while, however many requests wait."""
        with self._lock:
            told_s, now_s = self._told_s, time.monotonic()
            if now_s - told_s < LONGEST_PAUSE_S:
                return
            self._told_s = now_s
        self.say(f"{self.url} is busy ({error}): waiting, {self.settings.timeout_s:g} s at most")

    def post(self, endpoint: str, body: Mapping[str, Any] | None, quick_s: float = QUICK_S) -> Any:
        """The JSON that the server answers; without `body` a GET, for which `quick_s` are enough.

        Raises Refused where it says no, and Again.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(self.settings.key_variable or ""):
            headers["Authorization"] = f"Bearer {token}"
        base = self.url.removesuffix("/v1") if endpoint == HEALTH else self.url
        address = f"{base}/{endpoint}"
        asked = urllib.request.Request(address, data, headers)
        try:
            wait_s = self.settings.timeout_s if data else min(self.settings.timeout_s, quick_s)
            with self._opener.open(asked, timeout=wait_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise _status(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise Again(str(getattr(error, "reason", error)) or repr(error)) from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise Again(f"no JSON but {text[:80]!r}", "garbage") from error

    def read(self, given: Any, request: Request, facts: Facts) -> list[Answer]:
        """The answers in what came back. Raises Again for nonsense, Refused where it is another prompt's."""
        choices = given.get("choices") if isinstance(given, dict) else None
        if not isinstance(choices, list) or not choices:
            raise Again(f"no choices in {json.dumps(given)[:120]}", "garbage")
        count, read = _usage(given, "completion_tokens") if len(choices) == 1 else None, read_tokens(given)
        places = [choice.get("index") for choice in choices if isinstance(choice, dict)]
        if len(set(places) - {None}) < sum(place is not None for place in places):
            raise Again(f"choices of one place, {places}", "garbage")
        found = [self._answer(choice, count, request, facts) for choice in choices[: request.n]]
        if facts.checked and read is None:
            raise Again("it does not tell any more how many tokens it read", "garbage")
        if facts.checked and read != len(request.ids):
            why = "; its chat template makes another prompt of it" if facts.form == "chat" else ""
            raise Refused(f"the server read {read} tokens where the prompt has {len(request.ids)}{why}")
        return found

    def _answer(self, choice: Any, tokens: int | None, request: Request, facts: Facts) -> Answer:
        told = choice if isinstance(choice, dict) else {}
        finish, why = told.get("finish_reason"), told.get("stop_reason")
        said = _said(told)
        if not isinstance(said, str | dict) or not isinstance(finish, str):
            raise Again(f"a choice without text or finish_reason: {json.dumps(choice)[:120]}", "garbage")
        finish = FINISHES.get(finish, answers.valid(finish))
        if finish in BROKEN:
            raise Again(f"it gave the answer up: finish_reason {finish}", "garbage")
        if finish == "stop" and not facts.lengths:
            finish = "untold" if tokens is None else "length" if tokens >= request.max_new_tokens else finish
        end = next((name for name, number in self.stops.items() if why in (name, number)), None)  # as vLLM tells
        return answers.of_server(said, finish, tokens, end)

    def healthy(self, quick_s: float = QUICK_S) -> bool:
        """Whether it lists its models now, or says that it is well; otherwise `ill` has the reason."""
        for endpoint in ("models", HEALTH):
            try:
                self.post(endpoint, None, quick_s)
            except Again as error:
                if error.what == "garbage" and endpoint != "models":  # vLLM is well without a word
                    return True
                self.ill = error
            except Refused as error:
                if error.code == NOT_FOUND and self._found_below(quick_s):
                    return True
                self.ill = error
                if error.code == UNKNOWN:  # who may not ask for its models may ask for nothing
                    return False
            else:
                return True
        return False

    def _found_below(self, quick_s: float) -> bool:
        """Whether the API stands under /v1, which the address has not; from now on it has."""
        if self.url.endswith("/v1"):
            return False
        below = replace(self, url=f"{self.url}/v1")
        try:
            below.post("models", None, quick_s)
        except (Refused, Again):
            return False
        self.say(f"server.urls={self.url}: its API stands under {below.url}, which is asked")
        self.url = below.url
        return True


def address(given: str) -> str:
    """The address that `given` means: http:// where it says no scheme, and no endpoint or slash at its end.

    Raises ValueError (key `server.urls`) for what is none.
    """
    url = given.strip() if "://" in given else f"http://{given.strip()}"
    for ending in ("/", "/chat/completions", "/completions", "/models", "/"):
        url = url.removesuffix(ending)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"server.urls={given}: no address; give one such as http://node1:8000/v1")
    return url


def _usage(given: Any, name: str) -> int | None:
    usage = given.get("usage") if isinstance(given, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _said(choice: Mapping[str, Any]) -> Any:
    """The text of a choice, or its message where that calls; None for what is neither. Raises Refused."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return choice.get("text")
    if kept := [key for key in REASONED if message.get(key)]:
        raise Refused(f"it keeps a part of its answer apart as {kept[0]}; start the server without a reasoning parser")
    if message.get("tool_calls"):
        return message
    if message.get("content") is None:  # of an answer that ends at once, and of OpenAI's refusals
        return message.get("refusal") or ("" if "content" in message else None)
    return message["content"]


def read_tokens(given: Any) -> int | None:
    """Tokens of the prompt as the server that answered this read it; None where it does not tell."""
    return _usage(given, "prompt_tokens")


def _status(error: urllib.error.HTTPError) -> Refused | Again:
    """What an answer that is not 200 means."""
    try:
        text = error.read()[:300].decode(errors="replace")
    except (OSError, http.client.HTTPException) as cut:
        text = f"(its text is cut off: {cut!r})"
    said = f"HTTP {error.code}: {text}"
    if error.code in BUSY:
        return Again(said, "busy", _seconds(error.headers.get("Retry-After")))
    if error.code in SILENT:
        return Again(said)
    # an error of its own may be this prompt's fault, and no reason to give the server up
    return Again(said, "garbage") if error.code == 500 else Refused(said, error.code)


def spelled(ids: Sequence[int], words: Words) -> str | None:
    """A special token's name that stands as text among the ids of a prompt; None without one."""
    meant, text = Counter(ids), words.decode(ids)
    return next((name for name, number in words.special.items() if text.count(name) > meant[number]), None)


def _seconds(given: str | None) -> float | None:
    try:
        return None if given is None else max(0.0, float(given))
    except ValueError:
        return None  # a date, which our own back-off serves as well as


def provenance(facts: Facts) -> dict[str, Any]:
    """What a record says about the server that it came from."""
    return asdict(facts)
