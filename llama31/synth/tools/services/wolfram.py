"""wolfram_alpha by Wolfram|Alpha's LLM API.

    GET https://www.wolframalpha.com/api/v1/llm-api?input=...&maxchars=...     Authorization: Bearer APPID
    200: text in sections (Query, Input interpretation, Result ...)     501: not understood

Source: products.wolframalpha.com/llm-api/documentation, by its OpenAPI description at apis.apis.io (wolfram-alpha,
llm-api, 1.0); 501 as in the description of its Short Answers API. Free of charge are 2,000 requests a month that are
not commercial (products.wolframalpha.com/api). It takes the AppID as a parameter as well, which would stand in logs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama31.synth.tools.interface import ATTACHED, MOST_CHARACTERS, OutsideTool, ToolResult
from llama31.synth.tools.services.client import PaidClient

LONGEST_QUERY = 500
NOT_UNDERSTOOD = 501
_PICTURE = re.compile(r"^image:\s*https?://\S+[ \t]*\n?", re.MULTILINE | re.IGNORECASE)
_PAGE = re.compile(r"^Wolfram\|Alpha website result for .*\n+https?://\S+\s*", re.MULTILINE)


class WolframAlpha(OutsideTool):
    """wolfram_alpha by the service, without pictures and the address of its page."""

    name = "wolfram_alpha"
    purpose = "computes and knows: equations, calculus, units, dates, and figures of science, places and people."
    form = "a short query in English on one line, as: solve x^2 - 5x + 6 = 0; mass of Mars in kg; 3 miles in km."
    fingerprint = "wolfram llm 1"

    def __init__(self, client: PaidClient) -> None:
        self._client = client

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """See `ChatTool`. Raises Refused and RunError as `PaidClient.ask`."""
        if not given.strip() or len(given) > LONGEST_QUERY:
            return ToolResult("The query was not understood.", failed=True)
        parameters = {"input": given, "maxchars": str(MOST_CHARACTERS)}
        return self._client.ask(self.fingerprint, given, parameters, _read, (200, NOT_UNDERSTOOD))


def _read(status: int, text: str) -> ToolResult:
    """The result that a response is. Raises ValueError for an empty one."""
    said = _PAGE.sub("", _PICTURE.sub("", text)).strip()
    if status == NOT_UNDERSTOOD:
        return ToolResult(said or "The query was not understood.", failed=True)
    if not said or said.startswith("<"):
        raise ValueError("nothing is said" if not said else "a page")
    return ToolResult(said)
