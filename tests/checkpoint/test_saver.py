"""Saving while training goes on: what is saved is the moment of the call, and failures are told to every rank."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.checkpoint.saver import Saver
from llama31.checkpoint.shards import Block, Shard
from llama31.parallel.replica import ALONE
from llama31.train import loop
from tests.checkpoint.ranks import two_ranks
from tests.processes import LIMIT_S

pytestmark = pytest.mark.torch

META = publish.Meta(model={}, step=1, tokens=10)


def whole(name: str, tensor: torch.Tensor) -> Shard:
    return Shard(name, tuple(tensor.shape), [Block((0,) * tensor.dim(), tensor)])


def gated(gate: threading.Event) -> Shard:
    """A tensor that can be copied only when the gate opens."""

    def made() -> torch.Tensor:
        assert gate.wait(LIMIT_S)
        return torch.ones(2)

    return Shard("gated", (2,), [Block((0,), made, (2,), torch.float32)])


class Slow:
    """A fence that holds the publishing back: everything is written, nothing is in place."""

    def __init__(self) -> None:
        self.open, self.asked = threading.Event(), 0

    def __call__(self) -> None:
        self.asked += 1
        assert self.asked == 1 or self.open.wait(LIMIT_S)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_saved_is_the_moment_of_the_call(asynchronous: bool, tmp_path: Path) -> None:
    weight, moment = torch.randn(100, 3).bfloat16(), torch.randn(300)
    with Saver(tmp_path, asynchronous=asynchronous) as saver:
        for step in (1, 2):
            torch.manual_seed(step)
            before, half = weight.clone(), Block((0,), moment[:100])
            parts = Shard("exp_avg.w", (300,), [half, Block((100,), moment[100:])])
            stall_s = saver.save(replace(META, step=step), [whole("w", weight)], [parts])
            drawn = torch.rand(2)  # moves the random state on
            kept = moment.clone()
            weight.zero_().add_(step)
            moment.add_(1)
            (done,) = saver.wait()
            assert done.path == saver.newest == tmp_path / f"step-0000000{step}" and done.step == step
            assert done.stall_s >= stall_s > 0 and done.write_s > 0
            assert torch.equal(shards.read(done.path / "weights", "w"), before)
            assert torch.equal(shards.read(done.path / "optimizer", "exp_avg.w"), kept)
            publish.load_random(done.path)
            assert torch.equal(torch.rand(2), drawn)
            assert saver.poll() == [] and publish.verify(done.path) == []


def test_training_goes_on_while_it_writes(tmp_path: Path) -> None:
    slow = Slow()
    saver = Saver(tmp_path, fence=slow)
    tensor = torch.ones(4)
    saver.save(META, [whole("w", tensor)])
    tensor.zero_()
    assert saver.poll() == [] and saver.newest is None and saver.staged() == 0.0
    assert listing.newest(tmp_path) is None
    slow.open.set()
    (done,) = saver.close()
    assert torch.equal(shards.read(done.path / "weights", "w"), torch.ones(4))


def test_the_copy_may_overlap_until_the_update(tmp_path: Path) -> None:
    gate = threading.Event()
    saver = Saver(tmp_path)
    tensor = torch.ones(4)
    saver.save(META, [gated(gate), whole("w", tensor)], overlap=True)
    timer = threading.Timer(0.2, gate.set)
    timer.start()
    assert saver.staged() > 0
    tensor.zero_()  # the update
    (done,) = saver.wait()
    assert torch.equal(shards.read(done.path / "weights", "w"), torch.ones(4))
    assert done.stall_s > 0.1
    timer.join()


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    slow = Slow()
    saver = Saver(tmp_path, fence=slow)
    saver.save(META, [whole("w", torch.ones(4))])
    timer = threading.Timer(0.2, slow.open.set)
    timer.start()
    assert saver.save(replace(META, step=2), [whole("w", torch.zeros(4))]) > 0.1
    assert [done.step for done in saver.wait()] == [1, 2]
    timer.join()


def test_host_memory_is_allocated_once_and_shared_tensors_are_copied_once(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    weight, moment = torch.randn(1024), torch.randn(1024)
    parts = [whole("w", weight)], [whole("fp32.w", weight), whole("exp_avg.w", moment)]
    saver.reserve(*parts)
    reserved = saver._host.memory.data_ptr()
    for step in (1, 2):
        saver.save(replace(META, step=step), *parts)
        (done,) = saver.wait()
        assert saver._host.memory.data_ptr() == reserved
        for name, tensor in (("fp32.w", weight), ("exp_avg.w", moment)):
            assert torch.equal(shards.read(done.path / "optimizer", name), tensor)
    assert saver._host.memory.numel() == 2 * weight.nbytes, "an FP32 weight is its own master"


def test_deferred_blocks_are_made_at_the_call(tmp_path: Path) -> None:
    """One after another in the same memory, perhaps: none may pass for its predecessor."""
    made = [Shard(f"t{i}", (4,), [Block((0,), lambda i=i: torch.full((4,), i), (4,), torch.int64)]) for i in range(9)]
    with Saver(tmp_path) as saver:
        saver.save(META, made)
        (done,) = saver.wait()
    assert [shards.read(done.path / "weights", f"t{i}")[0].item() for i in range(9)] == list(range(9))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_told_later_and_training_may_go_on(asynchronous: bool, tmp_path: Path) -> None:
    saver = Saver(tmp_path, asynchronous=asynchronous)
    saver.save(META, [whole("w", torch.ones(2))])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a real error of write(2)
    try:
        saver.save(replace(META, step=2), [whole("w", torch.zeros(100_000))])
        with pytest.raises(publish.CheckpointError, match=r"step-00000002: not written.*File too large.*free space"):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert [done.step for done in saver.poll()] == [1]
    saver.save(replace(META, step=3), [whole("w", torch.zeros(100_000))])
    assert [done.step for done in saver.close()] == [3]


def test_a_full_file_system_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A real one of two megabytes."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)],
        check=False, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    try:
        saver = Saver(tmp_path)
        saver.save(META, [whole("w", torch.ones(300_000))])
        saver.wait()
        saver.save(replace(META, step=2), [whole("w", torch.zeros(300_000))])
        with pytest.raises(publish.CheckpointError, match=r"step-00000002: not written.*GB free.*free space"):
            saver.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert listing.newest_intact(tmp_path) == tmp_path / "step-00000001"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=LIMIT_S)


def test_a_failure_in_the_copy_is_a_failure_of_the_save(tmp_path: Path) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("device lost")

    saver = Saver(tmp_path, tolerated=2)
    saver.save(META, [Shard("w", (2,), [Block((0,), broken, (2,), torch.float32)])])
    # Not a RunError, which would say that another attempt fails likewise, and not tolerated as a full disk is.
    with pytest.raises(RuntimeError, match="^device lost$"):
        saver.save(replace(META, step=2), [whole("w", torch.ones(2))])
    with pytest.raises(RuntimeError, match="^device lost$"):
        saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_failures_are_tolerated_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = Saver(tmp_path, fence=lambda: 5, tolerated=1)
    for step in (1, 2):
        saver.save(replace(META, step=step), [whole("w", torch.ones(2))])
    with pytest.raises(publish.Superseded, match="attempt 5"):  # two in a row are known by now
        saver.save(replace(META, step=3), [whole("w", torch.ones(2))])
    assert [record.message.count("attempt 5") for record in caplog.records] == [1, 1]
    assert saver.poll() == []
    with pytest.raises(publish.Superseded):
        saver.wait()
    assert saver.wait() == []


def test_what_is_not_to_be_kept_goes_in_the_background(tmp_path: Path) -> None:
    with Saver(tmp_path, keep=config.Checkpoint(keep_last=1, keep_best=1)) as saver:
        for step, loss in enumerate([2.0, 1.0, 3.0, 4.0], start=1):
            saver.save(replace(META, step=step, validation_loss=loss), [whole("w", torch.ones(2))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]


def test_the_error_that_ends_a_run_is_not_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), Saver(tmp_path, fence=lambda: 5) as saver:
        saver.save(META, [whole("w", torch.ones(2))])
        raise ZeroDivisionError
    assert "the last save failed as well" in caplog.text


def test_a_run_ends_with_its_own_error_where_the_last_save_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path, fence=lambda: 5)
    watch = SimpleNamespace(begin=lambda parts, record: None)
    gates = SimpleNamespace(begin=lambda forward, step: None)
    engine = SimpleNamespace(forward=None, settle=lambda: None)
    grid = SimpleNamespace(device=torch.device("cpu"))
    run = SimpleNamespace(folder=str(tmp_path), profile=config.Profile())
    state = SimpleNamespace(
        run=run, saver=saver, watch=watch, gates=gates, engine=engine, grid=grid, replica=ALONE, step=0,
        last_step=0, data=SimpleNamespace(prefetch=0, interrupted=None),
    )  # fmt: skip
    monkeypatch.setattr(loop, "_open_record", lambda state: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="Connection reset by peer"), loop.opened(state):  # type: ignore[arg-type]
        saver.save(META, [whole("w", torch.ones(2))])
        raise RuntimeError("Connection reset by peer")
    assert saver.wait() == []


RANKS = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from llama31.checkpoint import listing, publish as checkpoint, shards
from llama31.checkpoint.saver import Saver, background_group
from llama31.checkpoint.shards import Block, Shard

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
saver = Saver(folder, background_group(60))
matrix = torch.arange(48.0).view(8, 6)
mine = matrix[4 * rank : 4 * rank + 4].clone()

def fail():
    raise OSError(28, "No space left on device")

def of(step):
    parts = [Shard("w", (8, 6), [Block((4 * rank, 0), mine)])]
    if step == 2 and rank == 1:
        parts.append(Shard("x", (3,), [Block((0,), fail, (3,), torch.float32)]))
    return checkpoint.Meta(model={}, step=step), parts

told = []
for step in (1, 2, 3):
    saver.save(*of(step))
    mine.add_(100)  # training goes on, with collectives of its own
    dist.all_reduce(torch.ones(1000))
    try:
        told += saver.wait()
    except checkpoint.CheckpointError as error:
        assert step == 2 and "No space left" in str(error), error
        print(f"rank {rank}: step {step} failed")
    mine.sub_(100)
assert [done.step for done in told] == ([1, 3] if rank == 0 else []), told
assert saver.newest == folder / "step-00000003"
saver.close()
dist.barrier()
assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000003"]
for path in folder.iterdir():
    assert torch.equal(shards.read(path / "weights", "w"), matrix)
    assert len(list((path / "weights").glob("*.distcp"))) == 2

# The ranks share out the checking, and agree.
assert checkpoint.verify(folder / "step-00000003") == []
dist.barrier()
if rank == 0:
    victims = sorted((folder / "step-00000003" / "weights").glob("*.distcp"))
    victims[0].write_bytes(victims[0].read_bytes()[:-1] + b"x")
    victims[1].unlink()
dist.barrier()
found = checkpoint.verify(folder / "step-00000003")
assert len(found) == 2 and "has checksum" in found[0] and "is missing" in found[1], found
assert listing.newest_intact(folder) == folder / "step-00000001"
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_save_fail_and_verify_together(tmp_path: Path) -> None:
    record = two_ranks(RANKS, tmp_path / "saved")
    assert "rank 0: step 2 failed" in record and "rank 1: step 2 failed" in record
