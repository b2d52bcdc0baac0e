"""Saving on one layout and loading on another; what a kill, a full disk or a cut-off file may do, and may not."""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from llama31 import config
from llama31.checkpoint import checksum, listing, manifest, publish, shards
from llama31.checkpoint import dcp as checkpoint_dcp
from llama31.checkpoint.shards import Block, Shard
from llama31.runs import attempts
from tests.checkpoint.ranks import two_ranks
from tests.conftest import ROOT
from tests.processes import LIMIT_S

pytestmark = pytest.mark.torch

MODEL = config.Model(name="small", layers=1, hidden_size=8, ffn_hidden_size=16, heads=2, kv_heads=1, vocab_size=32)
META = publish.Meta(model=vars(MODEL), step=100, tokens=1234, run="test", data_fingerprint="abc", decisions=[{"a": 1}])


def whole(name: str, tensor: torch.Tensor) -> Shard:
    return Shard(name, tuple(tensor.shape), [Block((0,) * tensor.dim(), tensor)])


def cut(name: str, tensor: torch.Tensor, rows: list[slice], columns: slice = slice(None)) -> Shard:
    """The blocks of a rank that holds some rows (and columns) of `tensor`, filled with zeros."""
    blocks = [
        Block((row.start, columns.start or 0), torch.zeros_like(tensor[row, columns]).t().contiguous().t())
        for row in rows
    ]
    return Shard(name, tuple(tensor.shape), blocks)


def save_step(folder: Path, step: int, tensor: torch.Tensor) -> Path:
    return publish.save(folder, replace(META, step=step), [whole("w", tensor)], [whole("fp32.w", tensor.float())])


def test_any_rectangles_load_from_any_others(tmp_path: Path) -> None:
    matrix, vector = torch.randn(16, 6), torch.randn(5)
    halves = [Block((0, 0), matrix[:8]), Block((8, 0), matrix[8:].clone, (8, 6), torch.float32)]
    shards.save([Shard("m", (16, 6), halves), whole("v", vector)], tmp_path)
    assert shards.names(tmp_path) == {"m": ((16, 6), torch.float32), "v": ((5,), torch.float32)}
    assert torch.equal(shards.read(tmp_path, "m"), matrix)
    reader = shards.Reader(tmp_path)
    assert torch.equal(reader.read("m", 2, 4), matrix[2:6])  # inside one block
    assert torch.equal(reader.read("m", 6, 4), matrix[6:10])  # across two
    target = cut("m", matrix, [slice(1, 3), slice(6, 11)], slice(2, 5))
    assert not target.blocks[0].resolve().is_contiguous()
    shards.load([target], tmp_path)
    assert torch.equal(target.blocks[0].resolve(), matrix[1:3, 2:5])
    assert torch.equal(target.blocks[1].resolve(), matrix[6:11, 2:5])


def test_a_generator_gets_each_shard_filled_before_the_next(tmp_path: Path) -> None:
    tensors = {name: torch.randn(3) for name in "abc"}
    shards.save([whole(name, tensor) for name, tensor in tensors.items()], tmp_path)
    seen = {}

    def one_buffer() -> Iterator[Shard]:
        for name in tensors:
            buffer = torch.zeros(3)
            yield whole(name, buffer)
            seen[name] = buffer

    shards.load(one_buffer(), tmp_path)
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w is given twice"):
        shards.save([whole("w", torch.zeros(2)), whole("w", torch.zeros(2))], tmp_path)


def test_a_parameter_of_another_dtype_is_converted(tmp_path: Path) -> None:
    tensor = torch.randn(7, 3)
    shards.save([whole("w", tensor)], tmp_path)
    parameter = torch.nn.Parameter(torch.zeros(7, 3, dtype=torch.bfloat16))
    shards.load([whole("w", parameter)], tmp_path)
    assert torch.equal(parameter.detach(), tensor.bfloat16())


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    storage = torch.randn(1000, 1000)
    shards.save([whole("w", storage[500:502]), whole("t", storage[:3, :2].t()), whole("none", storage[:0])], tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 100_000
    assert torch.equal(shards.read(tmp_path, "w"), storage[500:502])
    assert torch.equal(shards.read(tmp_path, "t"), storage[:3, :2].t())
    assert shards.read(tmp_path, "none").shape == (0, 1000)


@pytest.mark.parametrize("name", ["__0_0.distcp", "001/__300_0.distcp"])
def test_other_tools_of_torch_read_the_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of many ranks lie in folders of their own."""
    assert shards.file_name(300, 256 + 1) == "001/__300_0.distcp" and shards.file_name(0, 256) == "__0_0.distcp"
    monkeypatch.setattr(shards, "file_name", lambda rank, size: name)
    tensor = torch.randn(4, 3).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards.save([Shard("w", (4, 3), [Block((0, 0), tensor[:1]), Block((1, 0), tensor[1:])])], tmp_path)
    assert (tmp_path / name).is_file() and torch.equal(shards.read(tmp_path, "w"), tensor)
    state = {"w": torch.zeros(4, 3, dtype=torch.bfloat16)}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(state, checkpoint_id=tmp_path)
    assert torch.equal(state["w"], tensor)


def test_each_file_is_brought_to_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def noted(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        real(number)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", noted)
    path = save_step(tmp_path, 1, torch.ones(2))
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    drawn = [Path(name) for name in synced if not name.endswith(path.name) and not name.endswith(tmp_path.name)]
    hidden = {part.parts[len(tmp_path.parts)] for part in drawn}
    assert len(hidden) == 1, "all is written beside the place that it takes at the end"
    within = [file.relative_to(tmp_path / next(iter(hidden))) for file in drawn]
    counts = {file: sum(_is(one, file) for one in within) for file in files}
    assert set(counts.values()) == {1}, counts


def _is(synced: Path, file: Path) -> bool:
    """Whether it is the file, or what had taken its name by the end: `.NAME.draft`, `.metadata.tmp`."""
    return synced.parent == file.parent and synced.name.strip(".").startswith(file.name.strip("."))


def test_of_very_many_blocks_the_table_for_other_tools_is_made_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint_dcp, "MOST_BLOCKS", 0)
    with caplog.at_level("INFO"):
        path = save_step(tmp_path, 1, torch.ones(2))
    assert "python -m llama31.checkpoint.dcp FOLDER" in caplog.text
    assert not list(path.rglob(".metadata")) and publish.verify(path) == []
    assert torch.equal(shards.read(path / "weights", "w"), torch.ones(2))
    monkeypatch.setattr(sys, "argv", ["dcp", str(path / "weights")])
    runpy.run_module("llama31.checkpoint.dcp", run_name="__main__")
    state = {"w": torch.zeros(2)}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(state, checkpoint_id=path / "weights")
    assert torch.equal(state["w"], torch.ones(2)) and publish.verify(path) == [] and manifest.lacking(path) is None
    monkeypatch.setattr(sys, "argv", ["dcp", str(path)])
    with pytest.raises(SystemExit, match="give the weights/ or optimizer/ folder"):
        runpy.run_module("llama31.checkpoint.dcp", run_name="__main__")


def test_files_are_counted_where_none_is_asked_its_size(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1, torch.ones(2))
    assert manifest.lacking(path) is None
    data_of(path).unlink()
    assert manifest.glance(path) is None and publish.read_meta(path).step == 1
    assert manifest.lacking(path) == "weights holds 2 of 3 files"
    assert manifest.problem(path) == "weights/__0_0.distcp is missing"
    with pytest.raises(ValueError, match="__0_0.distcp is missing; delete this checkpoint"):
        shards.read(path / "weights", "w")


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    shards.save([whole("w", torch.zeros(4, 3))], tmp_path)
    with pytest.raises(ValueError, match=r"w has shape \[4, 3\], the model needs \[4, 5\]; x \[2\] is missing.*model="):
        shards.load([whole("w", torch.zeros(4, 5)), whole("x", torch.zeros(2))], tmp_path)
    with pytest.raises(ValueError, match="x is missing"):
        shards.read(tmp_path, "x")
    with pytest.raises(ValueError, match="no saved tensors"):
        shards.read(tmp_path / "nowhere", "x")


def test_a_tensor_that_no_rank_completes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w: blocks hold 6 of 12 elements"):
        publish.save(tmp_path, META, [Shard("w", (4, 3), [Block((0, 0), torch.zeros(2, 3))])])
    assert list(tmp_path.iterdir()) == []


def test_everything_comes_back(tmp_path: Path) -> None:
    tensor = torch.randn(8, 4)
    torch.manual_seed(7)
    path = publish.save(tmp_path, META, [whole("w", tensor.bfloat16())], [whole("exp_avg.w", tensor)])
    drawn = torch.rand(3)
    assert path == tmp_path / "step-00000100" and publish.read_meta(path) == META
    assert publish.read_meta(path).shape() == MODEL
    weights, moments = torch.zeros(8, 4, dtype=torch.bfloat16), torch.zeros(8, 4)
    publish.load_weights(path, [whole("w", weights)])
    publish.load_optimizer(path, [whole("exp_avg.w", moments)])
    publish.load_random(path)
    assert torch.equal(weights, tensor.bfloat16()) and torch.equal(moments, tensor)
    assert torch.equal(torch.rand(3), drawn)


def test_weights_alone_do_not_resume(tmp_path: Path) -> None:
    path = publish.save(tmp_path, META, [whole("w", torch.zeros(2))])
    with pytest.raises(ValueError, match="no optimizer.*init_from="):
        publish.load_optimizer(path, [])


def test_a_model_of_another_shape_is_named_key_by_key() -> None:
    publish.check_model(META, replace(MODEL, name="other", init_std=0.5))
    publish.check_model(META, replace(MODEL, norm_eps=9.999999747378752e-06))  # 1e-5 in FP32
    with pytest.raises(ValueError, match="norm_eps is 1e-06, .* 1e-05[.] Run with model.norm_eps=1e-05$"):
        publish.check_model(META, replace(MODEL, norm_eps=1e-6))
    with pytest.raises(
        ValueError,
        match=r"model.layers is 2, the checkpoint has 1; model.kv_heads is 2.*Run with model.layers=1 model.kv_heads=",
    ):
        publish.check_model(META, replace(MODEL, layers=2, kv_heads=2))


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "version"])
def test_newest_passes_over_what_is_incomplete(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_step(tmp_path / "checkpoints", 100, torch.zeros(2))
    broken = save_step(tmp_path / "checkpoints", 200, torch.ones(2))
    data = next((broken / "weights").glob("*.distcp"))
    if damage == "truncate":
        os.truncate(data, 100)
    elif damage == "remove":
        data.unlink()
    elif damage == "manifest":
        (broken / "checkpoint.json").write_text('{"format_ver')
    else:
        manifest = json.loads((broken / "checkpoint.json").read_text())
        (broken / "checkpoint.json").write_text(json.dumps(manifest | {"format_version": 99}))
    assert listing.resolve(tmp_path).name == "step-00000100"
    assert "ignoring checkpoint" in caplog.text and "step-00000200" in caplog.text
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        listing.resolve(broken)


def test_resolve_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        listing.resolve(tmp_path / "none")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no complete checkpoint, but metrics.jsonl"):
        listing.resolve(tmp_path)


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    save_step(tmp_path, 1, torch.zeros(2))
    path = save_step(tmp_path, 1, torch.ones(2))
    assert torch.equal(shards.read(path / "weights", "w"), torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1, torch.ones(2))
    path.rename(tmp_path / ".old-step-00000001")
    assert torch.equal(shards.read(listing.resolve(tmp_path) / "weights", "w"), torch.ones(2))
    save_step(tmp_path, 2, torch.zeros(2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


KILLED = """
import sys, time
from pathlib import Path
import torch
from llama31.checkpoint import listing, publish as checkpoint
from llama31.checkpoint.shards import Block, Shard

def stop():
    Path(sys.argv[1], "signal").touch()
    time.sleep(9999)

first = Shard("a", (1000,), [Block((0,), torch.ones(1000))])
slow = Shard("b", (4,), [Block((0,), stop, (4,), torch.float32)])
checkpoint.save(Path(sys.argv[1], "checkpoints"), checkpoint.Meta(model={}, step=2), [first, slow])
"""


def test_sigkill_in_a_save_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_step(folder, 1, torch.ones(2))
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    try:
        end = time.monotonic() + LIMIT_S
        while not (tmp_path / "signal").exists():
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(list(folder.glob(".tmp-step-00000002-*/weights/*.distcp"))) == 1  # it was in the middle
    assert listing.newest(folder) == folder / "step-00000001"
    save_step(folder, 3, torch.zeros(2))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    save_step(tmp_path, 1, torch.ones(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a real error of write(2)
    try:
        with pytest.raises(publish.CheckpointError, match=r"step-00000002: not written.*File too large.*free space"):
            save_step(tmp_path, 2, torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert torch.equal(shards.read(listing.resolve(tmp_path) / "weights", "w"), torch.ones(2))


def test_a_disk_too_small_is_told_before_writing(tmp_path: Path) -> None:
    huge = Shard("w", (10**14,), [Block((0,), torch.zeros(1).expand(10**14))])
    with pytest.raises(publish.CheckpointError, match=r"No space left.*400000.00 GB needed"):
        publish.save(tmp_path, META, [huge])
    assert list(tmp_path.iterdir()) == []


RANKS = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from llama31.checkpoint import listing, publish as checkpoint, shards
from llama31.checkpoint.shards import Block, Shard

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
matrix = torch.arange(48.0).view(8, 6)
meta = checkpoint.Meta(model={}, step=1)

# Gate and up rows: each rank holds two blocks; the norm is a replica; the last tensor lives on rank 1 alone.
def of(rank, source):
    rows = [slice(2 * rank, 2 * rank + 2), slice(4 + 2 * rank, 6 + 2 * rank)]
    return Shard("fc1", (8, 6), [Block((r.start, 0), source[r].clone()) for r in rows])

weights = [of(rank, matrix), Shard("norm", (6,), [Block((0,), torch.ones(6))])]
if rank == 1:
    weights.append(Shard("head", (3,), [Block((0,), torch.full((3,), 7.0))]))
path = checkpoint.save(folder, meta, weights)
assert torch.equal(shards.read(path / "weights", "fc1"), matrix)
assert sorted(shards.names(path / "weights")) == ["fc1", "head", "norm"]

columns = torch.zeros(8, 3)
checkpoint.load_weights(path, [Shard("fc1", (8, 6), [Block((0, 3 * rank), columns)])])
assert torch.equal(columns, matrix[:, 3 * rank : 3 * rank + 3])

def fail():
    raise OSError(28, "No space left on device")

for action, kind in (
    (lambda: checkpoint.save(folder, checkpoint.Meta(model={}, step=2), [
        Shard(f"t{rank}", (3,), [Block((0,), fail if rank else torch.ones(3), (3,), torch.float32)])]),
     checkpoint.CheckpointError),
    (lambda: checkpoint.load_weights(path, [Shard("norm" if rank else "missing", (6,), [Block((0,), torch.ones(6))])]),
     ValueError),
):
    try:
        action()
    except kind as error:
        print(f"rank {rank}: {kind.__name__}")
dist.barrier()
assert listing.newest(folder) == path
print([p.name for p in folder.iterdir()] if rank == 0 else "")
dist.destroy_process_group()
"""


def test_two_ranks_save_load_and_fail_together(tmp_path: Path) -> None:
    record = two_ranks(RANKS, tmp_path / "saved")
    for number in (0, 1):
        assert f"rank {number}: CheckpointError" in record and f"rank {number}: ValueError" in record
    assert "['step-00000001']" in record


@pytest.mark.parametrize("manifest", ["[]", '{"format_version": 1}', '{"files": {}}', "7"])
def test_a_manifest_that_is_none_is_passed_over(manifest: str, tmp_path: Path) -> None:
    for step in (1, 2):
        publish.save(tmp_path, publish.Meta(model={}, step=step), [])
    (tmp_path / "step-00000002" / "checkpoint.json").write_text(manifest)
    assert listing.newest(tmp_path) == tmp_path / "step-00000001"


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="is no folder: give a checkpoint"):
        listing.resolve(tmp_path / "x")


# --- every bit is what was written -----------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def data_of(path: Path) -> Path:
    return next((path / "weights").glob("*.distcp"))


def test_what_was_written_verifies_and_what_was_changed_is_named(tmp_path: Path) -> None:
    path = save_step(tmp_path, 100, torch.randn(1000, 7))
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert json.loads((path / "checkpoint.json").read_text())["format_version"] == 3
    files = manifest.read(path).files
    assert set(files) == names - {"checkpoint.json"}
    assert publish.verify(path) == []
    for name in sorted(files):
        flip(path / name, -1)
        (problem,) = publish.verify(path)
        assert problem.startswith(f"{name} has checksum ") and str(files[name].checksum) in problem
        with pytest.raises(ValueError, match="is damaged.*Use an older one"):
            publish.refuse_damaged(path)
        flip(path / name, -1)
    assert listing.newest(tmp_path) == path, "sizes alone do not show it"
    os.truncate(path / "random.bin", 10)
    data_of(path).unlink()
    result = publish.verify(path)
    assert len(result) == 2 and result[0].startswith("random.bin has 10 of ") and result[1].endswith("is missing")


def test_ranks_share_out_the_checking_by_size() -> None:
    assert manifest.shared_out({"a": 5, "b": 9, "c": 4, "d": 1}, 2) == [["b", "d"], ["a", "c"]]
    assert manifest.shared_out({}, 2) == [[], []]


def test_a_manifest_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = save_step(tmp_path, 100, torch.zeros(2))
    text = (path / "checkpoint.json").read_text()
    (path / "checkpoint.json").write_text(text.replace('"tokens": 1234', '"tokens": 1235'))
    with pytest.raises(ValueError, match="not a complete checkpoint: checkpoint.json has checksum"):
        publish.read_meta(path)
    assert listing.newest(tmp_path) is None


def test_keys_that_json_turns_into_text_do_no_harm(tmp_path: Path) -> None:
    path = publish.save(tmp_path, replace(META, extra={10: "a", 2: ("b", None)}), [whole("w", torch.zeros(2))])
    assert publish.read_meta(path).extra == {"10": "a", "2": ["b", None]}


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_are_still_read(version: int, tmp_path: Path) -> None:
    """All files in checkpoint.json, DCP's table of names alone."""
    path = save_step(tmp_path, 100, torch.ones(2))
    whole_manifest = manifest.read(path)
    meta = {key: value for key, value in whole_manifest.meta.items() if key not in ("attempt", "validation_loss")}
    for name in ("files.json", "weights/blocks.index", "optimizer/blocks.index"):
        (path / name).unlink()
        del whole_manifest.files[name]
    files: dict[str, object] = {name: entry.size for name, entry in whole_manifest.files.items()}
    if version == 2:
        files = {n: {"bytes": entry.size, "xxh3_128": entry.checksum} for n, entry in whole_manifest.files.items()}
    content = {"format_version": version, "meta": meta, "files": files}
    if version == 2:
        content["xxh3_128"] = checksum.of_bytes(json.dumps(content, sort_keys=True).encode()).checksum
    (path / "checkpoint.json").write_text(json.dumps(content))
    assert publish.read_meta(path) == META and listing.newest_intact(tmp_path) == path
    assert torch.equal(shards.read(path / "weights", "w"), torch.ones(2)) and manifest.lacking(path) is None
    manifest.change(path, {"validation_loss": 1.0})
    assert publish.read_meta(path).validation_loss == 1.0 and publish.verify(path) == []
    os.truncate(data_of(path), 3)
    assert "has 3 of" in publish.verify(path)[0]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_the_newest_intact_one_is_used(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, broken = (save_step(tmp_path, step, torch.randn(50)) for step in (100, 200))
    victim = data_of(broken)
    said = {"flip": "has checksum", "truncate": "has 100 of", "remove": "is missing", "manifest": "unreadable"}[damage]
    if damage == "flip":
        flip(victim, 300)
    elif damage == "truncate":
        os.truncate(victim, 100)
    elif damage == "remove":
        victim.unlink()
    else:
        victim = broken / "checkpoint.json"
        victim.write_bytes(b"\xff\xfe{")
    assert listing.newest_intact(tmp_path) == older
    (warning,) = [r.getMessage() for r in caplog.records if "ignoring checkpoint" in r.getMessage()]
    assert str(broken) in warning and victim.name in warning and said in warning
    flip(data_of(older), 300)
    assert listing.newest_intact(tmp_path) is None


# --- two attempts of one run -----------------------------------------------------------------------------------------


def save_as(folder: Path, step: int, attempt: int, value: float = 0.0) -> Path:
    meta = replace(META, step=step, attempt=attempt)
    return publish.save(folder, meta, [whole("w", torch.full((2,), value))])


def begin(run: Path, from_step: int) -> int:
    number = attempts.claim(run)
    (attempts.path_of(run, number) / "attempt.json").write_text(json.dumps({"from_step": from_step}))
    return number


def test_names_carry_the_attempt(tmp_path: Path) -> None:
    assert publish.name_of(100) == "step-00000100" and publish.name_of(100, 3) == "step-00000100-a0003"
    assert publish.numbers_of("step-00000100-a0003") == (100, 3) and publish.numbers_of("step-12") is None
    assert save_as(tmp_path, 7, 12).name == "step-00000007-a0012"
    assert publish.read_meta(tmp_path / "step-00000007-a0012").attempt == 12


def test_what_an_older_attempt_saved_beyond_the_start_of_a_newer_one_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    begin(tmp_path, 0)
    for step in (10, 20):
        save_as(folder, step, 0)
    assert listing.newest(folder) == folder / "step-00000020"
    begin(tmp_path, 10)  # 20 was torn, or not yet there
    assert listing.newest(folder) == folder / "step-00000010" == listing.resolve(tmp_path)
    assert listing.newest_intact(folder) == folder / "step-00000010"
    save_as(folder, 15, 1)
    save_as(folder, 30, 0)  # the cut-off attempt lives on
    assert listing.newest(folder) == folder / "step-00000015-a0001"
    begin(tmp_path, 15)
    save_as(folder, 20, 2, 2.0)
    assert [path.name for path in listing.candidates(folder)] == [
        "step-00000020-a0002",
        "step-00000015-a0001",
        "step-00000010",
    ]
    assert listing.newest(folder, {}) == folder / "step-00000030", "without knowing of the attempts"
    assert listing.newest(folder, {5: 12}) == folder / "step-00000010"


def test_a_step_without_attempt_means_the_newest_one_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for attempt in (1, 3):
        save_as(folder, 100, attempt)
    assert listing.resolve(folder / "step-00000100").name == "step-00000100-a0003"
    os.truncate(data_of(folder / "step-00000100-a0003"), 1)
    assert listing.resolve(folder / "step-00000100").name == "step-00000100-a0001"
    with pytest.raises(ValueError, match="does not exist"):
        listing.resolve(folder / "step-00000200")
    save_as(folder, 100, 0)
    assert listing.resolve(folder / "step-00000100").name == "step-00000100"


def test_a_superseded_attempt_publishes_deletes_and_loads_nothing(tmp_path: Path) -> None:
    older, folder = begin(tmp_path, 0), tmp_path / "checkpoints"

    def fence() -> int | None:
        return attempts.newer(tmp_path, older)

    tensor = [whole("w", torch.ones(2))]
    first = publish.save(folder, replace(META, step=1), tensor, fence=fence)

    def cut_off() -> torch.Tensor:
        """The newer attempt begins while the older one writes."""
        begin(tmp_path, 1)
        return torch.ones(2)

    slow = [Shard("w", (2,), [Block((0,), cut_off, (2,), torch.float32)])]
    with pytest.raises(publish.Superseded, match="attempt 1 of this run has begun"):
        publish.save(folder, replace(META, step=2), slow, fence=fence)
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    left = folder / ".tmp-step-00000009-0123abcd"
    left.mkdir()
    with pytest.raises(publish.Superseded):
        publish.save(folder, replace(META, step=3), tensor, fence=fence)
    with pytest.raises(publish.Superseded):
        listing.newest_intact(folder, fence=fence)
    with pytest.raises(publish.Superseded):
        listing.set_aside_after(folder, 0, fence=fence)
    assert left.exists() and first.exists()


def test_leftovers_of_newer_attempts_stay(tmp_path: Path) -> None:
    names = (".tmp-step-00000001-01234567", ".tmp-step-00000001-a0002-01234567", ".tmp-step-00000001-a0003-01234567")
    for name in (*names, ".tmp-other-01234567"):
        (tmp_path / name).mkdir()
    save_as(tmp_path, 5, 2)
    assert sorted(path.name for path in tmp_path.glob(".tmp-*")) == [".tmp-other-01234567", names[2]]


def test_an_attempt_whose_files_were_swept_away_knows_why(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    folder = tmp_path / "checkpoints"

    def sweep() -> torch.Tensor:
        save_as(folder, 1, begin(tmp_path, 0))
        return torch.ones(2)

    slow = [Shard("w", (2,), [Block((0,), sweep, (2,), torch.float32)])]
    with pytest.raises(publish.Superseded):
        publish.save(folder, replace(META, step=2), slow, fence=lambda: attempts.newer(tmp_path, 0))
    assert [path.name for path in folder.iterdir()] == ["step-00000001-a0001"]
