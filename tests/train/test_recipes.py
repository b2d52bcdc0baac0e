"""The three recipes on one process: they learn, resume bit-equal, compute the reference once, and judge."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks import step_rewards
from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.command import hardware
from llama31.convert import checkpoints
from llama31.dialogs import stepwise
from llama31.judging import scored
from llama31.judging.score import RewardScorer
from llama31.model import llama
from llama31.parallel import mesh
from llama31.resilience import expectation
from llama31.runs import metrics
from llama31.synth.mathematics import reward_servers
from llama31.synth.pipeline.chat_models import Drawn, ServedModel
from llama31.tokens import chat
from llama31.train import reference
from recipes import dpo, reward, sft
from recipes import score as score_recipe
from tests.data.conftest import bpe  # noqa: F401 - a fixture
from tests.dialogs.conftest import dialog, preference

pytestmark = pytest.mark.torch

MODEL = config.Model(name="t", layers=2, hidden_size=32, ffn_hidden_size=64, heads=4, kv_heads=2, vocab_size=560)
WORDS = ("some", "words", "number", "and", "more", "Wörter", "auch")


def said(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, random.integers(1, 5)))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model drawn at random, dialogs that all end alike, and preferences for one word over another."""
    folder, random = tmp_path_factory.mktemp("room"), np.random.default_rng(0)
    grid = mesh.create(config.Parallel())
    for name, seed in (("base", 3), ("other", 4)):
        chunks = llama.build(MODEL, config.Precision(params="fp32"), config.Parallel(), grid, seed=seed)
        blocks = [
            shards.Shard(one.name, one.shape, [shards.Block(*block) for block in one.blocks(one.parameter.data)])
            for one in llama.shards(chunks, MODEL, grid)
        ]
        publish.save(folder / name / "checkpoints", publish.Meta(dataclasses.asdict(MODEL), step=1), blocks)
    mesh.close()
    dialogs = [dialog(said(random), f"{said(random)} more words") for _ in range(80)]
    strengths = ("significantly_better", "better", "slightly_better")
    preferences = [
        preference(said(random), f"{said(random)} more", f"{said(random)} auch", strengths[i % 3]) for i in range(120)
    ]
    for name, records in (("dialogs", dialogs), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run_of(kind: type, room: Path, words: config.Tokenizer, name: str, **changes: Any) -> Any:
    folder = str(room / "encoded")
    data: config.Dialogs | config.Preferences
    if kind is config.Sft:
        data = config.Dialogs(folder, {"a": config.Records(str(room / "dialogs.jsonl"))}, heldout_fraction=0.2)
    else:
        source = {"a": config.Ranked(str(room / "preferences.jsonl"), strength="better")}
        data = config.Preferences(folder, source, heldout_fraction=0.2)
    given = {
        "name": name,
        "folder": str(room / name),
        "init_from": str(room / "base"),
        "model": dataclasses.replace(MODEL, head="reward" if kind is config.Reward else "tokens"),
        "precision": config.Precision(params="fp32"),
        "parallel": config.Parallel(micro_batch=2),
        "schedule": config.Schedule(total_tokens=10 * 512, batch_tokens=512, sequence_length=128, peak_lr=1e-2),
        "tokenizer": words,
        "data": data,
        "checkpoint": config.Checkpoint(keep_last=None),
        "log": config.Log(progress=False),
    }
    return kind(**given | changes)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics.read(folder) if line["kind"] == "train"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    result = listing.resolve(folder)
    return {
        f"{part}/{name}": shards.Reader(result / part).read(name)
        for part in ("weights", "optimizer")
        for name in shards.Reader(result / part).names()
    }


def test_sft_learns_what_assistants_say(
    room: Path, bpe: config.Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: Any  # noqa: F811
) -> None:  # fmt: skip
    """On a machine that is said to be a million times slower than any: what it takes is no longer what was expected."""
    own = room / "hardware" / "slow.yaml"
    own.parent.mkdir()
    device, stack = hardware.chosen(config.Cluster(device="H100")) or pytest.fail("there are none")
    slow = {
        "devices": {"H100": dataclasses.asdict(dataclasses.replace(device, fp32_tflops=1e-6))},
        "stacks": {"megatron": dataclasses.asdict(stack)},
    }
    own.write_text(yaml.safe_dump(slow))
    monkeypatch.setattr(expectation, "WARM_UP_STEPS", 2)
    monkeypatch.setattr(expectation, "WINDOW_STEPS", 3)
    sft.main(run_of(config.Sft, room, bpe, "sft", cluster=config.Cluster(device="H100", hardware=str(own))))
    assert "sft: expected: " in capsys.readouterr().out
    (event,) = [line for line in metrics.read(room / "sft") if line["kind"] == "event"]
    assert event["event"] == "step_time" and expectation.PASSES in event["reason"] and "(-100%)" in event["reason"]
    lines = curve(room / "sft")
    assert len(lines) == 10 and lines[-1]["loss"] < lines[0]["loss"] - 1
    assert lines[0]["loss"] == pytest.approx(math.log(560), abs=0.2)
    assert all(0 < line["loss_tokens"] < 0.7 * 512 for line in lines), "prompts and headers do not count"
    (held,) = [line for line in metrics.read(room / "sft") if line["kind"] == "validation"]
    assert held["loss"] < lines[0]["loss"] - 1


def test_dpo_resumes_bit_equal_and_computes_its_reference_once(
    room: Path, bpe: config.Tokenizer, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    computed = []
    compute = reference.compute
    monkeypatch.setattr(reference, "compute", lambda *given: computed.append(1) or compute(*given))
    dpo.main(run_of(config.Dpo, room, bpe, "whole"))
    dpo.main(run_of(config.Dpo, room, bpe, "stopped", stop_after_steps=3))
    dpo.main(run_of(config.Dpo, room, bpe, "stopped", beta=0.1))
    assert computed == [1]
    whole, stopped = curve(room / "whole"), curve(room / "stopped")
    keys = ("loss", "grad_norm", "accuracy", "margin", "chosen", "rejected", "nll", "loss_tokens")
    assert [[line[key] for key in keys] for line in stopped] == [[line[key] for key in keys] for line in whole]
    first, last = whole[0], whole[-1]
    assert first["loss"] - first["nll"] == pytest.approx(math.log(2), abs=2e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["accuracy"] > 0.7 and last["margin"] == pytest.approx(last["chosen"] - last["rejected"], abs=1e-5)
    one, two = tensors(room / "whole"), tensors(room / "stopped")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    (held,) = [line for line in metrics.read(room / "whole") if line["kind"] == "validation"]
    assert held["accuracy"] > 0.65 and held["margin"] > 0 and held["nll"] > 0


def test_a_stale_reference_is_not_used(room: Path, bpe: config.Tokenizer, capsys: Any) -> None:  # noqa: F811
    def said_of(name: str, **changes: Any) -> str:
        dpo.main(run_of(config.Dpo, room, bpe, name, stop_after_steps=1, **changes))
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("reference: "))

    said_of("one")
    (path,) = (room / "encoded").glob("reference-*.npz")
    assert "examples in" not in said_of("two")
    for name, changes in (("mask", {"masked": False}), ("weights", {"init_from": str(room / "other")})):
        assert "examples in" in said_of(name, **changes)
    content = path.read_bytes()
    for damaged in (content[:200], content.replace(content[300:304], b"abcd")):
        path.write_bytes(damaged)
        assert "is made again" in said_of(f"damaged-{len(damaged)}")
        assert path.read_bytes() == content
    with pytest.raises(ValueError, match=r"init_from \(its weights\)=.*: the checkpoint read its data with"):
        dpo.main(run_of(config.Dpo, room, bpe, "two", init_from=str(room / "other")))
    mesh.close()


def test_a_reward_model_ranks_and_judges(room: Path, bpe: config.Tokenizer) -> None:  # noqa: F811
    run = run_of(config.Reward, room, bpe, "reward")
    reward.main(run)
    lines = curve(room / "reward")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1) and lines[-1]["accuracy"] > 0.7
    record = json.loads((room / "reward/calibration.json").read_text())
    assert record.keys() == {"step", "significantly_better", "better", "slightly_better", "all"}, (
        "all that are held out"
    )
    assert record["all"]["accuracy"] > 0.85 and (room / "reward/calibration.png").stat().st_size > 10_000
    judge = RewardScorer(str(room / "reward"), run.parallel, run.precision, mesh.create(run.parallel))
    dialogs = [
        chat.read(dialog(prompt, answer))
        for prompt in WORDS
        for answer in ("number more", "number auch")
    ]  # fmt: skip
    rewards = judge.score(dialogs)
    assert (rewards[::2] > rewards[1::2]).all()
    alone = np.concatenate([judge.score([one], length=200) for one in dialogs])
    np.testing.assert_allclose(rewards, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"dialogs\[1\] has \d+ tokens, more than the 12 of a row"):
        judge.score([dialogs[0][:1], dialogs[1] * 4], length=12)
    mesh.close()
    scores_of_a_file(room, rewards)


def scores_of_a_file(room: Path, rewards: np.ndarray) -> None:
    """The same answers, from a file."""
    given: list[dict[str, Any]] = [
        {**preference(prompt, "number more", "number auch", strength), "from": number}
        for number, (prompt, strength) in enumerate(zip(WORDS, [*[None] * 2, *["better"] * len(WORDS)]))
    ]
    given += [dialog(WORDS[0], "number more"), dialog(WORDS[0], "number more " * 40), preference(WORDS[0], "", "auch")]
    (room / "given.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    run = config.Score(
        input=str(room / "given.jsonl"), output=str(room / "scored.jsonl"), reward=str(room / "reward"),
        score_tokens=40, chunk=3,  # and in FP32, as the model was trained
    )  # fmt: skip
    score_recipe.main(run)
    record = [json.loads(line) for line in (room / "scored.jsonl").read_text().splitlines()]
    *pairs, short, long, empty = record
    assert [{key: one[key] for key in one if key not in ("reward", "rewards")} for one in record] == given
    result = [one["rewards"][rank] for one in pairs for rank in ("chosen", "rejected")]
    np.testing.assert_allclose(result, rewards, rtol=1e-5, atol=1e-5)
    assert short["reward"] == pytest.approx(float(rewards[0]), rel=1e-5) and long["reward"] is None
    assert empty["rewards"] == {}
    entries = scored.read(run.input)
    table = scored.agreement(entries, [one.get("rewards", {}) for one in record])
    assert {name: (one["pairs"], one["accuracy"]) for name, one in table.items()} == {
        "not stated": (2, 1.0), "better": (len(WORDS) - 2, 1.0), "all": (len(WORDS), 1.0)
    }  # fmt: skip


def test_a_reward_model_that_nothing_was_held_out_for_says_so(
    room: Path, bpe: config.Tokenizer, capsys: Any  # noqa: F811
) -> None:  # fmt: skip
    run = run_of(config.Reward, room, bpe, "unjudged", stop_after_steps=None)
    run.data.heldout_fraction, run.schedule.total_tokens = 0.0, 2 * 512
    reward.main(run)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calibration: ")]
    assert "no held-out pair" in said and "data.heldout_fraction above 0" in said
    assert not (room / "unjudged/calibration.json").exists()


def stepped(room: Path, bpe: config.Tokenizer, name: str, **changes: Any) -> config.Reward:  # noqa: F811
    """Steps that end in one word are right, and in another wrong; their labels are not sure of it."""
    random, records = np.random.default_rng(1), []
    for number in range(120):
        right = random.random(2 + number % 3) < 0.5
        steps = [f"{said(random)} {'more' if one else 'auch'}." for one in right]
        records.append({"question": said(random), "steps": steps, "labels": [0.9 if one else 0.1 for one in right]})
    path = room / "steps.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    schedule = config.Schedule(total_tokens=60 * 512, batch_tokens=512, sequence_length=128, peak_lr=1e-2)
    run = run_of(config.Reward, room, bpe, name, objective="steps", schedule=schedule, **changes)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, sources={"a": config.Ranked(str(path))}))


def test_a_step_wise_reward_model_judges_steps(room: Path, bpe: config.Tokenizer, capsys: Any) -> None:  # noqa: F811
    run = stepped(room, bpe, "steps")
    reward.main(run)
    lines = curve(room / "steps")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.1) and lines[-1]["accuracy"] > 0.85
    (held,) = [line for line in metrics.read(room / "steps") if line["kind"] == "validation"]
    assert held["accuracy"] > 0.85 and held["loss"] < 0.5 and held["score"] == pytest.approx(held["label"], abs=0.15)
    record = json.loads((room / "steps/calibration.json").read_text())
    assert record.keys() == {"step", "wrong steps", "right steps", "all"} and record["all"]["accuracy"] > 0.85
    with pytest.raises(ValueError, match="layout=separate: the checkpoint read its data with tree"):
        reward.main(stepped(room, bpe, "steps", layout="separate"))
    with pytest.raises(ValueError, match=r"objective is not given: the checkpoint read its data with steps"):
        reward.main(run_of(config.Reward, room, bpe, "steps"))
    mesh.close()
    scored_by_steps(room, run, capsys)


def scored_by_steps(room: Path, run: config.Reward, capsys: Any) -> None:
    """A step's score is sigmoid(reward) of the dialog that ends with it; what has a low one is left out."""
    answers = [["number more.", "some more.", "and more."], ["number more.", "words auch.", "some more."]]
    judge = RewardScorer(str(room / "steps"), run.parallel, run.precision, mesh.create(run.parallel))
    every = [
        chat.read(dialog("words", stepwise.numbered(steps[:end]))) for steps in answers for end in range(1, 4)
    ]  # fmt: skip
    expected = 1 / (1 + np.exp(-judge.score(every)))
    mesh.close()
    given = [{"question": "words", "steps": steps, "labels": [1, 1, 1]} for steps in answers]
    given += [dialog("words", "\n\n".join(steps)) for steps in answers]
    given += [dialog("words", "number more " * 80)]
    (room / "given.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    settings = config.Score(
        input=str(room / "given.jsonl"), output=str(room / "scored.jsonl"), reward=str(room / "steps"),
        score_tokens=128, chunk=2, steps=True,
    )  # fmt: skip
    score_recipe.main(settings)
    *scored_ones, long = [json.loads(line) for line in (room / "scored.jsonl").read_text().splitlines()]
    found = [score for one in scored_ones for score in one["step_scores"]]
    np.testing.assert_allclose(found, [*expected, *expected], rtol=1e-5, atol=1e-6)
    assert long == {**given[-1], "step_scores": None} and (expected[[0, 1, 2, 3]] > 0.5).all() and expected[4] < 0.5
    capsys.readouterr()
    score_recipe.main(dataclasses.replace(settings, least_step=0.5))
    kept = [json.loads(line) for line in (room / "scored.jsonl").read_text().splitlines()]
    assert [one["step_scores"] for one in kept] == [scored_ones[0]["step_scores"], scored_ones[2]["step_scores"]]
    said_there = capsys.readouterr().out
    assert "2 records with a step below 0.5 are left out; 1 records without scores are left out" in said_there
    assert "right steps        6" in said_there.replace(",", "")
    with pytest.raises(ValueError, match=r"given\.jsonl, line 3: least_step=0\.5: this answer is not scored by"):
        score_recipe.main(dataclasses.replace(settings, least_step=0.5, steps=False))


def test_a_served_step_wise_reward_model_gives_its_own_scores(
    room: Path, bpe: config.Tokenizer  # noqa: F811
) -> None:  # fmt: skip
    """Exported by recipes.convert and asked over HTTP by messages, as a search asks it."""
    checkpoints.run(
        config.Convert("to_hf", hf=str(room / "hf"), checkpoint=str(room / "steps"), dtype="fp32", overwrite=True)
    )
    answers = [
        ("words and", ["number more.", "some auch."]),
        ("Wörter", ["3. more."]),
        ("more\n", ["a ", "b.", "more"]),
    ]
    judge = RewardScorer(
        str(room / "steps"), config.Parallel(), config.Precision(params="fp32"), mesh.create(config.Parallel())
    )
    expected = judge.steps([stepwise.read({"question": asked, "steps": steps}) for asked, steps in answers], 200)
    mesh.close()
    with step_rewards.serving(room / "hf") as url:
        served = ServedModel(config.Server([url]), "reward", reward_servers.connect)
        drawn = Drawn(0.0, 1.0, 1, 0)
        found = [
            [float(served.reply(stepwise.asked(asked, steps[:end]), drawn)[0].text) for end in range(1, len(steps) + 1)]
            for asked, steps in answers
        ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other or [], rtol=1e-5, atol=1e-6)


def test_heads_are_not_mixed_up(room: Path, bpe: config.Tokenizer) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="a reward model has no output layer"):
        dpo.main(run_of(config.Dpo, room, bpe, "from-reward", init_from=str(room / "reward")))
    with pytest.raises(ValueError, match="it predicts tokens; give a reward model"):
        RewardScorer(
            str(room / "base"), config.Parallel(), config.Precision(params="fp32"), mesh.create(config.Parallel())
        )
    mesh.close()
