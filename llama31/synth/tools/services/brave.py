"""brave_search by Brave's Web Search API.

    GET https://api.search.brave.com/res/v1/web/search?q=...&count=...     X-Subscription-Token: KEY
    {"web": {"results": [{"title": ..., "url": ..., "description": ..., "extra_snippets": [...]}, ...]}}

Source: api.search.brave.com/app/documentation/web-search, its pages query (q: at most 400 characters and 50 words;
count: at most 20), responses and response-headers (X-RateLimit-Remaining and -Reset: of a second, then of a month), as
of 2026.
`web` is missing where nothing was found.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from llama31.synth.tools.interface import ATTACHED, OutsideTool, ToolResult
from llama31.synth.tools.services.client import PaidClient

LONGEST_QUERY, MOST_WORDS = 400, 50
_MARK = re.compile(r"</?(?:strong|b|em)>")


class BraveSearch(OutsideTool):
    """brave_search by the service. Results have the form of the local index's."""

    name = "brave_search"
    purpose = "searches the web and gives the passages that fit best."
    form = "a query on one line, without quotation marks."

    def __init__(self, client: PaidClient, count: int = 3) -> None:
        self._client, self._count = client, count
        self.fingerprint = f"brave web 1, {self._count} hits"

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """See `ChatTool`. Raises Refused and RunError as `PaidClient.ask`."""
        if not given.strip() or len(given) > LONGEST_QUERY or len(given.split()) > MOST_WORDS:
            return ToolResult(f"A query has 1 to {MOST_WORDS} words.", failed=True)
        parameters = {"q": given, "count": str(self._count), "text_decorations": "false", "result_filter": "web"}
        return self._client.ask(self.fingerprint, given, parameters, lambda _, text: self._read(given, text))

    def _read(self, query: str, text: str) -> ToolResult:
        """The result that a response is. Raises ValueError for one of another form."""
        try:
            response = json.loads(text)
        except RecursionError as error:
            raise ValueError("JSON too deep to be read") from error
        web = (response.get("web") or {"results": []}) if isinstance(response, dict) else None
        found = web.get("results") if isinstance(web, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ValueError("web.results is no list of objects")
        hits = [_hit(one) for one in found[: self._count]]
        said = json.dumps({"query": query, "top_k": hits}, ensure_ascii=False)
        return ToolResult(said, failed=not hits)


def _hit(given: dict[str, Any]) -> dict[str, str]:
    more = given.get("extra_snippets") or []
    parts = [given.get("description"), *(more if isinstance(more, list) else [])]
    content = "\n".join(_plain(part) for part in parts if isinstance(part, str))
    return {"title": _plain(given.get("title")), "url": str(given.get("url") or ""), "content": content}


def _plain(text: Any) -> str:
    """A text without the marks of hits and with characters in the place of their names."""
    return html.unescape(_MARK.sub("", text)) if isinstance(text, str) else ""
