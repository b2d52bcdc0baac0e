"""Averages are exact, whatever layout saved their parts; what does not go together is named; memory stays small."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.checkpoint.shards import Block, Shard
from llama31.command import entry
from llama31.command.validate import validate
from llama31.convert import average, checkpoints, hf
from llama31.engine.ema import Ema
from tests.conftest import Command
from tests.convert.test_convert import IDS, MODEL, assert_equal, read_hf, weights_of, write_hf

pytestmark = pytest.mark.torch

COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


def megatron_weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: checkpoints._stacked(MODEL, parts) for name, parts in checkpoints.table(MODEL).items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def cut(name: str, tensor: Tensor, tp: int) -> Shard:
    """Blocks as tensor-parallel ranks leave them."""
    axis = 1 if name.endswith(COLUMNS) else 0
    blocks, start = [], 0
    for part in tensor.tensor_split(tp, dim=axis):
        blocks.append(Block(tuple(start if dim == axis else 0 for dim in range(tensor.ndim)), part))
        start += part.shape[axis]
    return Shard(name, tuple(tensor.shape), blocks)


def save(run: Path, step: int, weights: dict[str, Tensor], tp: int = 1, **meta: Any) -> Path:
    """A checkpoint of 10 tokens per step, with masters and an online average that differ from the weights."""
    (run / "tokenizer").mkdir(parents=True, exist_ok=True)
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    record = {"fingerprint": "f", "folder": "tokenizer"}
    stated = {"model": asdict(MODEL), "run": run.name, "precision": "fp32", "tokenizer": record, "extra": dict(IDS)}
    optimizer = [
        cut(f"{prefix}.{name}", tensor.float() + shift, tp)
        for prefix, shift in (("fp32", 1.0), ("ema", 2.0), ("exp_avg", 3.0))
        for name, tensor in weights.items()
    ]
    content = publish.Meta(**(stated | {"step": step, "tokens": 10 * step} | meta))
    return publish.save(
        run / "checkpoints", content, [cut(name, tensor, tp) for name, tensor in weights.items()], optimizer
    )


def read(path: Path) -> dict[str, Tensor]:
    reader = shards.Reader(listing.resolve(path) / "weights")
    return {name: reader.read(name).clone() for name in reader.names()}


def expected(parts: Sequence[dict[str, Tensor]], weights: Sequence[float], dtype: torch.dtype) -> dict[str, Tensor]:
    """The formula, in FP64."""
    return {
        name: (sum(w * part[name].double() for w, part in zip(weights, parts)) / sum(weights)).to(dtype)  # type: ignore[union-attr]
        for name in parts[0]
    }


CASES = [
    ({}, [1.0, 1.0, 1.0]),
    ({"weights": [1.0, 2.5, 0.25]}, [1.0, 2.5, 0.25]),
    ({"decay": 0.7}, [0.7**2, 0.7, 1.0]),
]


@pytest.mark.parametrize(("keys", "weights"), CASES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_average_of_checkpoints_of_any_layout_is_exact(
    keys: dict[str, Any], weights: list[float], dtype: str, tmp_path: Path
) -> None:
    parts = [megatron_weights(seed) for seed in range(3)]
    paths = [save(tmp_path / f"run{tp}", 10 * tp, part, tp) for tp, part in zip((1, 2, 4), parts)]
    seen: list[tuple[int, int]] = []
    settings = config.Average([str(path) for path in paths], target=str(tmp_path / "out"), dtype=dtype, **keys)
    report = average.run(settings, lambda done, total: seen.append((done, total)))
    assert report.target == tmp_path / "out" / "checkpoints" / "step-00000040"
    assert sum(done for done, _ in seen) == seen[0][1] == report.written_bytes > 0
    result = read(tmp_path / "out")
    assert_equal(result, expected(parts, weights, checkpoints.DTYPES[dtype]))
    name, ulp = "output_layer.weight", {"fp32": 2.0**-24, "bf16": 2.0**-8}[dtype]
    for row, column in ((0, 0), (17, 5), (79, 31)):  # against exact summation
        exact = math.fsum(w * float(part[name][row, column]) for w, part in zip(weights, parts)) / math.fsum(weights)
        assert abs(float(result[name][row, column]) - exact) <= abs(exact) * ulp * 1.0001
    meta = publish.read_meta(report.target)
    assert (meta.step, meta.tokens, meta.run, meta.precision) == (40, 400, "out", dtype)
    record = meta.extra.pop("average")
    assert record["kind"] == ("weighted" if "weights" in keys else "exponential" if keys else "uniform")
    assert [entry["weight"] for entry in record["inputs"]] == [w / sum(weights) for w in weights]
    assert [(e["run"], e["step"], e["tokens"]) for e in record["inputs"]] == [
        ("run1", 10, 100),
        ("run2", 20, 200),
        ("run4", 40, 400),
    ]
    assert meta.extra == IDS and not (report.target / "optimizer").exists()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text() == "{}"


def test_the_average_of_equal_weights_is_those_weights(tmp_path: Path) -> None:
    part = megatron_weights(0, torch.bfloat16)
    paths = [save(tmp_path / str(i), 1, part, precision="bf16") for i in range(7)]
    average.run(config.Average([str(path) for path in paths], target=str(tmp_path / "out")))
    assert_equal(read(tmp_path / "out"), part)


def test_averaging_checkpoints_equals_averaging_their_exports(tmp_path: Path) -> None:
    """TP 2 and TP 4 blocks, exported and averaged in either order; the folder says what transformers needs."""
    runs = [tmp_path / "a", tmp_path / "b"]
    for number, run in enumerate(runs):
        save(run, 5 + number, megatron_weights(number), tp=2 + 2 * number)
        checkpoints.run(config.Convert("to_hf", str(run) + "-hf", str(run), dtype="fp32"))
    average.run(config.Average([str(run) for run in runs], target=str(tmp_path / "both"), weights=[1.0, 3.0]))
    checkpoints.run(config.Convert("to_hf", str(tmp_path / "exported"), str(tmp_path / "both"), dtype="fp32"))
    folders = [str(run) + "-hf" for run in runs]
    average.run(config.Average(folders, target=str(tmp_path / "both-hf"), weights=[1.0, 3.0], max_shard_bytes=10_000))
    assert_equal(read_hf(tmp_path / "both-hf"), read_hf(tmp_path / "exported"))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "both-hf" / name).read_text() == (tmp_path / "b-hf" / name).read_text()
    record = json.loads((tmp_path / "both-hf" / "average.json").read_text())
    assert [entry["weight"] for entry in record["inputs"]] == [0.25, 0.75]
    average.run(config.Average(folders, target=str(tmp_path / "bf16"), dtype="bf16"))
    stated = hf.read_json(tmp_path / "bf16" / "config.json")
    assert stated["torch_dtype"] == stated["dtype"] == "bfloat16"
    parts = [read_hf(Path(folder)) for folder in folders]
    assert_equal(read_hf(tmp_path / "bf16"), expected(parts, [1.0, 1.0], torch.bfloat16))


def test_the_newest_of_a_run(tmp_path: Path) -> None:
    run, parts = tmp_path / "run", [megatron_weights(seed) for seed in range(4)]
    for step, part in zip((1, 2, 3, 4), parts):
        save(run, step, part)
    (run / "checkpoints" / "step-00000004" / "random.bin").unlink()  # incomplete: passed over
    average.run(config.Average(run=str(run), last=2, target=str(tmp_path / "out")))
    assert_equal(read(tmp_path / "out"), expected(parts[1:3], [1.0, 1.0], torch.float32))
    average.run(config.Average(run=str(run), target=str(tmp_path / "all"), decay=0.5))
    assert_equal(read(tmp_path / "all"), expected(parts[:3], [0.25, 0.5, 1.0], torch.float32))
    with pytest.raises(ValueError, match=r"last=4: run=.* holds 3 complete checkpoints \(steps 1, 2, 3\); give fewer"):
        average.run(config.Average(run=str(run), last=4, target=str(tmp_path / "more")))


def test_masters_and_the_online_average(tmp_path: Path) -> None:
    parts = [megatron_weights(seed) for seed in range(2)]
    paths = [str(save(tmp_path / "run", 1 + step, part, tp=2)) for step, part in enumerate(parts)]
    for tensors, shift in (("masters", 1.0), ("ema", 2.0)):
        average.run(config.Average(paths, target=str(tmp_path / tensors), tensors=tensors))
        shifted = [{name: tensor + shift for name, tensor in part.items()} for part in parts]
        assert_equal(read(tmp_path / tensors), expected(shifted, [1.0, 1.0], torch.float32))
    average.run(config.Average(paths[1:], target=str(tmp_path / "one"), tensors="ema"))
    assert_equal(read(tmp_path / "one"), {name: tensor + 2.0 for name, tensor in parts[1].items()})
    with pytest.raises(ValueError, match=r"tensors=ema: .*one.* holds weights alone; give tensors=weights"):
        average.run(config.Average([str(tmp_path / "one"), paths[0]], target=str(tmp_path / "x"), tensors="ema"))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_all_differences_are_named(tmp_path: Path) -> None:
    first = save(tmp_path / "first", 1, megatron_weights(0))
    other = asdict(MODEL) | {"vocab_size": 96, "rope_factor": 0.0, "name": "other"}
    second = save(tmp_path / "second", 2, megatron_weights(1), model=other, tokenizer={"fingerprint": "g"})
    spoiled = megatron_weights(2)
    spoiled["decoder.final_layernorm.weight"] = torch.ones(7)
    spoiled["extra.weight"] = torch.ones(3)
    third = save(tmp_path / "third", 3, spoiled)
    with pytest.raises(ValueError) as caught:
        average.run(config.Average([str(second), str(third), str(first)], target=str(tmp_path / "out")))
    for part in (
        "second/checkpoints/step-00000002 has vocab_size=96, ",
        "rope_factor=0.0, ",
        "second/checkpoints/step-00000002 has another tokenizer than ",
        "decoder.final_layernorm.weight: ",
        "step-00000003 has [7], ",
        "extra.weight: ",
        "Average models of one shape and tokenizer",
    ):
        assert part in str(caught.value)
    assert "name=" not in str(caught.value) and not (tmp_path / "out").exists()


def test_folders_that_differ_are_named(tmp_path: Path) -> None:
    one = write_hf(tmp_path / "one", MODEL, weights_of(MODEL))
    two = write_hf(tmp_path / "two", MODEL, weights_of(MODEL), rms_norm_eps=1e-6)
    (two / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(ValueError, match=r"one has norm_eps=1e-05, .*two 1e-06; .*has another tokenizer"):
        average.run(config.Average([str(one), str(two)], target=str(tmp_path / "out")))
    left = {"model": {"merges": ["a b"], "vocab": {"a": 0}}}
    used = {"model": {"merges": [["a", "b"]], "vocab": {"a": 0}, "dropout": None}, "padding": {"pad_id": 1}}
    for folder, words in ((one, left), (two, used)):  # what was said of its last use changes no id
        (folder / "tokenizer.json").write_text(json.dumps(words))
        hf.write_json(folder / "config.json", hf.config_json(MODEL, torch.float32, IDS))
    changes = {"rms_norm_eps": 9.999999747378752e-06}  # 1e-5 in FP32, as tools write it that keep numbers in FP32
    hf.write_json(one / "config.json", hf.config_json(MODEL, torch.float32, IDS) | changes)
    average.run(config.Average([str(one), str(two)], target=str(tmp_path / "alike")))
    for folder in (one, two):
        hf.write_json(folder / "config.json", hf.config_json(MODEL, torch.float32, IDS))
        save_file({name: weight.half() for name, weight in weights_of(MODEL).items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="dtype=null: .*two holds torch.float16; give dtype=bf16 or fp32"):
        average.run(config.Average([str(one), str(two)], target=str(tmp_path / "out")))
    run = save(tmp_path / "run", 1, megatron_weights(0))
    with pytest.raises(ValueError, match="one are Hugging Face folders, the others checkpoints; convert some"):
        average.run(config.Average([str(one), str(run)], target=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="tensors=masters: Hugging Face folders have weights alone"):
        average.run(config.Average([str(one), str(two)], target=str(tmp_path / "out"), tensors="masters"))


def test_what_cannot_be_averaged_is_named(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / "run", step, megatron_weights(step))) for step in (1, 2)]
    out = str(tmp_path / "out")
    cases = [
        (config.Average([paths[0], paths[0]], target=out), "step-00000001 is given twice; weigh it"),
        (config.Average(paths[:1], target=out), "alone is its own average"),
        (config.Average(paths[::-1], target=out, decay=0.5), "from the oldest to the newest; put them in order"),
        (
            config.Average(paths, target=str(tmp_path / "run")),
            "has no optimizer; give a folder of its own, .*run-average",
        ),
        (config.Average(run=str(tmp_path / "run"), target=out, weights=[1.0]), "there are 2 inputs; give one weight"),
        (config.Average([paths[0], str(tmp_path / "none")], target=out), "none does not exist"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            average.run(settings)
    assert not (tmp_path / "out").exists()
    average.run(config.Average(paths, target=out))
    with pytest.raises(ValueError, match="is already there: .*overwrite=true"):
        average.run(config.Average(paths, target=out))
    average.run(config.Average(paths, target=out, overwrite=True))
    (tmp_path / "out" / "tokenizer" / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(ValueError, match="holds another tokenizer"):
        average.run(config.Average(paths, target=f"{out}/checkpoints/step-00000009"))


def test_keys_that_do_not_go_together_are_named() -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(config.ConfigError) as caught:
            validate(entry.compose(config.Average, "average", ["target=x", *overrides]))
        return str(caught.value)

    assert "inputs=[]: neither inputs nor a run; give inputs=" in refused()
    result = refused("inputs=['a','b']", "run=x", "weights=[1]", "decay=0.5")
    for part in ("inputs=['a', 'b']: inputs beside a run", "decay=0.5: weights are given too", "there are 2 inputs"):
        assert part in result
    assert "last=2: there is no run" in refused("inputs=['a','b']", "last=2")
    assert "no weights; give numbers" in refused("inputs=['a','b']", "weights=[1,-1]")
    assert "target= : is empty" in refused("run=x", "target=' '")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / "run", step, megatron_weights(step))) for step in (1, 2)]
    folders = [str(write_hf(tmp_path / name, MODEL, weights_of(MODEL))) for name in ("one", "two")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for inputs, target in ((paths, "out"), (folders, "out-hf")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a real error of write(2)
        try:
            with pytest.raises(publish.CheckpointError, match=r"not written.*File too large.*free space"):
                average.run(config.Average(inputs, target=str(tmp_path / target)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out-hf").exists()
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "checkpoints"]


# --- memory and command -----------------------------------------------------------------------------------------------

MEMORY = """
import re, sys, threading
from dataclasses import asdict
from pathlib import Path
import torch
from llama31 import config
from llama31.checkpoint import publish as checkpoint
from llama31.convert import average, checkpoints as convert, hf
from llama31.checkpoint.shards import Block, Shard

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
shape = dict(layers=int(sys.argv[2]), hidden_size=1024, ffn_hidden_size=2816, heads=8, kv_heads=2, vocab_size=8192)
model = config.Model(name="many", **shape)
numbers = torch.randn(8192 * 1024).bfloat16()
for step, split in ((1, 1), (2, 4)):
    shards = []
    for name, parts in convert.table(model).items():
        size = convert._stacked(model, parts)
        rows = size[0] // split
        read = lambda size=size, rows=rows: numbers[: rows * torch.Size(size[1:]).numel()].view(rows, *size[1:])
        places = [(i * rows, *[0] * (len(size) - 1)) for i in range(split)]
        blocks = [Block(at, read, (rows, *size[1:]), torch.bfloat16) for at in places]
        shards.append(Shard(name, size, blocks))
    checkpoint.save(folder / "run" / "checkpoints", checkpoint.Meta(asdict(model), step=step, tokens=step), shards)
    (folder / f"hf{step}").mkdir()
    writer = hf.SafetensorsWriter(folder / f"hf{step}", convert.hf_shapes(model), torch.bfloat16, 300_000_000)
    for name, size in convert.hf_shapes(model).items():
        writer.write(name, numbers[: torch.Size(size).numel()].view(size))
    writer.finish()
    hf.write_json(folder / f"hf{step}" / "config.json", hf.config_json(model, torch.bfloat16, {}))
del numbers

level, peak, end = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not end.wait(0.001):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
ours = average.run(config.Average(run=str(folder / "run"), target=str(folder / "out")))
theirs = average.run(config.Average([str(folder / "hf1"), str(folder / "hf2")], target=str(folder / "out-hf")))
end.set()
thread.join()
largest = max(convert._stacked(model, parts)[0] for parts in convert.table(model).values()) * 1024 * 2
print(ours.written_bytes, peak - level, largest, round(ours.mb_per_s), round(theirs.mb_per_s))
"""


def test_memory_is_that_of_one_tensor(tmp_path: Path, command: Command) -> None:
    result = command("-c", MEMORY, tmp_path, "16", check=True)
    whole, peak, largest, *_ = (int(word) for word in result.stdout.split())
    bound = 2 * largest + 256_000_000
    assert whole > 1.3 * bound, "the model has to be too large for the bound, or this proves nothing"
    assert 0 < peak < bound


def test_the_command_averages_and_refuses(tmp_path: Path, command: Command) -> None:
    paths = [str(save(tmp_path / "run", step, megatron_weights(step))) for step in (1, 2)]
    words = ("-m", "recipes.average", f"inputs=['{paths[0]}','{paths[1]}']", f"target={tmp_path / 'out'}")
    assert "MB/s" in command(*words, check=True).stdout
    again = command(*words)
    assert again.returncode == 1 and "is already there" in again.stderr and "Traceback" not in again.stderr
    absent = command("-m", "recipes.average", "inputs=['nothing','here']", f"target={tmp_path / 'x'}")
    assert absent.returncode == 1 and "inputs=nothing: there is no such folder" in absent.stderr


# --- while training goes on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_online_average_equals_its_formula(decay: float, tmp_path: Path) -> None:
    """Fragments of two tensors, one of them in two pieces, through 300 updates, with a resume in between."""
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(40, 8, generator=generator)
    norm = torch.ones(8)
    live = [
        Shard("fp32.w", (40, 8), [Block((0, 0), master[:15]), Block((15, 0), master[15:])]),
        Shard("fp32.norm", (8,), [Block((0,), norm)]),
        Shard("exp_avg.w", (40, 8), [Block((0, 0), torch.zeros(40, 8))]),
    ]
    online = Ema(live, decay)
    wanted = [master.double(), norm.double()]
    for step in range(300):
        master.add_(0.05 * torch.randn(40, 8, generator=generator))
        norm.mul_(1.001)
        online.update()
        wanted = [decay * e + (1 - decay) * x.double() for e, x in zip(wanted, (master, norm))]
        if step == 150:
            shards.save(online.shards(), tmp_path / "ema")
            online = Ema(live, decay)
            shards.load(online.shards(), tmp_path / "ema")
    assert [shard.name for shard in online.shards()] == ["ema.w", "ema.norm"]
    pieces = [block.resolve() for shard in online.shards() for block in shard.blocks]
    assert all(piece.dtype == torch.float32 for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces[:2]).double(), wanted[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(pieces[2].double(), wanted[1], rtol=2e-6, atol=2e-6)


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="decay=1.0: an average forgets"):
        Ema([], 1.0)
    Ema([], 0.5).update()  # a rank without fragments
