"""Servers of a reward model: the probability that the last step of an answer is right, asked for by messages.

What recipes.convert makes of a reward model, LlamaForSequenceClassification with one label, vLLM serves as it is:
`vllm serve FOLDER --runner pooling`. Its classification API is asked, which stands beside /v1 and takes messages, as
documented of 0.13 to 0.16 (docs.vllm.ai/en/v0.16.0/api/vllm/entrypoints/pooling/classify/protocol):

    POST /classify {"model": NAME, "messages": [...], "add_generation_prompt": false, "use_activation": true}
    {"data": [{"index": 0, "label": "LABEL_0", "probs": [0.83], "num_classes": 1}], "usage": {...}, ...}

The server puts the messages into the chat template of the folder, which has the tokens that training saw, and reads the
reward at the last one; with one label the activation is the sigmoid. vLLM itself has not been run here.
"""

from __future__ import annotations

import math
from typing import Any

from llama31 import config
from llama31.sampling import capability_probe
from llama31.sampling.answers import Answer
from llama31.sampling.servers import CLASSIFY, TEMPLATE, Capabilities, Refused, Request, Retryable, Server

_PROBES = ("Step 1: 1 + 1 = 2.", "Step 1: It rains, so it is 7.")


class RewardServer(Server):
    """One server of a reward model. An answer's text is the probability, as Python writes it."""

    def body(self, request: Request, capabilities: Capabilities) -> dict[str, Any]:
        """See `Server`."""
        named = {"model": capabilities.model} if capabilities.model else {}
        messages = list(request.messages)
        return {**named, "messages": messages, "add_generation_prompt": False, "use_activation": True}

    def read(self, response: Any, request: Request, capabilities: Capabilities) -> list[Answer]:
        """See `Server`. Refused is what is no probability of one label."""
        data = response.get("data") if isinstance(response, dict) else None
        first = data[0] if isinstance(data, list) and data else None
        given = first.get("probs") if isinstance(first, dict) else None
        if not isinstance(given, list) or not given or not all(_finite(one) for one in given):
            raise Retryable(f"no probabilities in {str(response)[:120]}", "garbage")
        if len(given) != 1:
            raise Refused(f"it has {len(given)} labels, and a reward model has one; serve one of recipes.reward")
        if not 0 <= given[0] <= 1:
            raise Refused(f"{given[0]:g} is no probability; serve the model with its activation, which is the default")
        return [Answer(repr(float(given[0])), "stop")]


def _finite(given: Any) -> bool:
    return isinstance(given, int | float) and math.isfinite(given)


def connect(settings: config.Server) -> list[Server]:
    """The servers that are up, each of which has scored two answers.

    Raises RunError where none is up, and ValueError (key `server.urls`) for one that scores nothing, or all alike.
    """
    if not settings.urls:
        raise ValueError("server.urls=[]: this asks a reward model; give the address of a server that has one")
    servers = capability_probe.awaited(settings, capability_probe.NoTokens(), {}, RewardServer)
    for server in servers:
        _probe(server)
    return servers


def _probe(server: Server) -> None:
    names, listed = capability_probe.models(server)
    refusals = []
    for name in names:
        server.capabilities = Capabilities(server.url, name, CLASSIFY, TEMPLATE, checked=False)
        try:
            scores = [server.ask(_example(text))[0].text for text in _PROBES]
        except Refused as error:
            refusals.append(f"{name or 'its own model'}: {error}")
            continue
        if scores == ["1.0", "1.0"]:  # of versions before 0.9, which take one label's softmax
            raise ValueError(f"server.urls={server.url}: it scores everything 1; serve the model with a newer vLLM")
        return
    raise ValueError(
        f"server.urls={server.url}: it scores no answer; it lists {', '.join(listed) or 'nothing'} "
        f"(server.model={server.settings.model or 'null'}):\n  " + "\n  ".join(refusals)
    )


def _example(said: str) -> Request:
    messages = ({"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": said})
    return Request((), messages, 0.0, 1.0, 1, seed=1)
