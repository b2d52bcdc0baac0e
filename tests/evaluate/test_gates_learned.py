"""The gates open for a model that has learned to look things up in a context of the stage's length, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import extension
from benchmarks.extension import Text
from llama31 import config
from llama31.evaluate import haystack
from llama31.parallel import mesh
from llama31.tokens import pack, tokenizers
from llama31.train import rollback
from recipes import evaluate
from tests.parallel.training import fit

pytestmark = pytest.mark.torch

SHORT, LONG = Text(32, 4000, (2, 4), (0.0, 0.3, 0.5)), Text(64, 1000, (3, 5), (0.3, 0.6))
BATCH, EVERY = 4096, 25  # tokens, and steps between examinations


@dataclass
class Learned:
    """A model of 2 layers that looks up, and the run in which it came to."""

    run: config.Pretrain
    gates: dict[str, Any]  # gates.json
    before: str  # scores of the short context, as recipes.evaluate writes them
    half: str  # the checkpoint of its first examination, and its scores
    half_before: str


def needle(length: int) -> config.Needle:
    """Three facts, each asked for, at eleven depths: a guess out of them is right in one of three."""
    return config.Needle(kind="tokens", lengths=[length - 8, length], inserted=3, asked=3)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learned]:
    """Five keys and values, short rows: it takes about 200 steps, a quarter of a minute."""
    top = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "LETTERS", extension.LETTERS[:16])
        (top / "letters").mkdir()
        (top / "letters/tokenizer.json").write_text(json.dumps(extension.letters()))
        words = config.Tokenizer(kind="huggingface", path=str(top / "letters"))
        dealt = haystack.printable(tokenizers.load(words))
        sources = {}
        for text in (SHORT, LONG):
            random, name = np.random.default_rng(text.length), f"len{text.length}"
            lines = [json.dumps({"text": extension.document(text, dealt, random)}) for _ in range(text.documents)]
            (top / f"{name}.jsonl").write_text("\n".join(lines))
            sources[name] = config.Source(input=str(top / f"{name}.jsonl"))
    data = config.Data(folder=str(top / "packed"), sources=sources, eos=False, packing="whole", workers=1)
    pack.pack(data, "len32", words)
    pack.pack(replace(data, heldout_fraction=0.0), "len64", words)  # the short-context loss is that of short text
    every = EVERY * BATCH
    run = config.Pretrain(
        name="learned",
        folder=str(top / "learned"),
        model=config.Model("lookup", 2, 64, 64, 2, 2, vocab_size=20, init_std=0.1, rope_factor=0),
        precision=config.Precision(params="fp32"),
        parallel=config.Parallel(micro_batch=BATCH // 32),
        schedule=config.Schedule(800 * BATCH, BATCH, 32, peak_lr=5e-3, final_lr=5e-4, warmup_tokens=30 * BATCH),
        data=replace(data, sources={"len32": sources["len32"]}),
        tokenizer=words,
        gates=config.Gates(every_tokens=every, needle=needle(32)),
        checkpoint=config.Checkpoint(every_tokens=every, keep_last=None),
        validation=config.Validation(tokens=512),
        preflight=config.Preflight(enabled=False),
        log=config.Log(progress=False),
    )
    fit(run)
    half = str(top / f"learned/checkpoints/step-{EVERY:08d}")
    scores = []
    for name, checkpoint in (("before", run.folder), ("half", half)):
        scores.append(str(top / f"{name}.json"))
        asked = config.Evaluate(checkpoint=checkpoint, tokens=2048, sequence_length=32, output=scores[-1])
        evaluate.main(replace(asked, data=run.data, tokenizer=words, precision=run.precision))
    record = json.loads((top / "learned/gates.json").read_text())
    yield Learned(run, record, scores[0], half, scores[1])
    mesh.close()


def extended(learned: Learned, name: str, source: str, baseline: str, steps: int) -> config.Pretrain:
    """A stage of long context at twice the length, as `conf/long_context.yaml` has them."""
    run, folder = learned.run, Path(learned.run.folder)
    sources = {f"len{n}": config.Source(packed=str(folder.parent / f"packed/len{n}")) for n in (32, 64)}
    sources["len32"].weight = 0.3
    gates = replace(run.gates, needle=needle(64), short_length=32, short_tokens=2048, baseline=baseline)
    return replace(
        run,
        name=name,
        folder=str(folder.with_name(name)),
        init_from=source,
        init_optimizer=True,
        init_changes=["rope_factor"],
        model=replace(run.model, rope_factor=8.0),
        parallel=replace(run.parallel, micro_batch=BATCH // 64),
        schedule=config.Schedule(steps * BATCH, BATCH, 64, peak_lr=1e-3, decay="constant"),
        data=replace(run.data, sources=sources),
        gates=gates,
    )


def result(examination: dict[str, Any]) -> list[float]:
    return list(examination["scores"]["needle"]["found"])


def test_they_open_when_it_has_learned_and_not_before(learned: Learned) -> None:
    first, *_, last = learned.gates["examinations"]
    assert max(result(first)) < 0.6 and "of the needles are found in 32 tokens" in first["shut"][-1]
    assert result(last) == [1, 1] and last["shut"] == []
    assert all(one["shut"] for one in learned.gates["examinations"][:-1])
    assert last["tokens"] < learned.run.schedule.total_tokens, "the run ends when they open"


def test_a_stage_ends_when_the_longer_context_is_learned(learned: Learned) -> None:
    run = extended(learned, "stage", learned.run.folder, learned.before, 400)
    fit(run)
    record = json.loads(Path(run.folder, "gates.json").read_text())
    last = record["examinations"][-1]
    assert last["scores"]["needle"]["lengths"] == [56, 64] and result(last) == [1, 1] and last["shut"] == []
    assert (
        last["scores"]["short"]["loss"]
        <= record["baseline"]["short"]["loss"] + record["baseline"]["short"]["loss_ci95"]
    )
    assert last["tokens"] < run.schedule.total_tokens


def test_they_stay_shut_for_a_model_that_guesses(learned: Learned) -> None:
    """It knows values, not whose: the short context is as before, so it is the needles that are missing."""
    run = extended(learned, "control", learned.half, learned.half_before, EVERY)
    with pytest.raises(
        rollback.TrainingStopped, match=r"the gates are shut: [\d.]+% of the needles are found in 56 tokens"
    ):
        fit(run)
    (only,) = json.loads(Path(run.folder, "gates.json").read_text())["examinations"]
    assert max(result(only)) < 0.7 and all("of the needles are found" in reason for reason in only["shut"])
