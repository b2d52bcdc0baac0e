"""How a server is asked, and whether it does what it is asked: found out at the start, with a prompt of the run.

Servers accept `n`, `seed` and `temperature` and ignore them in silence, take text for ids, or put a second
<|begin_of_text|> in front. What a server honours is a fact of the record; what it does not is worked around or refused.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from llama31 import config
from llama31.sampling.answers import Answer
from llama31.sampling.servers import (
    NEUTRAL,
    PROMPT_FORMATS,
    STOPS,
    TEMPLATE,
    UNAUTHORIZED,
    Capabilities,
    Refused,
    Request,
    Retryable,
    Server,
    ServersUnavailable,
    Tokenizer,
    read_tokens,
)

HIGH_TEMPERATURE = 2.0  # temperature of the probe, the highest that OpenAI's API knows: any model varies
UNIFORM_TEMPERATURE = 1e4  # temperature at which every token of the vocabulary is as likely as any other
DRAWS, ROUNDS = 48, 4  # tokens that are drawn at it, and how often at most until MIN_DRAWS of them can be told apart
MIN_DRAWS = 36
SIGNIFICANCE = 1e-6  # likelihood of so many equal ones among them below which they are no chance
VOCABULARY_SAMPLE = 4096  # ids of the vocabulary, evenly spaced, by which the number of different texts is judged
PROBE_TOKENS = 24


def connect(settings: config.Server, tokenizer: Tokenizer, stops: Mapping[str, int], example: Request) -> list[Server]:
    """All servers of `settings`, awaited and probed.

    After a wait, those that came up do the work of the others, which is told. Raises ValueError, and RunError where
    none came up, or one that should have been there at once did not.
    """
    servers = awaited(settings, tokenizer, stops)
    for server in servers:
        probe(server, example)
    return servers


class NoTokens:
    """A tokenizer for servers that are given messages and asked for no ids."""

    bos_id, vocab_size = 0, 0

    def __init__(self) -> None:
        self.special: dict[str, int] = {}

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def connect_chat(settings: config.Server, example: Request) -> list[Server]:
    """The servers that are up as chats, each with the model that it is asked for; nothing of their tokens is known.

    Raises RunError where none is, and ValueError (key `server.urls`) for one that answers no question of a chat.
    """
    if not settings.urls:
        raise ValueError("server.urls=[]: this asks a chat model; give the address of a server with OpenAI's API")
    servers = awaited(settings, NoTokens(), {})
    for server in servers:
        names, listed = models(server)
        refusals = []
        for name in names:
            server.capabilities = Capabilities(server.url, name, "chat", TEMPLATE, checked=False)
            try:
                server.ask(example)
                break
            except Refused as error:
                refusals.append(f"{name or 'its own model'}: {error}")
        else:
            raise ValueError(
                f"server.urls={server.url}: it answers no question as a chat; it lists "
                f"{', '.join(listed) or 'nothing'} (server.model={settings.model or 'null'}):\n  "
                + "\n  ".join(refusals)
            )
    return servers


def awaited(
    settings: config.Server, tokenizer: Tokenizer, stops: Mapping[str, int], kind: type[Server] = Server
) -> list[Server]:
    """All servers of `settings` that are up, each once, not probed; see `connect` for the wait and for what it raises.

    `stops` are the names and ids of the tokens that end an answer.
    """
    servers = list({one.url: one for one in (kind(url, settings, tokenizer, stops) for url in settings.urls)}.values())
    until = time.monotonic() + settings.wait_s
    while sick := [server for server in servers if not server.healthy()]:
        for server in sick:
            if isinstance(server.fault, Refused) and server.fault.code == UNAUTHORIZED:
                raise ValueError(
                    f"server.key_variable={settings.key_variable or 'null'}: {server.url} takes no request with this "
                    f"key, {server.fault}; name the environment variable that has its key"
                )
        if time.monotonic() >= until:
            waited = f" within {settings.wait_s:g} s" if settings.wait_s else ""
            reasons = "; ".join(f"{server.url} ({server.fault})" for server in sick)
            if settings.wait_s and len(sick) < len(servers):
                sick[0].log(f"no answer{waited} from {reasons}: going on without")
                servers = [server for server in servers if server not in sick]
                break
            raise config.RunError(f"no answer{waited} from {reasons}; start it, or give server.wait_s time")
        time.sleep(min(1.0, max(0.05, until - time.monotonic())))
    return list({server.url: server for server in servers}.values())  # two of which one was mended may be the same


def probe(server: Server, example: Request) -> Capabilities:
    """Find out what a server takes and honours. `server.capabilities` says so from now on.

    Raises ValueError (key `server.urls`) where it cannot be sampled from: it answers nothing, repeats its prompt, or
    says the same whatever the seed at a high temperature; where it heeds no limit of tokens; and, unless
    `server.truncated=accept`, where it draws from a few tokens alone.
    """
    short = replace(example, max_new_tokens=min(example.max_new_tokens, PROBE_TOKENS), temperature=0.0, n=1)
    server.capabilities = _with_special_kept(server, short, _request_format(server, short))
    server.capabilities = _with_neutral(server, replace(short, max_new_tokens=1), server.capabilities)
    greedy = {_answer_text(server, replace(short, seed=seed)) for seed in (1, 2)}
    # at once, as the run will ask: a server may honour seeds of requests that come one by one
    hot = replace(short, temperature=HIGH_TEMPERATURE, top_p=1.0)
    with ThreadPoolExecutor(4) as pool:
        first, again, *others = pool.map(lambda seed: _answer_text(server, replace(hot, seed=seed)), (1, 1, 2, 3, 4))
    varied = {first, *others} if first == again else {first, again, *others}
    if len(varied) == 1 and example.temperature > 0:
        raise ValueError(
            f"server.urls={server.url}: five seeds at temperature {HIGH_TEMPERATURE:g} give one answer, "
            f"{first[:40]!r}; "
            "it ignores the temperature (or the model says one thing only): nothing can be sampled from it"
        )
    _check_echo(server, short, [first, *greedy])
    server.capabilities = _with_truncation(
        server, replace(short, max_new_tokens=1, temperature=UNIFORM_TEMPERATURE, top_p=1.0), server.capabilities
    )
    _check_truncated(server, server.capabilities, example)
    several = (
        _two_answers(server, hot) if server.capabilities.lengths else []
    )  # tokens are counted of all answers together
    n = len(several) == 2 and (several[0] != several[1] or len(varied) == 1)
    server.capabilities = replace(
        server.capabilities, n=n, seeds=first == again and len({first, *others}) > 1, greedy=len(greedy) == 1
    )
    return server.capabilities


def _check_truncated(server: Server, capabilities: Capabilities, example: Request) -> None:
    if capabilities.truncated and example.temperature > 0 and server.settings.truncated == "refuse":
        asked = ", ".join(
            f"{name}={capabilities.neutral[name]:g}" for name in ("top_k", "min_p") if name in capabilities.neutral
        )
        raise ValueError(
            f"server.urls={server.url}: it draws from a few likeliest tokens alone, although it is asked for "
            f"{asked or 'top_p=1'}; start it without such defaults (vLLM: --generation-config vllm; llama.cpp: "
            "--top-k 0 --min-p 0), or give server.truncated=accept, and the record says so"
        )


def _with_neutral(server: Server, example: Request, capabilities: Capabilities) -> Capabilities:
    """`capabilities` with those of NEUTRAL that the server takes: all at once, or else each that it does not refuse."""
    whole = replace(capabilities, neutral=dict(NEUTRAL))
    if _accepts(server, example, whole):
        return whole
    taken: dict[str, float] = {}
    for name, value in NEUTRAL.items():
        values = (value, 0) if name == "top_k" else (value,)  # llama-cpp-python refuses -1, vLLM of old and SGLang 0
        good = [one for one in values if _accepts(server, example, replace(capabilities, neutral={name: one}))]
        taken |= {name: good[0]} if good else {}
    return replace(capabilities, neutral=taken)


def _accepts(server: Server, example: Request, capabilities: Capabilities) -> bool:
    try:
        server.read(
            server.post_waiting(capabilities.endpoint, server.body(example, capabilities)), example, capabilities
        )
    except (Refused, Retryable):
        return False
    return True


def _with_truncation(server: Server, level: Request, capabilities: Capabilities) -> Capabilities:
    """`capabilities`, with what single tokens tell that are drawn where all are equally likely.

    Servers that cut the distribution (top_k, or min_p before the temperature) give the same few again and again; and an
    answer of one token that is neither empty nor an ending was cut off. Raises ValueError where more tokens come.
    """

    def draw(seed: int) -> Answer | None:
        try:
            return server.ask(replace(level, seed=seed))[0]
        except Refused:
            return None
        except ServersUnavailable as error:
            raise _unusable(server, error) from error

    if draw(1) is None:  # OpenAI's own API goes up to HIGH_TEMPERATURE
        return capabilities
    shown: list[Answer] = []
    with ThreadPoolExecutor(8) as pool:
        for turn in range(ROUNDS):
            seeds = range(2 + turn * DRAWS, 2 + (turn + 1) * DRAWS)
            drawn = [one for one in pool.map(draw, seeds) if one is not None]
            shown += [one for one in drawn if one.text and "\N{REPLACEMENT CHARACTER}" not in one.text]
            if len(shown) >= MIN_DRAWS:
                break
    if shown and all((one.tokens or 1) > 1 for one in shown):
        raise ValueError(
            f"server.urls={server.url}: it was asked for 1 token and gave {shown[0].tokens}: it heeds no max_tokens, "
            "and answers would have lengths of its own; ask another server"
        )
    texts, kinds = [one.text for one in shown], _distinct_texts(server.tokenizer)
    equal, chance = len(texts) - len(set(texts)), len(texts) * (len(texts) - 1) / 2 / max(kinds, 1)
    cut = _poisson_tail(equal, chance) < SIGNIFICANCE
    return replace(capabilities, truncated=cut, lengths=not shown or any(one.finish != "stop" for one in shown))


def _distinct_texts(tokenizer: Tokenizer) -> int:
    """About how many different texts single ids of the vocabulary have that are not special; not more."""
    special, step = set(tokenizer.special.values()), max(1, tokenizer.vocab_size // VOCABULARY_SAMPLE)
    texts = {tokenizer.decode([number]) for number in range(0, tokenizer.vocab_size, step) if number not in special}
    return step * sum(bool(text) and "\N{REPLACEMENT CHARACTER}" not in text for text in texts)


def _poisson_tail(count: int, mean: float) -> float:
    """Probability that a Poisson variable is at least `count`."""
    return 1 - sum(math.exp(i * math.log(mean or 1e-300) - mean - math.lgamma(i + 1)) for i in range(count))


def _check_echo(server: Server, request: Request, texts: list[str]) -> None:
    """Raises ValueError where answers begin with their whole prompt, which would be judged and learned with them."""
    special = set(server.tokenizer.special.values())
    plain = [number for number in request.ids if number not in special]
    prompts = [server.tokenizer.decode(ids) for ids in (request.ids, request.ids[1:], plain)]
    if any(text.startswith(prompt) for text in texts for prompt in prompts):
        raise ValueError(f"server.urls={server.url}: it repeats the prompt before its answer; start it without echo")


def _answer_text(server: Server, request: Request) -> str:
    try:
        return server.ask(request)[0].text
    except (Refused, ServersUnavailable) as error:
        raise _unusable(server, error) from error


def _two_answers(server: Server, request: Request) -> list[str]:
    """Answers of one request for two; none where the server takes no such request."""
    try:
        return [answer.text for answer in server.ask(replace(request, n=2))]
    except Refused:
        return []
    except ServersUnavailable as error:
        raise _unusable(server, error) from error


def _unusable(server: Server, error: Exception) -> ValueError:
    return ValueError(f"server.urls={server.url}: the first requests fail: {error}; look at its log")


def models(server: Server) -> tuple[list[str], list[str]]:
    """Names to ask for, in this order ("": none, so that the server takes its own), and those that it lists.

    The list decides nothing: transformers lists its cache instead of what it serves.
    """
    try:
        listed = [str(one["id"]) for one in server.post("models", None)["data"]]
    except (Refused, Retryable, KeyError, TypeError):
        listed = []
    if server.settings.model:
        return [server.settings.model], listed
    return [*(listed if len(listed) == 1 else []), ""], listed


def _with_special_kept(server: Server, example: Request, capabilities: Capabilities) -> Capabilities:
    """`capabilities` with the wish that special tokens be kept, if the server takes it (vLLM drops them otherwise)."""
    keeping = replace(capabilities, keeps=True)
    return keeping if _accepts(server, example, keeping) else capabilities


def _request_format(server: Server, example: Request) -> Capabilities:
    """The first way of asking that the server takes, and by which it reads as many tokens as the prompt has.

    Ids are what they are, so whoever takes them need not tell what it read. Text has to be counted. A chat server's
    template may say more, such as a date: who asks for server.api=chat has chosen that, and is told.
    """
    candidates, listed = models(server)
    forms = ("chat",) if server.settings.api == "chat" else PROMPT_FORMATS
    trusted, refusals = None, []
    for model, form, stops in itertools.product(candidates, forms, STOPS):
        capabilities = Capabilities(server.url, model, form, stops, checked=False)
        try:
            given = server.post_waiting(capabilities.endpoint, server.body(example, capabilities))
            server.read(given, example, capabilities)
        except (Refused, Retryable) as error:
            refusals.append(f"{form} with {stops}: {error}")
            continue
        read = read_tokens(given)
        if read == len(example.ids) or (form == "chat" and read is not None):
            return replace(capabilities, checked=read == len(example.ids), extra=read - len(example.ids))
        if read is None and form in ("ids", "chat"):
            trusted = trusted or capabilities
        else:
            how_many = "it does not tell how many tokens it" if read is None else f"{read} tokens were"
            refusals.append(f"{form} with {stops}: {how_many} read, and the prompt has {len(example.ids)}")
    if trusted:
        return trusted
    reasons, names = "\n  ".join(refusals), ", ".join(listed) or "nothing"
    raise ValueError(
        f"server.urls={server.url}: it takes a prompt in no way that we know; it lists {names} (server.model="
        f"{server.settings.model or 'null'}):\n  {reasons}"
    )
