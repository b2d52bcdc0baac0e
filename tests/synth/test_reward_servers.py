"""A reward model behind a server: how it is asked, what counts as its score, and what becomes of one that has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from llama31 import config
from llama31.sampling.servers import Refused
from llama31.synth.mathematics import reward_servers
from llama31.synth.pipeline.chat_models import Drawn, ServedModel
from tests.sampling.scripted import Script, serving

DRAWN = Drawn(0.0, 1.0, 16, 3)


def by_length(body: Mapping[str, Any]) -> Any:
    """The probability of an answer, by how long it is."""
    return [1 / (1 + len(body["messages"][-1]["content"]))]


@dataclass
class Rewarding(Script):
    """vLLM's classification API."""

    probs: Callable[[Mapping[str, Any]], Any] = by_length

    def answer(self, number: int, body: Mapping[str, Any]) -> tuple[int, bytes]:
        if self.busy > number:
            return 503, b"busy"
        if body["model"] != self.model or len(body["messages"][-1]["content"]) > 1000:
            return 400, b"longer than max_model_len"
        given = self.probs(body)
        one = {"index": 0, "label": "LABEL_0", "probs": given, "num_classes": len(given) if given else 0}
        return 200, json.dumps({"object": "list", "data": [one], "usage": {"prompt_tokens": 9}}).encode()


def settings(*urls: str) -> config.Server:
    return config.Server(list(urls), attempts=3, backoff_s=0.01, timeout_s=5.0)


def question(said: str) -> tuple[dict[str, str], ...]:
    return {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": said}


def test_a_score_is_a_probability(capsys: Any) -> None:
    script = Rewarding(busy=2)
    with serving(script) as url:
        served = ServedModel(settings(url), "reward", reward_servers.connect)
        answer, name = served.reply(question("Step 1: 2"), DRAWN)
        assert float(answer.text) == 1 / 10 and (answer.finish, name) == ("stop", "tiny")
        with pytest.raises(Refused, match="longer than max_model_len"):
            served.reply(question("2" * 2000), DRAWN)
    assert set(script.paths) == {"/classify"}, "beside /v1"
    assert script.asked[-2] == {
        "model": "tiny", "messages": list(question("Step 1: 2")),
        "add_generation_prompt": False, "use_activation": True,
    }  # fmt: skip
    assert "is busy" in capsys.readouterr().out
    with pytest.raises(config.RunError, match="no server answers any more"):
        served.reply(question("Step 1: 2"), DRAWN)


@pytest.mark.parametrize(
    ("probs", "wrong"),
    [
        (lambda body: [0.25, 0.75], "it has 2 labels, and a reward model has one"),
        (lambda body: [-3.5], "-3.5 is no probability; serve the model with its activation"),
        (lambda body: [1.0], "it scores everything 1; serve the model with a newer vLLM"),
        (lambda body: None, "no probabilities in .*after 3 attempts"),
        (lambda body: [float("nan")], "no probabilities in"),
    ],
)
def test_a_server_without_scores_is_refused(probs: Callable[[Any], Any], wrong: str) -> None:
    with serving(Rewarding(probs=probs)) as url, pytest.raises(ValueError, match=wrong) as error:
        ServedModel(settings(url), "reward", reward_servers.connect)
    assert str(error.value).startswith(f"reward.urls={url}")


def test_no_server_is_told() -> None:
    with pytest.raises(ValueError, match=r"reward\.urls=\[\]: this asks a reward model"):
        ServedModel(settings(), "reward", reward_servers.connect)
    with pytest.raises(config.RunError, match="no answer from"):
        ServedModel(settings("http://127.0.0.1:9"), "reward", reward_servers.connect)
