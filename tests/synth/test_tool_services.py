"""The services behind brave_search and wolfram_alpha: asked once, at a pace, for a budget, and no key is told."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.serving import served
from llama31 import config
from llama31.command import entry, inputs
from llama31.sampling.servers import Refused
from llama31.synth import tasks
from llama31.synth.pipeline import journal, shard
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.prompt_files import PromptFiles
from llama31.synth.tools import building, interface
from llama31.synth.tools.building import ServiceAccess
from llama31.synth.tools.interface import OutsideTool, ToolResult
from llama31.synth.tools.services.answered import AnsweredQueries
from llama31.synth.tools.services.brave import BraveSearch
from llama31.synth.tools.services.client import PaidClient
from llama31.synth.tools.services.wolfram import WolframAlpha
from llama31.synth.tools.stand_ins.search import LocalSearch
from tests.sandbox.plain import Plain
from tests.synth import scripted
from tests.synth.test_tools import PAGES, calls, single, turns

KEY = "BSA-secret-123"
Reply = tuple[int, str] | tuple[int, str, Mapping[str, str]]
HITS = {"web": {"results": [
    {"title": "Ships &amp; more", "url": "https://a.example", "description": "The <strong>light</strong> of 1874."},
    {"title": "B", "url": "https://b.example", "description": "x", "extra_snippets": ["y", 3]},
]}}  # fmt: skip
FOUND = (200, json.dumps(HITS))


@dataclass
class Service:
    """Answers with what stands in `replies`, in turn, the last again and again; a callable waits first."""

    replies: list[Reply | Callable[[], Reply]]
    asked: list[dict[str, str]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def serving(service: Service) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            service.asked.append(query)
            service.headers.append(dict(self.headers))
            reply = service.replies[min(len(service.asked), len(service.replies)) - 1]
            code, text, *more = reply() if callable(reply) else reply
            self.send_response(code)
            body = text.encode()
            for name, value in {"Content-Length": str(len(body)), **(more[0] if more else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with served(Handler) as address:
        yield f"{address}/search"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", KEY)
    monkeypatch.setenv("WOLFRAM_APP_ID", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Clock:
    """Time that passes where somebody waits."""

    def __init__(self) -> None:
        self.now_s, self.waited = 100.0, list[float]()

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.now_s += seconds
        return False


def settings(url: str, **changed: Any) -> config.PaidService:
    quick = {"key_variable": "BRAVE_API_KEY", "per_second": 4.0, "attempts": 3, "timeout_s": 10.0, **changed}
    return config.PaidService(url=url, **quick)


def client(folder: Path, url: str, clock: Clock | None = None, name: str = "brave", **changed: Any) -> PaidClient:
    clock, keys = clock or Clock(), settings(url, **changed)
    answers = AnsweredQueries(folder, name, keys.max_requests)
    return PaidClient(name, keys, building.HEADERS[name], answers, clock, clock.pause)


def written(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_hits_have_the_form_of_the_local_index(tmp_path: Path) -> None:
    service = Service([FOUND, (200, '{"type": "search", "query": {}}'), FOUND])
    with serving(service) as url:
        tool = BraveSearch(client(tmp_path, url), 2)
        found = tool.call("light of Arholm", [], {})
        assert not found.failed and json.loads(found.text) == {"query": "light of Arholm", "top_k": [
            {"title": "Ships & more", "url": "https://a.example", "content": "The light of 1874."},
            {"title": "B", "url": "https://b.example", "content": "x\ny"},
        ]}  # fmt: skip
        nothing = tool.call("zzz", [], {})
        assert nothing.failed and json.loads(nothing.text)["top_k"] == []
        assert tool.call("light of Arholm", [], {}) == found and len(service.asked) == 2  # of what was kept
        assert tool.call("word " * 51, [], {}).failed and tool.call("x" * 401, [], {}).failed
        assert tool.call(" ", [], {}).failed and len(service.asked) == 2
    assert service.asked[0] == {
        "q": "light of Arholm", "count": "2", "text_decorations": "false", "result_filter": "web",
    }  # fmt: skip
    assert service.headers[0]["X-Subscription-Token"] == KEY and KEY not in str(service.asked)
    assert KEY not in written(tmp_path)


def test_wolfram_answers_or_does_not_understand(tmp_path: Path) -> None:
    said = 'Query:\n"mass of Mars"\n\nimage: https://w.example/a.gif\nResult:\n6.417*10^23 kg\n\n'
    said += 'Wolfram|Alpha website result for "mass of Mars":\nhttps://www.wolframalpha.com/input?i=mass'
    service = Service([(200, said), (501, "No idea. Things to try instead: mass"), (200, " "), (200, "4")])
    with serving(service) as url:
        tool = WolframAlpha(client(tmp_path, url, name="wolfram"))
        assert tool.call("mass of Mars", [], {}) == ToolResult('Query:\n"mass of Mars"\n\nResult:\n6.417*10^23 kg')
        assert tool.call("qqq", [], {}) == ToolResult("No idea. Things to try instead: mass", failed=True)
        assert tool.call("2 + 2", [], {}).text == "4"  # an empty answer is asked for again
        assert tool.call("x" * 501, [], {}).failed and len(service.asked) == 4
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert service.asked[0] == {"input": "mass of Mars", "maxchars": "4000"}


def test_what_passes_is_asked_again_at_the_pace_that_is_wanted(tmp_path: Path) -> None:
    clock, held = Clock(), threading.Event()

    def slow() -> Reply:
        held.wait(30)
        return FOUND

    replies: list[Reply | Callable[[], Reply]] = [
        (429, "slow down", {"X-RateLimit-Reset": "7, 1419704", "X-RateLimit-Remaining": "0, 12"}), (503, "busy"), FOUND,
        (429, "again", {"Retry-After": "9", "X-RateLimit-Remaining": "0, 0", "X-RateLimit-Limit": "50, 0"}),
        (200, '{"web": [1]}'), (200, "{"), FOUND,
    ]  # fmt: skip
    with serving(Service(replies)) as url:
        tool = BraveSearch(client(tmp_path, url, clock))
        assert not tool.call("one", [], {}).failed
        assert clock.waited == [7.0, 2.0]  # as it says; else our own pause, doubled
        with pytest.raises(Refused, match=r"brave: no answer \(.*\): HTTP 200: \{ \(after 3 attempts\)"):
            tool.call("two", [], {})
        assert clock.waited[2:] == [0.25, 9.0, 2.0]  # a quarter of a second after the last
        assert not tool.call("two", [], {}).failed  # a refusal is kept nowhere
    service = Service([slow, FOUND])
    try:
        with serving(service) as url:
            tool = BraveSearch(client(tmp_path / "slow", url, timeout_s=0.2))
            assert not tool.call("three", [], {}).failed and len(service.asked) == 2
            held.set()
    finally:
        held.set()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            (401, f"no such token {KEY}"),
            r"key_variable=BRAVE_API_KEY: the service does not take the key in it \(HTTP 401",
        ),
        ((403, "no"), "export BRAVE_API_KEY with one of a plan that has this API"),
        ((422, '{"error": {"code": "SUBSCRIPTION_TOKEN_INVALID"}}'), "does not take the key"),
        (
            (429, "quota", {"X-RateLimit-Remaining": "1, 0", "X-RateLimit-Limit": "1, 2000"}),
            "requests of its plan are used up",
        ),
        ((302, "", {"Location": "http://127.0.0.1:9/"}), "sends elsewhere"),
    ],
)
def test_what_no_other_query_would_change_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reply: Reply, said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service([reply])
    with serving(service) as url:
        tool = BraveSearch(client(tmp_path, url))
        with pytest.raises(config.RunError, match=said) as error:
            tool.call("one", [], {})
        with pytest.raises(config.RunError, match=said):  # at once, for those that wait
            tool.call("two", [], {})
    assert len(service.asked) == 1
    assert KEY not in str(error.value) + caplog.text + written(tmp_path)


def test_a_query_that_is_not_taken_is_refused_alone(tmp_path: Path) -> None:
    with serving(Service([(422, "q: too odd"), FOUND])) as url:
        tool = BraveSearch(client(tmp_path, url))
        with pytest.raises(Refused, match="brave: HTTP 422: q: too odd"):
            tool.call("one", [], {})
        assert not tool.call("two", [], {}).failed


@pytest.mark.parametrize("value", [None, " ", "two words", "line\nbreak", "kéy"])
def test_without_a_key_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("BRAVE_API_KEY")
    if value is not None:
        monkeypatch.setenv("BRAVE_API_KEY", value)
    service = Service([FOUND])
    with serving(service) as url, pytest.raises(config.RunError, match="export BRAVE_API_KEY=KEY before") as error:
        BraveSearch(client(tmp_path, url)).call("one", [], {})
    assert not service.asked and (value is None or value == " " or value not in str(error.value))


def test_the_budget_is_the_folders(tmp_path: Path) -> None:
    service = Service([(503, "busy"), FOUND])

    def tool(shard: int | None, most: int) -> BraveSearch:
        keys = config.ToolServices(brave=config.BraveService(**vars(settings(url, max_requests=most, backoff_s=0.0))))
        return BraveSearch(ServiceAccess(keys, tmp_path, shard, 2).client("brave"))

    with serving(service) as url:
        assert not tool(None, 5).call("one", [], {}).failed  # two requests, for one failed
        assert not tool(0, 5).call("one", [], {}).failed and len(service.asked) == 2  # known from the other's file
        first = tool(0, 5)
        assert not first.call("two", [], {}).failed and not first.call("three", [], {}).failed
        for shard, most, query in ((0, 5, "four"), (None, 4, "five")):
            with pytest.raises(config.RunError, match=rf"max_requests={most}: all of them were sent.*a larger number"):
                tool(shard, most).call(query, [], {})
        assert not tool(1, 5).call("six", [], {}).failed
        with pytest.raises(config.RunError, match="of 2 shards, this one has its share"):
            tool(1, 5).call("seven", [], {})
        assert not tool(1, 8).call("seven", [], {}).failed
    assert len(service.asked) == 6
    lines = [json.loads(line) for line in (tmp_path / "services" / "brave-00001.jsonl").read_text().splitlines()]
    assert [line.get("query", line.get("failed")) for line in lines] == ["six", False, "seven", False]


def test_shares_are_no_more_than_what_is_left_of_all(tmp_path: Path) -> None:
    with serving(Service([FOUND])) as url:
        keys = config.ToolServices(brave=config.BraveService(**vars(settings(url, max_requests=4, per_second=100.0))))

        def sent(shard: int | None, *queries: str) -> int:
            tool = BraveSearch(ServiceAccess(keys, tmp_path, shard, 2).client("brave"))
            for count, query in enumerate(queries):
                try:
                    tool.call(query, [], {})
                except config.RunError:
                    return count
            return len(queries)

        assert sent(0, "a", "b", "c") == 2  # half of four
        assert sent(None, "d", "e", "f") == 2  # what is left
        assert sent(1, "g") == 0


def test_two_that_ask_the_same_are_one_request(tmp_path: Path) -> None:
    begun, going = threading.Event(), threading.Event()

    def waits() -> Reply:
        begun.set()
        going.wait(30)
        return FOUND

    service, answers = Service([waits]), list[ToolResult]()
    with serving(service) as url:
        tool = BraveSearch(client(tmp_path, url))
        threads = [threading.Thread(target=lambda: answers.append(tool.call("same", [], {}))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(30)
        going.set()
        for thread in threads:
            thread.join(30)
    assert len(service.asked) == 1 and len(answers) == 3 and len(set(answers)) == 1


def test_a_run_that_is_begun_again_asks_nothing_twice(tmp_path: Path) -> None:
    plan = {name: [[calls("brave_search", f"light {name}")], ["Answer: In 1874."]] for name in ("alpha", "beta")}
    given = scripted.items(*({"id": name, "text": name} for name in plan))
    service, results = Service([FOUND]), []
    with serving(service) as url:
        for attempt in ("whole", "again", "sharded"):
            tool = BraveSearch(client(tmp_path, url))
            assert isinstance(tool, OutsideTool)
            folder = tmp_path / attempt
            count = 2 if attempt == "sharded" else 1
            found: dict[str, Any] = {}
            for number in range(count):
                capability = single({"brave_search": tool}, candidates=1)
                found |= scripted.run(folder, capability, given, turns(plan), number=number, count=count)
            results.append({name: (found[name]["records"], found[name]["counts"]) for name in plan})
            if attempt == "whole":  # as if killed when one item had no result and half of the other's steps were lost
                steps = (folder / "shards" / "00000" / journal.STEPS).read_text().splitlines()[:3]
                (tmp_path / "again" / "shards" / "00000").mkdir(parents=True)
                (tmp_path / "again" / "shards" / "00000" / journal.STEPS).write_text("\n".join(steps) + "\n")
    assert results[0] == results[1] == results[2] and len(service.asked) == 2
    assert all(records["dialogs"] for records, _ in results[0].values())


def test_who_waits_for_a_service_holds_no_core(tmp_path: Path) -> None:
    class Held:
        """A core that somebody else has."""

        def __enter__(self) -> None:
            raise AssertionError("a core is wanted")

        def __exit__(self, *error: object) -> None: ...

    (item,) = scripted.items({"id": "a"})
    with (
        serving(Service([FOUND])) as url,
        shard.workshop(tmp_path / "out", {}, PromptFiles(), scripted.DEFAULTS, 1) as shared,
    ):
        cores: Any = Held()
        draw = ItemDraw(item, replace(shared, checks=cores))
        assert not interface.use(draw, BraveSearch(client(tmp_path, url)), "one", [], {}).failed
        with pytest.raises(AssertionError, match="a core is wanted"):
            interface.use(draw, LocalSearch(PAGES, 1), "Arholm", [], {})


def test_services_are_chosen_by_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "snippets.jsonl").write_text('{"text": "a"}\n')
    given = [
        "task=tool_single", "name=x", f"folder={tmp_path / 'out'}", f"input={tmp_path / 'snippets.jsonl'}",
        "server.urls=[http://127.0.0.1:9/v1]", "tool_single.search=brave", "tool_single.wolfram=wolfram",
        "tool_single.interpreter=false", "services.brave.max_requests=7",
    ]  # fmt: skip

    def read(*more: str) -> config.Synthesize:
        run = entry.read(config.Synthesize, "synthesize", [*given, *more])[0]
        inputs.check(run)
        return run

    made: Any = tasks.build(read())
    assert {type(tool) for tool in made.steps.tools.values()} == {BraveSearch, WolframAlpha}
    assert not (tmp_path / "out").exists()
    with pytest.raises(config.ConfigError, match=r"tool_single.index=\S+: search=brave asks the service; give"):
        read(f"tool_single.index={tmp_path / 'snippets.jsonl'}")
    with pytest.raises(config.ConfigError, match="tool_single.hits=21: the service gives fewer; give at most 20"):
        read("tool_single.hits=21")
    monkeypatch.delenv("WOLFRAM_APP_ID")
    with pytest.raises(
        config.ConfigError, match=r"services.wolfram.key_variable=WOLFRAM_APP_ID: .* export WOLFRAM_APP"
    ):
        read()
    read("part=gather"), read("tool_single.algebra=false"), read("services.wolfram.key_variable=BRAVE_API_KEY")
    local: Any = building.build(
        "tool_single", config.ToolSingleSynthesis(), Plain,
        ServiceAccess(config.ToolServices(), tmp_path),
    )  # fmt: skip
    assert not any(isinstance(tool, OutsideTool) for tool in local.steps.tools.values())
