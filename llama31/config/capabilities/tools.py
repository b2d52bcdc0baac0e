"""Keys of tool_single, tool_multi, tool_files, function_calls and function_dialogs, and of services that tools ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import key


@dataclass
class PaidService:
    """A service asked over the network, by the proxies of the environment, for money. Numbers are ours."""

    url: str = key("", "address of its API")
    key_variable: str = key("", "environment variable with the key, which is written nowhere")
    max_requests: int = key(1000, "requests of a folder, all shards and starts together; no more is sent", low=0)
    per_second: float = key(1.0, "requests a second of each process; arrays have several", above=0)
    timeout_s: float = key(30.0, "seconds until a request has failed", above=0)
    attempts: int = key(5, "times that a request is sent before it has failed; each counts", low=1)
    backoff_s: float = key(1.0, "pause after a failed request, doubled each time, at most a minute", low=0)


@dataclass
class BraveService(PaidService):
    """Brave's Web Search API, where a tool task says search=brave."""

    url: str = key("https://api.search.brave.com/res/v1/web/search", "address of its API")
    key_variable: str = key("BRAVE_API_KEY", "environment variable with the key, which is written nowhere")


@dataclass
class WolframService(PaidService):
    """Wolfram|Alpha's LLM API, where a tool task says wolfram=wolfram."""

    url: str = key("https://www.wolframalpha.com/api/v1/llm-api", "address of its API")
    key_variable: str = key("WOLFRAM_APP_ID", "environment variable with the AppID, which is written nowhere")


@dataclass
class ToolServices:
    """Services that tools ask where a task says so."""

    brave: BraveService = field(default_factory=BraveService)
    wolfram: WolframService = field(default_factory=WolframService)


@dataclass
class ToolsSynthesis:
    """Which tools there are, and how dialogs that call them are drawn (report, section 4.3.5). Numbers are ours."""

    search: str = key(
        "local", "behind brave_search: local, the pages of `index`; or brave, the service (keys `services.brave`)",
        choices=("local", "brave"),
    )  # fmt: skip
    index: str | None = key(None, "pages with title, url and text that a local search finds; null: no such search")
    hits: int = key(3, "passages that a search gives; of the service at most 20", low=1)
    algebra: bool = key(True, "wolfram_alpha")
    wolfram: str = key(
        "sympy", "behind wolfram_alpha: sympy; or wolfram, the service (keys `services.wolfram`)",
        choices=("sympy", "wolfram"),
    )  # fmt: skip
    interpreter: bool = key(True, "code_interpreter, in the sandbox (keys `programs`)")
    python: list[str] = key(["python3", "-I"], "command that starts Python in the sandbox")
    candidates: int = key(2, "messages drawn at each step; with more than one, pairs of them are kept", low=1)
    reasoning: bool = key(
        False, "a thought stands before code in its message, as in ReAct; servers find a call that stands alone"
    )
    characters: int = key(4000, "characters of a snippet that are shown", low=1)


@dataclass
class ToolSingleSynthesis(ToolsSynthesis):
    """One call and its answer, and easy messages that need none."""

    unused: float = key(0.1, "share of easy messages, with tools on", low=0, high=1)


@dataclass
class ToolMultiSynthesis(ToolsSynthesis):
    """Several calls, each after the results of those before it."""

    least_calls: int = key(2, "calls that work, at least (report: 2)", low=1)
    most_calls: int = key(6, "calls at most", low=1)


@dataclass
class ToolFilesSynthesis(ToolsSynthesis):
    """Questions on an attached file."""

    characters: int = key(20_000, "longest text of a file", low=1)
    preview_lines: int = key(10, "lines of a table that the prompt shows", low=1)
    most_bytes: int = key(5_000_000, "longest file", low=1)
    most_calls: int = key(4, "calls at most", low=1)


@dataclass
class FunctionCallsSynthesis:
    """Calls of functions that are mined from Python code (report, section 4.3.5). Numbers are ours."""

    functions: int = key(4, "functions of a module that are offered, at most", low=1)
    candidates: int = key(2, "draws of the calls; one that breaks its definition becomes the worse of a pair", low=1)
    python: list[str] = key(["python3", "-I"], "command that starts Python in the sandbox")


@dataclass
class FunctionDialogsSynthesis:
    """Function calling over several turns, by agents in roles (report, section 4.3.5). Numbers are ours."""

    subdomains: int = key(8, "subdomains of each domain, at most", low=1)
    dialogs: int = key(1, "dialogs of each subdomain, with other functions each", low=1)
    least_functions: int = key(2, "functions of a dialog, at least", low=1)
    functions: int = key(5, "functions of a dialog, at most", low=1)
    least_turns: int = key(2, "turns of a dialog, at least", low=1)
    most_turns: int = key(5, "turns of a dialog, at most", low=1)
    most_calls: int = key(4, "calls of a turn, at most", low=2)
    repairs: int = key(2, "times that a message with a fault is mended", low=0)
