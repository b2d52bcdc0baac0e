"""What a checkpoint costs its first rank and each reader in bookkeeping, at thousands of ranks played by one process.

`python -m benchmarks.scale_checkpoints`: tables at 8 (8B), 1,024 and 16,384 ranks (405B, ZeRO 1).
Every simulated rank says what `engine/state.py` would save of it; no tensor exists, and files are holes of their size.
"""

from __future__ import annotations

import math
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from llama31.checkpoint import index, manifest, shards
from llama31.checkpoint.checksum import Entry, of_file
from llama31.checkpoint.index import Numbers, Part, Placed, Shape
from llama31.config import Model, Parallel
from llama31.plan import exposure

CONF = Path(__file__).resolve().parent.parent / "conf"
KEYS = ("fp32", "exp_avg", "exp_avg_sq")
ARCHIVE = 1_200  # bytes that torch.save adds to a block
PLAYED = 64  # ranks of which DCP's plans are measured; they are linear in them


@dataclass(frozen=True)
class Held:
    """A parameter of a tensor-parallel rank: its part, and where it lies in the global tensor."""

    name: str
    shape: Shape
    local: Shape
    offsets: tuple[Shape, ...]

    @property
    def size(self) -> int:
        return math.prod(self.local)


def pieces(model: Model, parallel: Parallel, stage: int, tp_rank: int) -> Iterator[Held]:
    """Parameters of a rank in the order of its forward pass, as `model/llama.shards` names and cuts them."""
    hidden, tp = model.hidden_size, parallel.tp

    def rows(name: str, height: int, width: int) -> Held:
        part = height // tp
        return Held(name, (height, width), (part, width), ((tp_rank * part, 0),))

    def columns(name: str, height: int, width: int) -> Held:
        part = width // tp
        return Held(name, (height, width), (height, part), ((0, tp_rank * part),))

    def vector(name: str) -> Held:
        return Held(name, (hidden,), (hidden,), ((0,),))

    slots = model.layers + parallel.embedding_as_layer + parallel.loss_as_layer
    per_chunk = slots // (parallel.pp * parallel.vpp)
    for chunk in range(parallel.vpp):
        place = chunk * parallel.pp + stage
        first, last = place == 0, place == parallel.pp * parallel.vpp - 1
        begin = place * per_chunk - (parallel.embedding_as_layer if not first else 0)
        count = per_chunk - (first and parallel.embedding_as_layer) - (last and parallel.loss_as_layer)
        if first:
            yield rows("embedding.word_embeddings.weight", model.vocab_size, hidden)
        for layer in range(begin, begin + count):
            of = f"decoder.layers.{layer}."
            yield rows(
                f"{of}self_attention.linear_qkv.weight", (model.heads + 2 * model.kv_heads) * model.head_dim, hidden
            )
            yield vector(f"{of}self_attention.linear_qkv.layer_norm_weight")
            yield columns(f"{of}self_attention.linear_proj.weight", hidden, hidden)
            half = model.ffn_hidden_size // tp
            gate_up = ((tp_rank * half, 0), (half * (tp + tp_rank), 0))
            whole = (2 * model.ffn_hidden_size, hidden)
            yield Held(f"{of}mlp.linear_fc1.weight", whole, (2 * half, hidden), gate_up)
            yield vector(f"{of}mlp.linear_fc1.layer_norm_weight")
            yield columns(f"{of}mlp.linear_fc2.weight", hidden, model.ffn_hidden_size)
        if last:
            yield vector("decoder.final_layernorm.weight")
            yield rows("output_layer.weight", model.vocab_size, hidden)


def cut(held: list[Held], bucket_bytes: int, replicas: int) -> list[Part]:
    """By data-parallel rank: the rectangles that ZeRO 1 gives it of each weight, as it would save them."""
    matrices = [number for number, piece in enumerate(held) if len(piece.shape) > 1][::-1]
    buckets = [[matrices[i] for i in part] for part in exposure.buckets([held[n].size for n in matrices], bucket_bytes)]
    buckets.append([number for number, piece in enumerate(held) if len(piece.shape) == 1])
    blocks: list[list[tuple[int, str, Shape, Shape]]] = [[] for _ in range(replicas)]
    for bucket in buckets:
        share = -(-sum(held[number].size for number in bucket) // replicas)
        begin = 0
        for number in bucket:
            piece = held[number]
            for rank in range(begin // share, min(replicas, -(-(begin + piece.size) // share))):
                start = max(rank * share, begin)
                count = min((rank + 1) * share, begin + piece.size) - start
                for offset, shape, _ in index.rectangles(piece.offsets, piece.local, start - begin, count):
                    blocks[rank].append((number, "bfloat16", offset, shape))
            begin += piece.size
    names = {piece.name: piece.shape for piece in held}
    return [index.pack(names, mine) for mine in blocks]


@dataclass
class Played:
    """What all ranks save: `weights` and `optimizer` by rank, in the layout's order (TP, PP, DP from the fastest)."""

    names: list[list[str]]  # of weights
    weights: list[Part]
    optimizer: list[Part]


def play(model: Model, parallel: Parallel) -> Played:
    """Every rank of a layout without context parallelism. Tensor-parallel ranks differ in where their parts begin."""
    assert parallel.dp is not None and parallel.cp == 1
    of_rank: dict[int, tuple[list[str], Part, Part]] = {}
    for stage in range(parallel.pp):
        first = list(pieces(model, parallel, stage, 0))
        names = [piece.name for piece in first]
        vectors = np.array([len(piece.shape) == 1 for piece in first])
        states = index.pack({f"{key}.{piece.name}": piece.shape for key in KEYS for piece in first}, []).tensors
        parts = cut(first, parallel.bucket_bytes, parallel.dp)
        for tp_rank in range(parallel.tp):
            here = pieces(model, parallel, stage, tp_rank)
            moved = [np.subtract(mine.offsets[0], other.offsets[0]) for mine, other in zip(here, first, strict=True)]
            shift = np.array([[*one, *[0] * (2 - len(one))] for one in moved])
            for replica, part in enumerate(parts):
                rows = part.rows[~vectors[part.rows[:, 0]]] if tp_rank else part.rows.copy()  # norms are its first's
                rows[:, 2:4] += shift[rows[:, 0]]
                rank = tp_rank + parallel.tp * (stage + parallel.pp * replica)
                of_rank[rank] = names, Part(part.tensors, rows), Part(states, _thrice(rows, len(names)))
    named, weights, optimizer = zip(*(of_rank[rank] for rank in range(len(of_rank))), strict=True)
    return Played(list(named), list(weights), list(optimizer))


def _thrice(rows: Numbers, names: int) -> Numbers:
    """Masters and both moments of weights, in FP32."""
    result = np.tile(rows, (len(KEYS), 1))
    result[:, 0] += np.repeat(np.arange(len(KEYS)) * names, len(rows))
    result[:, 1] = index.FORMATS.index("float32")
    return result


def placed(part: Part) -> Placed | None:
    """Where a rank that holds `part` would have written it."""
    if not len(part.rows):
        return None
    dims = part.rows.shape[1] // 2 - 1
    width = np.array(list(index.BYTES.values()))[part.rows[:, 1]]
    lengths = part.rows[:, 2 + dims :].prod(1) * width + ARCHIVE
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-lengths // 64) * 64)])
    return Placed(np.column_stack([offsets[:-1], lengths]), Entry(int(offsets[-1]), "0" * 32))


@dataclass
class Figures:
    """Of a layout: what the first rank does at a save, and what ranks do at a start."""

    ranks: int
    blocks: int
    save_s: float  # tables and manifest on the first rank, checks included
    table_bytes: int  # of both indexes and the manifest
    most_in_folder: int
    start_s: float  # retention and the choice of a checkpoint on the first rank, one checkpoint there
    share_s: float  # sharing out the files, on every rank
    resume_table_bytes: int  # of tables, by the rank that reads most of those asked
    resume_bytes: int  # with the numbers


def measure(played: Played, folder: Path, holes: bool = True) -> Figures:
    """A save of all ranks, and a resume of the first, a middle and the last one on the same layout.

    Seconds are of the processor. Without `holes` the ranks' files are not made, and the start is not measured.
    """
    ranks, blocks, spent = len(played.weights), 0, 0.0
    files: dict[str, Entry] = {}
    names = [shards.file_name(rank, ranks) for rank in range(ranks)]
    for kind, parts in (("weights", played.weights), ("optimizer", played.optimizer)):
        done = [placed(part) for part in parts]
        (folder / kind).mkdir(parents=True)
        begin = time.process_time()
        table = index.Table(parts)
        files[f"{kind}/{index.NAME}"] = table.write(folder / kind, done, names)
        files |= {f"{kind}/{name}": one.entry for name, one in zip(names, done, strict=True) if one is not None}
        spent += time.process_time() - begin
        blocks += len(table.rows)
    for name, one in files.items() if holes else ():
        _hole(folder / name, one.size)
    begin = time.process_time()
    manifest.write(folder, manifest.Manifest({"step": 1}, files))
    spent += time.process_time() - begin
    begin = time.process_time()
    assert manifest.glance(folder) is None and (not holes or manifest.lacking(folder) is None)
    start_s = time.process_time() - begin
    begin = time.process_time()
    manifest.shared_out({name: entry.size for name, entry in files.items()}, ranks)
    share_s = time.process_time() - begin
    tables = [path.stat().st_size for path in [*folder.glob("*.json"), *folder.glob(f"*/{index.NAME}")]]
    most = max(Counter(str(Path(name).parent) for name in files).values())
    read = [resume(played, rank, folder) for rank in (0, ranks // 2, ranks - 1)]
    table_bytes, all_bytes = max(table for table, _ in read), max(sum(both) for both in read)
    return Figures(ranks, blocks, spent, sum(tables), most, start_s, share_s, table_bytes, all_bytes)


def _hole(path: Path, size: int) -> None:
    if path.suffix == ".distcp":
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(size)


def resume(played: Played, rank: int, folder: Path) -> tuple[int, int]:
    """Bytes that a rank reads of the tables, names of weights included, and of masters and moments."""
    weights, states = index.Index(folder / "weights" / index.NAME), index.Index(folder / "optimizer" / index.NAME)
    rows, numbers = played.weights[rank].rows, 0
    for number, _, *box in rows.tolist():
        dims = len(weights.tensors[played.names[rank][number]].shape)
        offset, shape = tuple(box[:dims]), tuple(box[2 : 2 + dims])
        for key in KEYS:
            found = list(states.blocks(f"{key}.{played.names[rank][number]}", offset, shape))
            assert [(block.offset, block.shape) for block in found] == [(offset, shape)], (offset, shape, found)
            numbers += 4 * math.prod(shape)
    return weights.bytes_read + states.bytes_read, numbers


def weights_read(model: Model, parallel: Parallel) -> tuple[int, int]:
    """Bytes of BF16 weights that a rank of the first stage holds, and the most that one reads where replicas share."""
    held = {one.name: 2 * one.size for one in pieces(model, parallel, 0, 0)}
    shares = manifest.shared_out(held, parallel.dp or 1)
    return sum(held.values()), max(sum(held[name] for name in share) for share in shares)


def before(played: Played, folder: Path) -> dict[str, float]:
    """DCP on the plans of the first PLAYED ranks, in seconds and bytes of the first rank, and of a reader."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
    from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
    from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
    from torch.distributed.checkpoint.storage import WriteResult

    sent: list[bytes] = []
    results = []
    ranks = min(PLAYED, len(played.weights))
    for rank in range(ranks):
        items, done = [], []
        for key in ("", *KEYS):
            for number, _, *box in played.weights[rank].rows.tolist():
                name = ".".join(filter(None, (key, played.names[rank][number])))
                chunk = ChunkStorageMetadata(torch.Size(box[:2]), torch.Size(box[2:]))
                data = TensorWriteData(chunk, TensorProperties(dtype=torch.float32), torch.Size(box[2:]))
                items.append(WriteItem(MetadataIndex(name, box[:2]), WriteItemType.SHARD, tensor_data=data))
                done.append(WriteResult(items[-1].index, 1, _StorageInfo(f"__{rank}_0.distcp", 1 << 30, 1 << 20)))
        sent.append(pickle.dumps(SavePlan(items)))
        results.append(done)
    said = [pickle.dumps(done) for done in results]
    begin = time.process_time()
    plans = [pickle.loads(one) for one in sent]
    plans, metadata = create_default_global_save_plan(dedup_save_plans(plans))
    scattered = sum(len(pickle.dumps(plan)) for plan in plans)
    writer = FileSystemWriter(folder, sync_files=True)
    writer.set_up_storage_writer(True)
    writer.finish(metadata, [pickle.loads(one) for one in said])
    save_s = time.process_time() - begin
    begin = time.process_time()
    FileSystemReader(folder).read_metadata()
    factor = len(played.weights) / ranks
    return {
        "blocks": sum(map(len, results)) * factor,
        "gathered and scattered bytes": (sum(map(len, sent)) + sum(map(len, said)) + scattered) * factor,
        "save_s": save_s * factor,
        ".metadata bytes": of_file(folder / ".metadata").size * factor,
        "reading it, s": (time.process_time() - begin) * factor,
    }


def layouts() -> Iterator[tuple[Model, Parallel]]:
    """8B on 8 ranks, 405B on 1,024 and 16,384."""

    def of(model: str, parallel: str, dp: int) -> tuple[Model, Parallel]:
        named = [
            yaml.safe_load((CONF / group).read_text()) for group in (f"model/{model}.yaml", f"parallel/{parallel}.yaml")
        ]
        return Model(**named[0]), replace(Parallel(**named[1]), dp=dp)

    yield of("8b", "8b_1node", 4)
    yield of("405b", "405b_16k", 8)
    yield of("405b", "405b_16k", 128)


def main() -> None:
    """Print both tables; the second argument `before` adds what DCP's own planning costs."""
    for model, parallel in layouts():
        played = play(model, parallel)
        with tempfile.TemporaryDirectory() as folder:
            print(measure(played, Path(folder) / "one"), flush=True)
            print("weights held and read by a rank, bytes:", *weights_read(model, parallel), flush=True)
            if "before" in sys.argv:
                print(before(played, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
