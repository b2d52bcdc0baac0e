"""A server with OpenAI's API in a thread of this process, as obedient or as bad as a test wants it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from benchmarks.serving import served
from llama31.sampling.servers import NEUTRAL

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")
SPECIAL += ("<|eot_id|>", "<|python_tag|>")
NOUNS = ["river", "stone", "cloud", "lamp", "bread", "horse", "garden", "letter", "window", "candle", "mirror"]


class Bytes:
    """A tokenizer of bytes and Llama 3.1's special tokens."""

    def __init__(self) -> None:
        self.special = {name: 256 + number for number, name in enumerate(SPECIAL)}
        self.vocab_size = 256 + len(SPECIAL)
        self.bos_id, self.eos_id, self.eot_id = (self.special[SPECIAL[place]] for place in (0, 1, 5))

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        names = {number: name.encode() for name, number in self.special.items()}
        return b"".join(names.get(i) or bytes([i % 256]) for i in ids).decode(errors="replace")

    def read(self, text: str) -> int:
        """Tokens of a text in which special tokens may be spelled, as a server reads it."""
        for name in SPECIAL:
            text = text.replace(name, "\0")
        return len(text.encode())


@dataclass
class Script:
    """What the server does. `die_after`: it hangs up on every request after so many, and on whoever asks whether it is
    well; `garbage`: to the first of equal requests, or always."""

    n: bool | None = True  # None: it refuses to give several answers
    seeds: bool = True
    temperature: bool = True
    ids: bool = True
    usage: bool = True
    fields: tuple[str, ...] = ("stop_token_ids", "stop", "generation_config", "skip_special_tokens", *NEUTRAL)  # known
    adds_bos: bool = True
    template: int = 0  # tokens that its chat template adds
    die_after: int | None = None
    garbage: str = ""
    seen: set[str] = field(default_factory=set)
    busy: int = 0  # first requests that it is too busy for
    says: str | None = None  # always this
    ends: str | None = None  # the special token that it says to have ended with, as vLLM does
    kinds: int | None = None  # first tokens that it ever draws; None: any
    hottest: float = 1e9  # above which it takes no temperature
    limits: bool = True  # whether it heeds max_tokens
    lengths: bool = True  # whether it says that an answer was cut off
    echo: bool = False  # whether it repeats its prompt
    places: bool = True  # whether choices have places of their own
    message: dict[str, Any] | None = None  # what a chat server says instead
    finish: str | None = None  # always its reason
    root: bool = True  # whether its API stands at the root as well
    calls: list[dict[str, Any]] | None = None  # as chat servers tell them that read them out of the text
    poison: str = "\0"  # a prompt with this makes it fail
    hangs: str = "\0"  # with this it says nothing, and hangs up
    cut: int = 0  # first requests that it is too busy for, of whose answer the end is missing
    key: str | None = None  # whoever does not give it may ask for nothing
    dead: bool = False
    model: str = "tiny"  # that it serves
    listed: list[str] | None = field(default_factory=lambda: ["tiny"])  # that it says to serve; None: an error
    counter: Iterator[int] = field(default_factory=itertools.count)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # where it was asked
    keys: list[str | None] = field(default_factory=list)
    cookies: list[str | None] = field(default_factory=list)
    moved: bool = False  # whether it stands under /moved, where it sends whoever asks
    slow_s: float = 0.0  # for each answer
    under_way: int = 0
    most: int = 0  # requests that were under way at once

    def answer(self, number: int, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body for the `number`-th request."""
        if max(self.busy, self.cut) > number:
            return 503, b"busy"
        prompt = body.get("prompt", body.get("messages"))
        if refused := self.refused(body, prompt):
            return refused
        again = repr(body) in self.seen
        self.seen.add(repr(body))
        if self.garbage == "always" or (self.garbage == "first" and not again):
            return 200, [b"<html>", b'{"choices": []}', b'{"choices": [{"index": 0}]}'][number % 3]
        count = body.get("n", 1) if self.n else 1
        texts = [self.text(number, prompt, body, choice) for choice in range(count)]
        choices = [{"index": i * self.places, **self.cut_off(t, body)} for i, t in enumerate(texts)]
        if self.ends:
            choices = [{**one, "stop_reason": Bytes().special[self.ends]} for one in choices]
        if "messages" in body:
            choices = [{**one, "message": {"role": "assistant", "content": one.pop("text")}} for one in choices]
        if self.message and "messages" in body:
            choices = [{**one, "message": self.message} for one in choices]
        if self.calls and "messages" in body:
            message = {"role": "assistant", "content": None, "tool_calls": self.calls}
            choices = [{**one, "message": message, "finish_reason": "tool_calls"} for one in choices]
        told: dict[str, Any] = {"choices": choices}
        if self.usage:
            if "messages" in body:
                text = "".join(
                    f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>" for m in prompt
                )
                read = Bytes().read(f"{text}<|start_header_id|>assistant<|end_header_id|>\n\n") + 1 + self.template
            else:
                read = len(prompt) if isinstance(prompt, list) else Bytes().read(prompt) + self.adds_bos
            told["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": min(5, body["max_tokens"] if self.limits else 5),
            }
        return 200, json.dumps(told).encode()

    def refused(self, body: Mapping[str, Any], prompt: Any) -> tuple[int, bytes] | None:
        """Status and body for a request that it does not take."""
        if body.get("model", self.model) != self.model:
            return 400, f"pinned to {self.model}".encode()
        if self.poison in self.read(body):
            return 500, b"out of memory"
        known = {"stop_token_ids", "generation_config", "skip_special_tokens", *NEUTRAL}
        unknown = known & set(body) - set(self.fields)
        if body.get("temperature", 1) > self.hottest or body.get("top_k", 0) < (0 if self.n is None else -1):
            return 400, b"out of range"
        if unknown or (isinstance(prompt, list) and "prompt" in body and not self.ids):
            return 422, f"unexpected {sorted(unknown) or 'list'}".encode()
        if self.n is None and body.get("n", 1) > 1:
            return 400, b"n must be 1"
        return None

    def listing(self, path: str, key: str | None) -> tuple[int, bytes]:
        """What is got without being sent anything."""
        if path == "/health":
            return 200, b""
        if not self.root and not path.startswith("/v1/"):
            return 404, b"nothing here"
        if self.key and key != f"Bearer {self.key}":
            return 401, b"who are you?"
        if self.listed is None:
            return 500, b"no cache"
        return 200, json.dumps({"data": [{"id": name} for name in self.listed]}).encode()

    def cut_off(self, text: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The text up to the limit, and why it ended; one token is one of `kinds`."""
        whole, limit = text.split(" "), body["max_tokens"] if self.limits else 99
        said = " ".join(whole[:limit])
        if limit == 1 and self.says is None:
            drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
            said = str(drawn % self.kinds if self.kinds else drawn)
        short = limit < len(whole) and self.lengths
        echoed = self.read(body) if self.echo else ""
        return {"text": echoed + said, "finish_reason": self.finish or ("length" if short else "stop")}

    @staticmethod
    def read(body: Mapping[str, Any]) -> str:
        """The prompt, as text."""
        prompt = body.get("prompt", "")
        return prompt if isinstance(prompt, str) else Bytes().decode(prompt)

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        """Five words that follow from prompt, seed and choice, or from the number of the request."""
        if self.says is not None:
            keeps = not body.get("skip_special_tokens", True)
            return self.says if keeps else self.says.replace("<|python_tag|>", "")
        hot = body.get("temperature", 1) > 0 and self.temperature
        chance = (body.get("seed") if self.seeds else number, choice) if hot else ()
        digest = hashlib.sha256(repr((prompt, chance)).encode()).digest()
        return " ".join(NOUNS[byte % len(NOUNS)] for byte in digest[:5]) + "."


@contextlib.contextmanager
def serving(script: Script, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that follows `script`, on this host."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if script.dead and script.die_after is not None:
                self.connection.close()
            else:
                self._send(*script.listing(self.path, self.headers["Authorization"]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if script.moved and not self.path.startswith("/moved/"):
                self._send(307, b"", location=f"/moved{self.path}")
                return
            number = next(script.counter)
            script.dead = script.die_after is not None and number >= script.die_after
            if script.dead or (script.hangs != "\0" and script.hangs in script.read(body)):
                self.connection.close()
                return
            script.asked.append(body)
            script.paths.append(self.path)
            script.keys.append(self.headers["Authorization"])
            script.cookies.append(self.headers["Cookie"])
            with lock:
                script.under_way += 1
                script.most = max(script.most, script.under_way)
            time.sleep(script.slow_s)
            with lock:
                script.under_way -= 1
            self._send(*script.answer(number, body), more=100 if script.cut > number else 0)

        def _send(self, status: int, data: bytes, more: int = 0, location: str = "") -> None:
            self.send_response(status)
            self.send_header("Set-Cookie", "backend=1; Path=/")
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(data) + more))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: tests read what was asked."""

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    with served(Handler, host) as address:
        yield f"{address}/v1"
