"""Servers with OpenAI's API: one request to one of them. `capability_probe` finds out how, `pool` asks several.

httpx2 asks, whatever proxies the environment names, for nodes of a cluster are near. What a failure means, and whether
it is worth another attempt, is decided here.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol

import httpx2

from llama31 import config
from llama31.sampling import answers
from llama31.sampling.answers import Answer

LONGEST_PAUSE_S = 60.0
HEALTH, CLASSIFY = "health", "classify"  # endpoints beside /v1, not under it
NOT_FOUND = 404
METADATA_TIMEOUT_S = 10.0  # for what a server knows without its model
HEALTH_TIMEOUT_S = 60.0  # the same, of a server that may be hard at work
PROMPT_FORMATS = ("ids", "text", "text_with_bos")
STOPS = ("stop_token_ids", "generation_config", "stop")
TEMPLATE = "template"  # of a chat model: as its own template ends, of which it need not be told
BUSY = (425, 429, 503)
UNAUTHORIZED = 401  # it wants a key
NO_ANSWER = (408, 502, 504)  # a proxy before the server says so: the server says nothing
# Sampling parameters that a server may have defaults for, of its own or of the folder's generation_config.json, with
# the value that changes nothing: vLLM's, SGLang's and OpenAI's, then what llama.cpp has beyond them.
NEUTRAL: Mapping[str, float] = {
    **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    **{"repeat_penalty": 1.0, "typical_p": 1.0, "top_n_sigma": -1.0, "dynatemp_range": 0.0, "mirostat": 0},
    **{"xtc_probability": 0.0, "dry_multiplier": 0.0},
}
# The same as transformers' generation_config has it, whose gaps it fills with the folder's values and its own.
NEUTRAL_GENERATION_CONFIG: Mapping[str, float] = {
    **{"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1},
}
REASONING_KEYS = ("reasoning_content", "reasoning")  # where parsers of servers put what they take out of an answer
FINISH_REASONS = {**dict.fromkeys(("eos", "eos_token", "stop_sequence", "end_turn"), "stop"), "max_tokens": "length"}
ABORTED = ("abort", "aborted", "cancelled", "error")  # finish reasons of answers that the server gave up


class Tokenizer(Protocol):
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
class Capabilities:
    """What the probe found out about a server. Kept with every answer."""

    url: str
    model: str
    form: str  # how it takes a prompt: one of PROMPT_FORMATS, chat, or CLASSIFY
    stops: str  # how it learns where to stop: one of STOPS, or TEMPLATE
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
        return {"chat": "chat/completions", CLASSIFY: CLASSIFY}.get(self.form, "completions")

    def summary(self) -> str:
        """One line on what it honours and what not."""
        ignored = [
            name for name, good in (("n", self.n), ("seed", self.seeds), ("temperature 0", self.greedy)) if not good
        ]
        sampling = f"does not honour {', '.join(ignored)}" if ignored else "honours n, seeds and temperature 0"
        notes = "" if self.checked else "; it does not tell what it read, so prompts are taken on trust"
        if not self.lengths:
            notes += "; it does not tell which answers were cut off"
        if self.truncated:
            notes += "; it draws from a few tokens alone, whatever is asked"
        if self.extra:
            notes += f"; its template makes another prompt of them, {self.extra:+} tokens: it answers that one"
        model = self.model or "its own model"
        return f"{self.url}: {model}, prompts as {self.form}, ends by {self.stops}; {sampling}{notes}"


class Refused(Exception):
    """A server answered, and with nothing that can be used: this request has failed, others need not."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code  # of HTTP


class ServersUnavailable(Exception):
    """A server does not answer any more."""


class Retryable(Exception):
    """Worth another attempt, after so many seconds if the server said so.

    `kind`: garbage (it lives, and answers nonsense), busy (it lives, and says so), or silent.
    """

    def __init__(self, why: str, kind: str = "silent", after_s: float | None = None) -> None:
        super().__init__(why)
        self.kind, self.after_s = kind, after_s


def _print(text: str) -> None:
    print(text, flush=True)


@dataclass
class Server:
    """One server. Methods may be called by several threads at once."""

    url: str
    settings: config.Server
    tokenizer: Tokenizer
    stops: Mapping[str, int]  # names and ids of the tokens that end an answer
    capabilities: Capabilities | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    fault: Refused | Retryable | None = None  # what it said when it was last asked whether it is well, and was not
    log: Callable[[str], None] = _print

    def __post_init__(self) -> None:
        self.url = address(self.url)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # by which balancers send all to one
        # uvicorn closes what is idle for 5 s, as httpx2 does: who asks at that moment would hear nothing
        limits = httpx2.Limits(max_connections=self.settings.concurrency, keepalive_expiry=1.0)
        transport = httpx2.HTTPTransport(limits=limits)  # a client with a transport given asks no proxies
        self._client = httpx2.Client(transport=transport, cookies=no_cookies, follow_redirects=True)
        # whether it is well is not asked behind the requests that make one doubt it
        self._other = httpx2.Client(transport=httpx2.HTTPTransport(), cookies=no_cookies, follow_redirects=True)
        self._answered_s = self._logged_s = -math.inf
        self._lock = threading.Lock()

    def ask(self, request: Request) -> list[Answer]:
        """Answers to one request, at most `request.n`; they may be fewer. Raises Refused and ServersUnavailable."""
        capabilities = self.capabilities
        assert capabilities is not None, "the probe comes first"
        if capabilities.form != "ids" and (name := spelled_special(request.ids, self.tokenizer)):
            raise Refused(f"the prompt's text spells {name}, which would become a token: this server takes no ids")
        return self._with_retries(capabilities.endpoint, self.body(request, capabilities), request, capabilities)

    def body(self, request: Request, capabilities: Capabilities) -> dict[str, Any]:
        """What is sent, in the way that `capabilities` say."""
        body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "seed": request.seed}
        body |= {"model": capabilities.model} if capabilities.model else {}
        body |= {"temperature": request.temperature, "top_p": request.top_p}
        if request.n > 1:
            body["n"] = request.n
        if capabilities.form == "chat":
            body["messages"] = list(request.messages)
            body |= {"tools": list(request.tools)} if request.tools else {}
        elif capabilities.form == "ids":
            body["prompt"] = list(request.ids)
        else:
            body["prompt"] = self.tokenizer.decode(request.ids[1:] if capabilities.form == "text" else request.ids)
        if capabilities.keeps:
            body["skip_special_tokens"] = False
        body |= capabilities.neutral
        if capabilities.stops == TEMPLATE:
            return body
        ids = sorted(self.stops.values())
        if capabilities.stops == "stop_token_ids":
            body["stop_token_ids"] = ids
        elif capabilities.stops == "generation_config":  # of transformers, which stays greedy unless told here
            limits = {"max_new_tokens": request.max_new_tokens, "eos_token_id": ids, "pad_token_id": ids[0]}
            draws = {**NEUTRAL_GENERATION_CONFIG, "do_sample": request.temperature > 0}
            body["generation_config"] = json.dumps({**draws, **limits})
        else:
            body["stop"] = sorted(self.stops)[:4]  # as many as OpenAI takes
        return body

    def _with_retries(
        self, endpoint: str, body: dict[str, Any], request: Request, capabilities: Capabilities
    ) -> list[Answer]:
        began_s, pause = time.monotonic(), self.settings.backoff_s
        for attempt in range(1, self.settings.attempts + 1):
            try:
                result = self.read(self.post_waiting(endpoint, body), request, capabilities)
            except Retryable as error:
                last = error
            else:
                self._answered_s = time.monotonic()
                return result
            if last.kind == "busy" or attempt == self.settings.attempts or self.closed.wait(pause):
                break
            pause = min(2 * pause, LONGEST_PAUSE_S)
        tried = f"{last} (after {attempt} attempts)" if last.kind != "busy" else f"{last}, for too long"
        if last.kind == "garbage" or (last.kind == "busy" and self._answered_s > began_s) or self.closed.is_set():
            raise Refused(tried)
        if last.kind == "silent" and self.healthy(HEALTH_TIMEOUT_S):
            raise Refused(f"{tried}; the server is well, so it is this prompt")
        raise ServersUnavailable(f"{self.url}: {tried}")

    def post_waiting(self, endpoint: str, body: Mapping[str, Any]) -> Any:
        """What `post` gives, asked again as long as the server says that it is busy: for `timeout_s` at most."""
        until_s, pause = time.monotonic() + self.settings.timeout_s, self.settings.backoff_s
        while True:
            try:
                return self.post(endpoint, body)
            except Retryable as error:
                if error.kind != "busy" or time.monotonic() >= until_s:
                    raise
                self._log_busy(error)
                if self.closed.wait(min(error.after_s or pause, LONGEST_PAUSE_S)):
                    raise
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _log_busy(self, error: Retryable) -> None:
        """Once in a while, however many requests wait."""
        with self._lock:
            logged_s, now_s = self._logged_s, time.monotonic()
            if now_s - logged_s < LONGEST_PAUSE_S:
                return
            self._logged_s = now_s
        self.log(f"{self.url} is busy ({error}): waiting, {self.settings.timeout_s:g} s at most")

    def post(self, endpoint: str, body: Mapping[str, Any] | None, quick_s: float = METADATA_TIMEOUT_S) -> Any:
        """The JSON that the server answers; without `body` a GET, for which `quick_s` are enough.

        Raises Refused where it says no, and Retryable.
        """
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(self.settings.key_variable or ""):
            headers["Authorization"] = f"Bearer {token}"
        address = f"{self.url.removesuffix('/v1') if endpoint in (HEALTH, CLASSIFY) else self.url}/{endpoint}"
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        client = self._other if body is None else self._client
        wait_s = self.settings.timeout_s if data else min(self.settings.timeout_s, quick_s)
        timeout = httpx2.Timeout(wait_s, pool=None)  # what waits for a free connection has not been asked yet
        try:
            with client.stream(method, address, content=data, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    raise _http_error(response)
                text = response.read()
        except httpx2.HTTPError as error:
            raise Retryable(str(error) or repr(error)) from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise Retryable(f"no JSON but {text[:80]!r}", "garbage") from error

    def read(self, response: Any, request: Request, capabilities: Capabilities) -> list[Answer]:
        """The answers in what came back. Raises Retryable for nonsense, Refused where it is another prompt's."""
        choices = response.get("choices") if isinstance(response, dict) else None
        if not isinstance(choices, list) or not choices:
            raise Retryable(f"no choices in {json.dumps(response)[:120]}", "garbage")
        completion_tokens = _usage(response, "completion_tokens") if len(choices) == 1 else None
        prompt_tokens = read_tokens(response)
        indices = [choice.get("index") for choice in choices if isinstance(choice, dict)]
        if len(set(indices) - {None}) < sum(index is not None for index in indices):
            raise Retryable(f"choices of one place, {indices}", "garbage")
        results = [self._answer(choice, completion_tokens, request, capabilities) for choice in choices[: request.n]]
        if capabilities.checked and prompt_tokens is None:
            raise Retryable("it does not tell any more how many tokens it read", "garbage")
        if capabilities.checked and prompt_tokens != len(request.ids):
            why = "; its chat template makes another prompt of it" if capabilities.form == "chat" else ""
            raise Refused(f"the server read {prompt_tokens} tokens where the prompt has {len(request.ids)}{why}")
        return results

    def _answer(self, choice: Any, tokens: int | None, request: Request, capabilities: Capabilities) -> Answer:
        fields = choice if isinstance(choice, dict) else {}
        finish, stop_reason, content = fields.get("finish_reason"), fields.get("stop_reason"), _content(fields)
        if not isinstance(content, str | dict) or not isinstance(finish, str):
            raise Retryable(f"a choice without text or finish_reason: {json.dumps(choice)[:120]}", "garbage")
        finish = FINISH_REASONS.get(finish, answers.valid(finish))
        if finish in ABORTED:
            raise Retryable(f"it gave the answer up: finish_reason {finish}", "garbage")
        if finish == "stop" and not capabilities.lengths:
            finish = "untold" if tokens is None else "length" if tokens >= request.max_new_tokens else finish
        end = next(
            (name for name, number in self.stops.items() if stop_reason in (name, number)), None
        )  # as vLLM tells
        return answers.of_server(content, finish, tokens, end)

    def healthy(self, quick_s: float = METADATA_TIMEOUT_S) -> bool:
        """Whether it lists its models now, or says that it is well; otherwise `fault` has the reason."""
        for endpoint in ("models", HEALTH):
            try:
                self.post(endpoint, None, quick_s)
            except Retryable as error:
                if error.kind == "garbage" and endpoint != "models":  # vLLM is well without a word
                    return True
                self.fault = error
            except Refused as error:
                if error.code == NOT_FOUND and self._stands_below(quick_s):
                    return True
                self.fault = error
                if error.code == UNAUTHORIZED:  # who may not ask for its models may ask for nothing
                    return False
            else:
                return True
        return False

    def _stands_below(self, quick_s: float) -> bool:
        """Whether the API stands under /v1, which the address has not; from now on it has."""
        if self.url.endswith("/v1"):
            return False
        below = replace(self, url=f"{self.url}/v1")
        try:
            below.post("models", None, quick_s)
        except (Refused, Retryable):
            return False
        self.log(f"server.urls={self.url}: its API stands under {below.url}, which is asked")
        self.url = below.url
        return True


def address(given: str) -> str:
    """The address that `given` means: http:// where it says no scheme, and no endpoint or slash at its end.

    Raises ValueError (key `server.urls`) for what is none.
    """
    url = given.strip() if "://" in given else f"http://{given.strip()}"
    for ending in ("/", "/chat/completions", "/completions", "/models", "/"):
        url = url.removesuffix(ending)
    if not is_address(url):
        raise ValueError(f"server.urls={given}: no address; give one such as http://node1:8000/v1")
    return url


def is_address(url: str) -> bool:
    """Whether requests of HTTP can be sent there."""
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def _usage(response: Any, name: str) -> int | None:
    usage = response.get("usage") if isinstance(response, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _content(choice: Mapping[str, Any]) -> Any:
    """The text of a choice, or its message where that calls; None for what is neither. Raises Refused."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return choice.get("text")
    if kept := [key for key in REASONING_KEYS if message.get(key)]:
        raise Refused(f"it keeps a part of its answer apart as {kept[0]}; start the server without a reasoning parser")
    if message.get("tool_calls"):
        return message
    if message.get("content") is None:  # of an answer that ends at once, and of OpenAI's refusals
        return message.get("refusal") or ("" if "content" in message else None)
    return message["content"]


def read_tokens(response: Any) -> int | None:
    """Tokens of the prompt as the server that answered this read it; None where it does not tell."""
    return _usage(response, "prompt_tokens")


def _http_error(response: httpx2.Response) -> Refused | Retryable:
    """What an answer that is no success means."""
    try:
        text = response.read()[:300].decode(errors="replace")
    except httpx2.HTTPError as cut:
        text = f"(its text is cut off: {cut!r})"
    code, reason = response.status_code, f"HTTP {response.status_code}: {text}"
    if code in BUSY:
        return Retryable(reason, "busy", _retry_after(response.headers.get("Retry-After")))
    if code in NO_ANSWER:
        return Retryable(reason)
    # an error of its own may be this prompt's fault, and no reason to give the server up
    return Retryable(reason, "garbage") if code == 500 else Refused(reason, code)


def spelled_special(ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    """A special token's name that stands as text among the ids of a prompt; None without one."""
    meant, text = Counter(ids), tokenizer.decode(ids)
    return next((name for name, number in tokenizer.special.items() if text.count(name) > meant[number]), None)


def _retry_after(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # a date, which our own back-off serves as well as


def provenance(capabilities: Capabilities) -> dict[str, Any]:
    """What a record says about the server that it came from."""
    return asdict(capabilities)
