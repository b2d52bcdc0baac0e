"""Our own decoder as a source: what it draws follows from the line's seed and choice, and long prompts are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama31 import config
from llama31.checkpoint import publish
from llama31.convert import pretrained
from llama31.evaluate.generate import generate
from llama31.judging import embedded, rejection
from llama31.model import llama
from llama31.model.llama import Llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.sampling import drawing, prompts
from llama31.tokens import chat, template
from tests.model.test_model import FP32, MODEL, ONE
from tests.sampling.scripted import Bytes

pytestmark = pytest.mark.torch

POLICY = drawing.Policy("runs/policy", "abc")
RUN = config.Sampling(answers=3, max_new_tokens=6, batch=4)


class Words(Bytes):
    """Bytes with the size that a tokenizer tells."""

    vocab_size = 263


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@pytest.fixture(scope="module")
def chunks(grid: Grid) -> list[Llama]:
    return llama.build(replace(MODEL, init_std=0.1, max_positions=128), FP32, ONE, grid, seed=4)


def drawn(
    chunks: list[Llama], grid: Grid, asked: list[prompts.Prompt], run: config.Sampling = RUN
) -> list[dict[str, Any]]:
    source: Any = embedded.Embedded(chunks, grid, Words(), POLICY, run)  # type: ignore[arg-type]
    return [line for lines in source.draw(drawing.missing(asked, run.answers, ())) for line in lines]


def asked(*texts: str) -> list[prompts.Prompt]:
    form = chat.Format(Words())
    return [prompts._prompt({"prompt": text}, form) for text in texts]


def test_a_line_says_how_to_draw_it_again(grid: Grid, chunks: list[Llama]) -> None:
    given = asked("Hi", "Name a river", "Why?")
    result = drawn(chunks, grid, given)
    assert len({(line["prompt"], line["k"]) for line in result}) == len(result) == 9
    by_id = {prompt.id: prompt.ids for prompt in given}
    ends = set(template.stops(Words()).values())  # type: ignore[arg-type]
    for line in result[::4]:
        padding = [[1]] * line["choice"]  # whatever else was in its batch
        ids = generate(chunks, grid, [*padding, by_id[line["prompt"]]], 6, ends, 1.0, 1.0, line["seed"], 263)[-1]
        assert line["tokens"] == len(ids)
        assert line["text"] == Words().decode(ids[:-1] if ids[-1] in ends else ids)
        assert line["finish"] == ("stop" if ids[-1] in ends else "length")
    assert len({line["text"] for line in result}) > 6
    assert [line["text"] for line in drawn(chunks, grid, given)] == [line["text"] for line in result]
    other = drawn(chunks, grid, given, replace(RUN, seed=9))
    assert [line["text"] for line in other] != [line["text"] for line in result]


def test_prompts_that_leave_no_room_are_refused_and_the_others_drawn(grid: Grid, chunks: list[Llama]) -> None:
    result = drawn(chunks, grid, asked("Hi", "long " * 40))
    refused = [line for line in result if "refused" in line]
    assert len(refused) == 3 and "there is room for 122" in refused[0]["refused"]
    assert all("text" in line for line in result if line not in refused) and len(result) == 6


def test_an_answer_ends_where_llama_ends_it() -> None:
    names = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    assert template.stops(Words()) == {name: Words().special[name] for name in names}  # type: ignore[arg-type]


@pytest.mark.parametrize("trained", ["bf16", "fp32"])
def test_a_policy_answers_in_what_it_was_trained_in(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[config.Precision] = []

    def build(shape: config.Model, precision: config.Precision, *_: Any) -> None:
        built.append(precision)
        raise NotImplementedError

    monkeypatch.setattr(llama, "build", build)
    weights = pretrained.Pretrained(Path("x"), publish.Meta(asdict(MODEL), precision=trained))
    run = config.Sample(sampling=RUN)
    session: Any = SimpleNamespace(run=run, weights=weights, tokenizer=Words())
    with pytest.raises(NotImplementedError):
        rejection.load_policy(session, None)  # type: ignore[arg-type]
    assert [one.params for one in built] == [trained]
