"""Runs that stop, go on, move to another layout, or must not go on."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.runs import metrics
from llama31.tokens import pack
from tests.conftest import ROOT
from tests.parallel.launch import torchrun

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

RESUMED = {
    "dp2": {},
    "dp2-zero2": {"parallel.zero": 2},
    "dp2-zero3": {"parallel.zero": 3},
    "tp2": {"parallel.tp": 2},
    "pp2": {"parallel.pp": 2},
    "cp2": {"parallel.cp": 2},
}
NOT_FINITE = {
    "not-finite": {},
    "not-finite-bf16": {"precision.params": "bf16"},
    "not-finite-zero2": {"parallel.zero": 2, "precision.params": "bf16"},
    "not-finite-zero3": {"parallel.zero": 3},
}
RAMP = {"schedule.total_tokens": 2560, "ramp": [[512, 256, 64], [1280, 512, 128]]}
# Begun by two processes, ZeRO-1, of commit 72e6bab under Python 3.11.2, torch 2.13.0+cpu and megatron-core 0.16.1. What
# the archive holds stopped after step 6; from the same checkpoint they went on with these losses and gradient norms.
BEGUN = ROOT / "tests" / "fixtures" / "begun_0.16.1.tar.xz"
BEGUN_SHAPE = {"hidden_size": 8, "ffn_hidden_size": 16, "heads": 2, "kv_heads": 1, "vocab_size": 520}
BEGUN_KEYS = {f"model.{key}": value for key, value in BEGUN_SHAPE.items()} | {"model.tied_embeddings": True}
WENT_ON = {
    7: (5.930846214294434, 1.181093451808625),
    8: (5.8701276779174805, 1.1943904836181016),
    9: (5.832120895385742, 1.2086103165717264),
    10: (5.8040266036987305, 1.2048495924536768),
    11: (5.799338340759277, 1.136198101558083),
    12: (5.777636528015137, 1.2137272355904107),
}
Plan = list[dict[str, Any]]


def step(name: str, folder: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return {"name": name, "folder": str(folder), "data": str(data), "overrides": keys}


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All runs on two processes: one whole, one stopped at step 2, and what goes on from there."""
    root = tmp_path_factory.mktemp("runs")
    plan: Plan = [
        step("whole", root / "whole", data),
        step("stopped", root / "stopped", data, stop_after_steps=2),
        step("continued", root / "stopped", data),
        step("half", root / "half", data, stop_after_steps=8),
        step("whole-bf16", root / "whole-bf16", data, precision__params="bf16"),
        step("stopped-bf16", root / "stopped-bf16", data, precision__params="bf16", stop_after_steps=3),
        step("continued-bf16", root / "stopped-bf16", data, precision__params="bf16"),
        step("whole-rows", root / "whole-rows", data, data__packing="whole", stop_after_steps=3),
        {**step("planned", root / "planned", data, data__packing="whole", stop_after_steps=3), "planned": True},
        {**step("ramp", root / "ramp", data), "overrides": RAMP | {"log.tensorboard": True, "profile.first_step": 2}},
        {**step("ramp-pp2", root / "ramp-pp2", data), "overrides": RAMP | {"parallel.pp": 2}},
        {**step("ramp-cp2-begun", root / "ramp-cp2", data), "overrides": RAMP | {"stop_after_steps": 3}},
        {**step("ramp-cp2", root / "ramp-cp2", data), "overrides": RAMP | {"parallel.cp": 2}},
    ]
    half = str(root / "half")
    for name, overrides in RESUMED.items():
        keys = {"resume": half, **overrides}
        plan.append({**step(name, root / name, data), "overrides": keys})
        plan.append({**step(f"{name}-moved", root / f"{name}-moved", data), "overrides": keys, "moved": True})
    plan += [
        {**step("broken", root / "broken", data), "overrides": {"stop_after_steps": 1}, "broken": True},
        step("again", root / "again", data, init_from=half, schedule__peak_lr=1e-3),
        step("reweighted", root / "reweighted", data, stop_after_steps=8),
        step("other-shape", root / "other-shape", data, resume=half, model__ffn_hidden_size=96),
        step("other-batch", root / "other-batch", data, resume=half, schedule__batch_tokens=512),
        step("too-early", root / "too-early", data, parallel__from_tokens=4096),
        step("replace", root / "half", data, resume="none"),
        step("other-layout", root / "other-layout", data, parallel__dp=4),
        step("vocabulary", root / "vocabulary", data, model__vocab_size=512),
    ]
    with tarfile.open(BEGUN) as archive:
        archive.extractall(root / "old", filter="data")
    plan.append({**step("begun", root / "old" / "begun", root / "old" / "data"), "overrides": BEGUN_KEYS})
    poisoned = {"init_from": str(root / "poisoned")}
    plan += [{**step(n, root / n, data), "overrides": poisoned | keys} for n, keys in NOT_FINITE.items()]
    first = _run(plan[:13], root)
    _poison(root / "half", root / "poisoned")
    return root, first | _run(plan[13:], root)


def _run(plan: Plan, root: Path) -> dict[str, dict[str, Any]]:
    (root / "plan.json").write_text(json.dumps(plan))
    torchrun(2, "tests.parallel.training", str(root / "plan.json"), str(root / "out.json"))
    result: dict[str, dict[str, Any]] = json.loads((root / "out.json").read_text())
    return result


def _poison(source: Path, target: Path) -> None:
    """A checkpoint with one NaN in its weights."""
    result = listing.resolve(source)
    reader = shards.Reader(result / "weights")
    loaded = {name: reader.read(name).clone() for name in reader.names()}
    loaded["decoder.final_layernorm.weight"][3] = float("nan")
    blocks = [shards.Shard(n, tuple(t.shape), [shards.Block((0,) * t.ndim, t)]) for n, t in loaded.items()]
    publish.save(target / "checkpoints", publish.read_meta(result), blocks)


def curve(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    return {x["step"]: (x["loss"], x["grad_norm"]) for x in metrics.read(folder) if x["kind"] == "train"}


@pytest.mark.parametrize("params", ["", "-bf16"])
def test_resumed_is_bit_equal(params: str, runs: tuple[Path, dict[str, Any]]) -> None:
    root, _ = runs
    whole, continued = curve(root / f"whole{params}"), curve(root / f"stopped{params}")
    assert len(whole) == 12 and continued == whole
    first, last = whole[1][0], whole[12][0]
    assert last < first - 0.5, "it learns, so equality is no accident of a model that stands still"
    final = [listing.resolve(root / f"{name}{params}") for name in ("whole", "stopped")]
    for part in ("weights", "optimizer"):
        ours, theirs = (shards.Reader(folder / part) for folder in final)
        assert ours.names() == theirs.names()
        assert all((ours.read(name) == theirs.read(name)).all() for name in ours.names())


def test_a_run_begun_under_the_stack_before_goes_on(runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    assert "error" not in results["begun"], results["begun"]["error"]
    result = curve(root / "old" / "begun")
    assert sorted(result) == list(range(1, 13))
    for number, values in WENT_ON.items():
        assert result[number] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_another_layout_goes_on_alike(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    assert "error" not in results[name], results[name]["error"]
    whole, result = curve(root / "whole"), curve(root / name)
    assert sorted(result) == [9, 10, 11, 12]
    for number, values in result.items():
        assert values == pytest.approx(whole[number], rel=1e-5)


@pytest.mark.parametrize("name", ["tp2", "pp2", "cp2", "ramp-pp2", "ramp-cp2"])
def test_one_rank_of_a_replica_reads(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    """Held-out rows too; the other opens no file of tokens, and has the same rows bit by bit."""
    _, results = runs
    reader, other = results[name]["opened"]
    assert {"a/packed.json", "a/train.bin", "a/train.idx", "b/train.bin", "a/heldout.bin"} <= set(reader)
    assert other == []
    assert len(set(results[name]["rows"])) == 1
    assert len(set(results["dp2"]["rows"])) == 2 and all(results["dp2"]["opened"])
    assert results["twins"] == [100, 100]


def test_rows_that_one_rank_plans_are_those_that_each_would(runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    assert results["planned"]["rows"] == results["whole-rows"]["rows"]
    assert curve(root / "planned") == curve(root / "whole-rows")
    kinds = {path.name.split("-")[0] for path in (root / "planned" / "rows").iterdir()}
    assert kinds == {"documents", "plan", "epoch"} and not (root / "whole-rows" / "rows").exists()


@pytest.mark.parametrize("name", RESUMED)
def test_moments_move_to_another_layout_bit_by_bit(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    assert "error" not in results[f"{name}-moved"], results[f"{name}-moved"]["error"]
    half, moved = listing.resolve(root / "half"), listing.resolve(root / f"{name}-moved")
    assert publish.read_meta(moved).extra["updates"] == 8
    for part in ("weights", "optimizer"):
        ours, theirs = shards.Reader(half / part), shards.Reader(moved / part)
        assert ours.names() == theirs.names()
        assert all((ours.read(tensor) == theirs.read(tensor)).all() for tensor in ours.names())
    assert any(shards.Reader(half / "optimizer").read(n).abs().max() > 0 for n in ["exp_avg.output_layer.weight"])


def test_a_run_that_goes_on_reads_no_weights(runs: tuple[Path, dict[str, Any]]) -> None:
    """Its masters bring them; a new run from the weights of another has nothing else."""
    _, results = runs
    assert {results[name]["weights_read"] for name in ("continued", "continued-bf16", *RESUMED)} == {0}
    assert results["again"]["weights_read"] == 1


def test_weights_alone_start_a_new_run(runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    assert "error" not in results["again"], results["again"]["error"]
    again, whole = curve(root / "again"), curve(root / "whole")
    assert sorted(again) == list(range(1, 13)), "a new run counts its steps from the start"
    assert again[1][0] < whole[1][0] - 0.3, "but begins with what was learnt"


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "other-shape": ["model.ffn_hidden_size is 96", "the checkpoint has 64"],
        "other-batch": ["schedule", "8 steps", "batch_tokens"],
        "too-early": ["parallel.from_tokens=4096", "another parallel="],
        "replace": ["resume=none", "another name="],
        **{name: ["step 1", "not applied", "nothing has been saved yet", "init_from"] for name in NOT_FINITE},
        "other-layout": ["dp=4", "2 processes"],
        "vocabulary": ["model.vocab_size=512", "560"],
    }.items(),
)
def test_refused(name: str, words: list[str], runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    message = results[name].get("error", "it ran")
    assert all(word in message for word in words), message
    assert listing.newest(root / name / "checkpoints") is None


def test_batch_and_length_change_while_running(runs: tuple[Path, dict[str, Any]]) -> None:
    """On one layout, on another, and where a resumed run goes through the change on a third."""
    root, results = runs
    for name in ("ramp", "ramp-pp2", "ramp-cp2"):
        assert "error" not in results[name], results[name]["error"]
        lines = [line for line in metrics.read(root / name) if line["kind"] == "train"]
        sizes = [(line["batch_tokens"], line["sequence_length"]) for line in lines]
        assert sizes == [(256, 32)] * 2 + [(256, 64)] * 3 + [(512, 128)] * 3
        for number, values in curve(root / name).items():
            assert values == pytest.approx(curve(root / "ramp")[number], rel=1e-5)


def test_going_back_puts_later_checkpoints_aside(data: Path, runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "back"
    often = {"checkpoint.every_tokens": 512, "stop_after_steps": 6}
    back = {"resume": str(folder / "checkpoints" / "step-00000002"), "stop_after_steps": 2, "checkpoint.keep_last": 2}
    plan = [
        {**step("forth", folder, data), "overrides": often},
        {**step("back", folder, data), "overrides": back},
        step("on", folder, data, stop_after_steps=1),
    ]
    result = _run(plan, tmp_path)
    assert "error" not in result["on"], result["on"]
    assert result["back"]["checkpoint"].endswith("step-00000004-a0001")
    assert result["on"]["checkpoint"].endswith("step-00000005-a0002")
    assert sorted(path.name[:22] for path in (folder / "checkpoints").glob("replaced-*")) == [
        "replaced-step-00000004",
        "replaced-step-00000006",
    ]
    assert [attempt.info["from_step"] for attempt in metrics.attempts(folder)] == [0, 2, 4]
    whole = curve(runs[0] / "whole")
    assert curve(folder) == {number: whole[number] for number in range(1, 6)}


def test_profile_and_tensorboard(runs: tuple[Path, dict[str, Any]]) -> None:
    folder = runs[0] / "ramp"
    for rank in range(2):
        events = json.loads((folder / "profile" / f"rank-{rank}.json").read_text())["traceEvents"]
        assert any("scaled_dot_product" in event["name"] or "aten::mm" in event["name"] for event in events)
    written = b"".join(path.read_bytes() for path in (folder / "tensorboard").glob("events*"))
    assert b"train/loss" in written and b"validation/losses/a" in written


def test_a_run_folder_stands_alone(runs: tuple[Path, dict[str, Any]]) -> None:
    folder = runs[0] / "stopped"
    assert (folder / "tokenizer" / "tokenizer.json").exists() and (folder / "loss.png").stat().st_size > 10_000
    attempts = metrics.attempts(folder)
    assert [attempt.info["from_step"] for attempt in attempts] == [0, 2]
    assert attempts[0].info["packages"]["torch"] and attempts[0].info["world_size"] == 2
    lines = metrics.read(folder)
    trained = next(line for line in lines if line["kind"] == "train")
    assert {"loss", "grad_norm", "lr", "tokens_per_s", "tflops", "mfu", "memory_bytes", "data_s"} <= set(trained)
    validated = [line for line in lines if line["kind"] == "validation"]
    assert set(validated[-1]["losses"]) == {"a", "b"} and validated[-1]["step"] == 12


def test_the_last_checkpoint_is_there_before_the_last_validation(runs: tuple[Path, dict[str, Any]]) -> None:
    root, results = runs
    kinds = [line["kind"] for line in metrics.read(root / "whole")]
    assert kinds[-2:] == ["checkpoint", "validation"] and kinds.count("validation") == 1
    last = metrics.read(root / "whole")[-1]["loss"]
    assert publish.read_meta(listing.resolve(root / "whole")).validation_loss == last
    assert "held-out text is gone" in results["broken"]["error"]
    assert listing.resolve(root / "broken").name == "step-00000001", "what fails late costs no checkpoint"


def test_changed_data_are_refused(data: Path, runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """And other weights of the mixture on resume become a decision that keeps what was drawn."""
    root, _ = runs
    other = tmp_path / "packed"
    shutil.copytree(data, other)
    (other / "b.jsonl").write_text((data / "b.jsonl").read_text().replace("word1 ", "word2 "))
    source = config.Source(input=str(other / "b.jsonl"))
    settings = config.Tokenizer(kind="bpe", path=str(other / "tokenizer"), vocab_size=560)
    pack.pack(config.Data(folder=str(other), sources={"b": source}, workers=1), "b", settings, overwrite=True)
    alone = {"resume": str(root / "half"), "only": "a"}
    plan = [
        {**step("before", tmp_path / "added", data), "overrides": alone | {"resume": "auto", "stop_after_steps": 3}},
        step("added", tmp_path / "added", data),
        step("other-seed", tmp_path / "added", data, data__seed=7),
        step("changed", tmp_path / "changed", other, resume=str(root / "half")),
        step("reweighted", root / "reweighted", data, resume=str(root / "reweighted"), weights=[1.0, 3.0]),
    ]
    result = _run(plan, tmp_path)
    assert "fingerprint" in result["changed"]["error"] and "init_from=" in result["changed"]["error"]
    assert "data.seed=1234" in result["other-seed"]["error"]
    assert "error" not in result["added"], result["added"]
    added = json.loads((tmp_path / "added" / "decisions.jsonl").read_text())
    assert added == {"decision": "weights", "from_tokens": 768, "weights": {"a": 2.0, "b": 1.0}}
    assert "error" not in result["reweighted"], result["reweighted"]
    decision = json.loads((root / "reweighted" / "decisions.jsonl").read_text())
    assert decision == {"decision": "weights", "from_tokens": 2048, "weights": {"a": 1.0, "b": 3.0}}
    assert {k: v for k, v in curve(root / "reweighted").items() if k <= 8} == {
        k: v for k, v in curve(root / "whole").items() if k <= 8
    }
    assert curve(root / "reweighted")[12] != curve(root / "whole")[12]
