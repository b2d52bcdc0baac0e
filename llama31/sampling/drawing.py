"""Rejection sampling (report, section 4.2.3): K answers per prompt are drawn here; `ranking` keeps the best.

    <folder>/sampling.json      what all answers were drawn with: policy, temperature ...
    <folder>/prompts.jsonl      the prompts, each once, with their ids
    <folder>/candidates.jsonl   every answer, appended as it comes in: prompt, k, text (message, if it is more),
                                finish, tokens, what was `asked`, provenance; or why it was `refused`
    <folder>/servers.json       what the probe found out about the servers, by the keys that lines have
    <folder>/scores.jsonl       prompt, k, reward, what was `judged`, and the fingerprint of the reward model
    <folder>/best.jsonl         dialogs for SFT      <folder>/pairs.jsonl   preferences, best against worst
    <folder>/summary.json       counts and means     <folder>/rewards.png   best of K against the mean

candidates.jsonl and scores.jsonl only grow, so a run that was killed goes on with what is missing. The others are a
function of them and are written whole, summary.json last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from llama31 import config
from llama31.runs import files
from llama31.sampling import servers
from llama31.sampling.answers import Answer
from llama31.sampling.pool import Pool
from llama31.sampling.prompts import Prompt

CANDIDATES, SCORES, SETTINGS, SUMMARY = "candidates.jsonl", "scores.jsonl", "sampling.json", "summary.json"
PROMPTS, BEST, PAIRS, PICTURE = "prompts.jsonl", "best.jsonl", "pairs.jsonl", "rewards.png"
SERVERS = "servers.json"
MOST_REFUSED, JUDGED = 0.5, 20  # share of refused prompts, out of at least so many, that ends a run
DRAWN_WITH = ("temperature", "temperature_to", "top_p", "max_new_tokens", "seed")
Task = tuple[Prompt, int]  # a prompt and which of its K answers


@dataclass(frozen=True)
class Policy:
    """The model that answers."""

    name: str
    fingerprint: str


def fingerprint(folder: Path) -> str:
    """What tells one checkpoint or Hugging Face folder from another.

    A checkpoint's manifest has the checksum of the list of all files, with theirs. Of a Hugging Face folder:
    config.json, and of each file of weights its name, its size and 16 blocks of it, for reading all of it would take as
    long as loading it.
    """
    digest = hashlib.sha256()
    manifest = folder / "checkpoint.json"
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        with path.open("rb") as file:
            for block in range(16):
                file.seek(block * size // 16)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()[:16]


class AnswerSource(Protocol):
    """Who answers: yields lines of candidates.jsonl for the tasks, several at a time, in any order."""

    def draw(self, tasks: Sequence[Task]) -> Iterator[list[dict[str, Any]]]: ...


class Ledger:
    """A JSONL file that only grows, with one writer. A last line without its newline is what a kill left: it is cut."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise config.RunError(f"{path} is being written by another process; wait for it, or stop it") from error
        os.ftruncate(self._file, _whole_lines(path))

    def append(self, lines: Iterable[Mapping[str, Any]], synced: bool = True) -> None:
        """Add lines in one write, on disk before it returns; or, not `synced`, with the system, where no kill gets."""
        data = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
        while data:
            data = data[os.write(self._file, data) :]
        if synced:
            os.fsync(self._file)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)


def _whole_lines(path: Path, block: int = 1 << 20) -> int:
    """Bytes up to the last newline, looked for from the end: such files have gigabytes."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - block)
            file.seek(begin)
            if (newline := file.read(end - begin).rfind(b"\n")) >= 0:
                return begin + newline + 1
            end = begin
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none where there is no file. Raises ValueError for a damaged one."""
    return [*each_line(path)]


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """The same one by one, for files of which no process holds all."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # a kill's, or still being written
            try:
                record = json.loads(line)
            except ValueError as error:
                remedy = "remove that line, and it is made again"
                raise ValueError(f"{path}:{number} is damaged ({error}); {remedy}") from error
            yield record


class Register:
    """servers.json: what was found out about the servers, once, by the short keys that lines have in their place."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SERVERS
        self.known: dict[str, Any] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}

    def shortened(self, line: dict[str, Any]) -> dict[str, Any]:
        """A line with a key for its server, which stands in the file from now on."""
        capabilities = line.get("server")
        if not isinstance(capabilities, dict):
            return line
        name = hashlib.sha256(json.dumps(capabilities, sort_keys=True).encode()).hexdigest()[:8]
        if name not in self.known:
            self.known[name] = capabilities
            files.write_whole(self.path, json.dumps(self.known, indent=1) + "\n")
        return {**line, "server": name}


# --- drawing ---


def check(run: config.Sample, world: int) -> None:
    """Raises ValueError for what cannot be asked together, before anything is loaded."""
    low, high = run.sampling.temperature, run.sampling.temperature_to
    if high is not None and not 0 < low <= high:
        raise ValueError(
            f"sampling.temperature_to={high}: temperatures are drawn from sampling.temperature={low} up to it; give "
            "sampling.temperature above 0 and at most that, as 0.2 and 1"
        )
    if run.sampling.temperature == 0 and run.sampling.answers > 1:
        raise ValueError(
            f"sampling.answers={run.sampling.answers}: at sampling.temperature=0 all answers to a prompt are one; "
            "give sampling.answers=1, or a temperature"
        )
    if run.server.urls and world > 1 and run.part != "rank":
        raise ValueError(
            f"part={run.part}: servers are asked by one process, and {world} were started; "
            "give part=draw to one, and then part=rank to all"
        )
    if run.part == "rank" and run.reward is None:
        raise ValueError("part=rank: there is no reward model to rank by; give reward=FOLDER")


def seed_of(seed: int, *what: object) -> int:
    """A seed of 31 bits for one request, by what it asks for."""
    text = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def settle(
    folder: Path, policy: Policy, sampling: config.Sampling | None, further: Mapping[str, Any],
    prompts: Sequence[Prompt] = (),
) -> None:  # fmt: skip
    """State in the folder what its answers are drawn with, and for what. K may grow, and so may the prompts.

    `sampling`: None where nothing is drawn, but what was drawn is ranked: how it was does not matter, and `further`
    has only what does. Raises ValueError where the folder holds answers of another kind.
    """
    drawn_with = {"policy": policy.name, "fingerprint": policy.fingerprint, **further}
    if sampling is not None:
        drawn_with |= {name: getattr(sampling, name) for name in DRAWN_WITH}
    path = folder / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [
            f"{key}={before.get(key)}" for key in drawn_with if key != "policy" and before.get(key) != drawn_with[key]
        ]
        if other:
            raise ValueError(f"folder={folder}: it holds answers drawn with {', '.join(other)}; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if sampling is not None and not path.is_file():
        files.write_whole(path, json.dumps(drawn_with, indent=1) + "\n")
    records = ({**prompt.record, "id": prompt.id, "asked": asked(prompt)} for prompt in prompts)
    files.write_whole(folder / PROMPTS, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def asked(prompt: Prompt) -> str:
    """What tells one prompt's content from another's under the same id: a hash of its token ids."""
    return hashlib.sha256(array("q", prompt.ids).tobytes()).hexdigest()[:16]


def known(prompts: Iterable[Prompt]) -> dict[str, str | None]:
    """Prompts as `current` takes them."""
    return {prompt.id: asked(prompt) for prompt in prompts}


def current(wanted: Mapping[str, str | None], lines: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The lines of candidates.jsonl that answer the prompts `wanted`, id -> `asked`, as they are now.

    What does not tell, as of before there was `asked`, is believed.
    """
    for line in lines:
        if line["prompt"] in wanted and len({line.get("asked"), wanted[line["prompt"]]} - {None}) < 2:
            yield line


def missing(prompts: Sequence[Prompt], answers: int, lines: Iterable[Mapping[str, Any]]) -> list[Task]:
    """What is still to be drawn, prompt by prompt."""
    there = {(line["prompt"], line["k"]) for line in current(known(prompts), lines)}
    return [(prompt, k) for prompt in prompts for k in range(answers) if (prompt.id, k) not in there]


def draw(
    folder: Path, tasks: Sequence[Task], source: AnswerSource, progress: Callable[[int, int], None], writes: bool = True
) -> int:
    """Draw the tasks and append what comes in; returns how many were drawn. `progress` takes (done, all).

    Where several processes draw together, all call this with the same tasks and one `writes`. Raises RunError where
    more than half of many prompts get no answer and others are waiting: what has come in is safe all the same.
    """
    done, answered, silent, register = 0, set[str](), set[str](), Register(folder)
    with Ledger(folder / CANDIDATES) if writes else contextlib.nullcontext() as ledger:
        for lines in source.draw(tasks):
            if ledger:
                ledger.append(map(register.shortened, lines))
            done += len(lines)
            answered |= {line["prompt"] for line in lines if "refused" not in line}
            silent = (silent | {line["prompt"] for line in lines}) - answered
            progress(done, len(tasks))
            heard = len(answered) + len(silent)
            last = lines[-1].get("refused") if lines else None
            if last and done < len(tasks) and heard >= JUDGED and len(silent) > MOST_REFUSED * heard:
                raise config.RunError(
                    f"{len(silent)} of {heard} prompts got no answer, the last since: {last}. Nothing is lost: "
                    f"{folder / CANDIDATES} holds the others; remove its refused lines to try them again"
                )
    return done


def temperature_of(prompt: Prompt, sampling: config.Sampling) -> float:
    """The temperature of a prompt's answers: that of all, or one drawn evenly by the seed and the prompt's name."""
    if sampling.temperature_to is None:
        return sampling.temperature
    share = seed_of(sampling.seed, prompt.id, "temperature") / 2**31
    return round(sampling.temperature + share * (sampling.temperature_to - sampling.temperature), 4)


def line_of(task: Task, policy: Policy, sampling: config.Sampling, seed: int, **result: Any) -> dict[str, Any]:
    """A line of candidates.jsonl."""
    prompt, k = task
    drawn = {"asked": asked(prompt), "seed": seed, "temperature": temperature_of(prompt, sampling)}
    drawn |= {"top_p": sampling.top_p}
    return {"prompt": prompt.id, "k": k, **result, **drawn, "policy": asdict(policy), "time_s": round(time.time(), 3)}


def request_of(prompt: Prompt, run: config.Sampling, seed: int = 1, n: int = 1) -> servers.Request:
    """A prompt as a request to a server."""
    drawn = (temperature_of(prompt, run), run.top_p, run.max_new_tokens)
    return servers.Request(prompt.ids, prompt.openai(), *drawn, seed, n, tuple(prompt.tools))


class Http:
    """Answers of servers: one request for all of a prompt's answers where they honour `n`, or one for each."""

    def __init__(
        self, connected: Sequence[servers.Server], settings: config.Server, policy: Policy, run: config.Sampling
    ):
        self.pool = Pool(connected, settings.concurrency)
        self.policy, self.sampling = policy, run
        self.several = all(server.capabilities is not None and server.capabilities.n for server in connected)

    def draw(self, tasks: Sequence[Task]) -> Iterator[list[dict[str, Any]]]:
        """Lines of the tasks. What a server gives less than it was asked for is asked for again, one by one."""
        waiting = [list(group) for _, group in itertools.groupby(tasks, lambda task: task[0].id)]
        if not self.several:
            waiting = [[task] for group in waiting for task in group]
        while waiting:
            short: list[list[Task]] = []
            for group, answers, capabilities in self.pool.run((group, self._request(group)) for group in waiting):
                yield self._lines(group, answers, capabilities)
                if isinstance(answers, list):
                    short += [[task] for task in group[len(answers) :]]
            waiting = short

    def _seed(self, group: Sequence[Task]) -> int:
        prompt, k = group[0]
        return seed_of(self.sampling.seed, prompt.id, k)

    def _request(self, group: Sequence[Task]) -> servers.Request:
        return request_of(group[0][0], self.sampling, self._seed(group), len(group))

    def _lines(
        self, group: Sequence[Task], answers: list[Answer] | servers.Refused, capabilities: servers.Capabilities
    ) -> list[dict[str, Any]]:
        seed, server = self._seed(group), servers.provenance(capabilities)
        if isinstance(answers, servers.Refused):
            result = {"refused": str(answers), "server": server}
            return [line_of(task, self.policy, self.sampling, seed, **result) for task in group]
        return [
            line_of(task, self.policy, self.sampling, seed, **answer.record(), choice=number, server=server)
            for number, (task, answer) in enumerate(zip(group, answers))
        ]
