"""Published training runs from a CSV: judged line by line, and made the jobs that are predicted. No torch.

An empty field was not published. `?` stands for what its source leaves open, and counts as filled.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.config import ConfigError, Hardware, Issue, Model
from llama31.plan import utilisation
from llama31.planner.workloads import StepJob

LAYOUT = ("gpus", "precision", "seq", "gbs", "mbs", "tp", "pp", "cp", "dp")  # what a row needs to be averaged
COLUMNS = ("id", "model", "gpu", *LAYOUT, "vp", "shard", "recompute", "tok_s_gpu", "step_s", "mem_gib", "note")
AXES = ("tp", "pp", "cp", "dp")
COUNTS = ("gpus", "seq", "mbs", "tp", "pp", "cp", "dp", "vp")
FORMATS = {"bf16": False, "bfloat16": False, "fp16": False, "fp8": True, "mxfp8": True}  # by how the column begins
AVERAGED = "H100"  # how the devices are called whose rows are averaged
MOST_CHUNKS, FEWEST_LAYERS = 8, 2  # of a stage and of a chunk, where a source does not state the interleaving
BATCH_TOKENS = 4_000_000  # of a step, where a source states tokens per second without its batch
RECOMPUTED = {"core_attn": "attention", "attention": "attention", "mlp": "mlp", "selective": "half", "full": "full"}
SLICE = re.compile(r"(?P<model>.+)-(?P<layers>\d+)L", re.IGNORECASE)
PREFIX = re.compile(r"^(meta-)?(llama|l)[- _]?3(\.\d)?[- _]*", re.IGNORECASE)
OLDER = re.compile(r"^(meta-)?(llama|l)[- _]?2[- _]*", re.IGNORECASE)
TUNED = re.compile(r"[- _](instruct|base|chat|hf)$", re.IGNORECASE)


@dataclass(frozen=True)
class PublishedRun:
    """A row: what was published, and the job that it makes; without one, `reason` says what is missing."""

    id: str
    line: int
    model: str  # as the row calls it
    family: str
    device: str
    job: StepJob | None
    averaged: bool
    reason: str  # why it is not averaged; empty where it is
    step_s: float | None
    tokens_per_s: float | None  # and GPU
    memory_gib: float | None


def read(path: Path, models: Mapping[str, Model], hardware: Hardware) -> list[PublishedRun]:
    """All rows of a file. ConfigError names every wrong field by line and column, and a remedy."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({error})"
        raise ConfigError([Issue("validate", path, problem, "give a CSV file in UTF-8")]) from error
    reader = csv.reader(text.splitlines(keepends=True))
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise ConfigError([Issue("validate", path, "it is empty", f"its first line names {','.join(COLUMNS)}")])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        remedy = f"its first line names the columns {','.join(COLUMNS)}, in any order"
        raise ConfigError([Issue("validate", path, f"line 1 has no column {', '.join(missing)}", remedy)])
    issues: list[Issue] = []
    rows = []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        line = _Line(path, reader.line_num, dict(zip(header, map(str.strip, fields))), issues)
        if len(fields) != len(header):
            line.refuse("id", f"it has {len(fields)} fields, and the first line {len(header)}", "give one per column")
            continue
        rows.append(_row(line, {model.name.lower(): model for model in models.values()}, hardware))
    if issues:
        raise ConfigError(issues)
    if not rows:
        raise ConfigError([Issue("validate", path, "it holds no rows", "give one published run per line")])
    return rows


class _Line:
    """Fields of one line, with what is wrong about them."""

    def __init__(self, path: Path, number: int, fields: Mapping[str, str], issues: list[Issue]) -> None:
        self.path, self.number, self.fields, self.issues = path, number, fields, issues

    def refuse(self, column: str, problem: str, remedy: str) -> None:
        value = self.fields.get(column, "")
        where = f"line {self.number}, column {column}"
        self.issues.append(Issue("validate", self.path, f"{where}: {value!r}: {problem}", remedy))

    def filled(self, column: str) -> bool:
        return self.fields[column] != "" and not (column == "gbs" and self.fields[column] == "0")

    def count(self, column: str) -> int | None:
        """A whole number from 1; None where it is not published or left open."""
        text = re.sub(r"\.0*$", "", self.fields[column])  # pandas writes 5.0 where a column has empty fields
        if text in ("", "?"):
            return None
        if not re.fullmatch(r"[0-9]{1,12}", text) or (int(text) < 1 and column != "gbs"):
            self.refuse(column, "no whole number above 0", "give one, ? where the source leaves it open, or nothing")
            return None
        return int(text) or None

    def measured(self, column: str) -> float | None:
        """A number above 0; None where it is not published."""
        text = self.fields[column]
        if text in ("", "?"):
            return None
        try:
            value = float(text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d*)?", text) else text)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e12:
            self.refuse(column, "no number above 0", "give one, or nothing where it was not published")
            return None
        return value


def _row(line: _Line, models: Mapping[str, Model], hardware: Hardware) -> PublishedRun:
    fields = line.fields
    known = {name: line.count(name) for name in COUNTS} | {"gbs": line.count("gbs")}
    if known["gpus"] is None and all(known[name] for name in AXES):
        known["gpus"] = math.prod(known[name] or 1 for name in AXES)
    model = _model(line, models)
    fp8 = _fp8(line)
    device = _device(fields["gpu"], hardware)
    _judge(line, known)
    unpublished = [name for name in LAYOUT if not line.filled(name)]
    if (known["pp"] or 1) > 1 and not line.filled("vp"):
        unpublished.append("vp")
    job = None if model is None or device is None else _job(fields, known, model, device, bool(fp8))
    if device is None:
        reason = f"line {line.number}, column gpu: no such device in hardware.devices ({', '.join(hardware.devices)})"
    elif job is None:
        left_open = "seq" if known["seq"] is None else "a layout that the others give"
        reason = f"not published: {', '.join(unpublished) or left_open}"
    elif unpublished:
        reason = f"not published: {', '.join(unpublished)}"
    else:
        reason = "" if device.startswith(AVERAGED) else f"{device} is predicted, not averaged"
    numbers = [line.measured(name) for name in ("step_s", "tok_s_gpu", "mem_gib")]
    if numbers[0] is None and numbers[1] and known["gbs"] and known["seq"] and known["gpus"]:
        numbers[0] = known["gbs"] * known["seq"] / known["gpus"] / numbers[1]
    family = model.name.upper().split("-")[0] if model else ""
    family = "Llama 2" if family == "L2" else family
    return PublishedRun(
        fields["id"], line.number, fields["model"], family, device or fields["gpu"], job, not reason, reason, *numbers
    )


def _model(line: _Line, models: Mapping[str, Model]) -> Model | None:
    """The shape that a row means: a name of the table, also with Llama 3 before it, or of some layers of it alone."""
    name = line.fields["model"]
    part = SLICE.fullmatch(name)
    whole = TUNED.sub("", part["model"] if part else name)
    base = OLDER.sub("L2-", PREFIX.sub("", whole)).lower()
    if base not in models:
        line.refuse("model", "no such model", f"give one of {', '.join(sorted(models))}, or add it to models")
        return None
    model = models[base]
    if part is None:
        return model
    if not 0 < int(part["layers"]) <= model.layers:
        line.refuse("model", f"{base} has {model.layers} layers", "give no more than that")
        return None
    changed: dict[str, Any] = {**vars(model), "layers": int(part["layers"])}
    return Model(**changed)


def _fp8(line: _Line) -> bool | None:
    text = line.fields["precision"].lower()
    if text in ("", "?"):
        return None
    known = [fp8 for name, fp8 in FORMATS.items() if text.startswith(name)]
    if not known:
        line.refuse("precision", "no format that is predicted", f"give one of {', '.join(FORMATS)}")
        return None
    return known[0]


def _device(name: str, hardware: Hardware) -> str | None:
    """The device that a row names, also amid more (`H100-700W`, `NVIDIA H100 SXM`): the longest.

    None where the data sheet of what the row names has another rate (`H100 PCIe`).
    """
    fitting = [
        known
        for known in hardware.devices
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(known)}(?![0-9])", name, re.IGNORECASE)
    ]
    found = max(fitting, key=len, default=None)
    sheet = utilisation.peak_tflops(name)
    if found is None or (sheet and found != name and abs(sheet / hardware.devices[found].bf16_tflops - 1) > 0.02):
        return None
    return found


def _judge(line: _Line, known: Mapping[str, int | None]) -> None:
    """What the numbers of a row must satisfy together."""
    sizes = [known[name] for name in AXES]
    if known["gpus"] and all(sizes):
        product = 1
        for size in sizes:
            product *= size or 1
        if product != known["gpus"]:
            line.refuse("dp", f"tp x pp x cp x dp = {product}, and gpus = {known['gpus']}", "give what multiplies out")
    gbs, mbs, dp = known["gbs"], known["mbs"], known["dp"]
    if gbs and mbs and dp and gbs % (mbs * dp):
        line.refuse("gbs", f"no multiple of mbs x dp = {mbs * dp}", "give one")
    if (known["vp"] or 1) > 1 and known["pp"] == 1:
        line.refuse("vp", "chunks are interleaved over stages, and pp is 1", "give 1 or nothing")


def _job(
    fields: Mapping[str, str], known: Mapping[str, int | None], model: Model, device: str, fp8: bool
) -> StepJob | None:
    gpus, length, sizes = known["gpus"], known["seq"], _sizes(known)
    if not (gpus and length and sizes):
        return None
    tp, pp, cp, dp = sizes
    mbs = known["mbs"] or 1
    rows = known["gbs"] or max(dp * mbs, round(_published_tokens(fields, gpus) / length))
    micro_batches = rows / (dp * mbs)
    torchtitan = fields["shard"].upper().startswith("FSDP2")
    if torchtitan and pp > 1:  # its pipeline cuts a replica's rows into as many micro-batches as there are stages
        mbs, micro_batches = max(1, round(rows / dp / pp)), min(float(pp), rows / dp)
    return StepJob(
        model=model,
        device=device,
        stack="torchtitan" if torchtitan else "megatron",
        gpus=gpus,
        fp8=fp8,
        sequence_length=length,
        micro_batch=mbs,
        micro_batches=micro_batches,
        tp=tp,
        pp=pp,
        cp=cp,
        vpp=known["vp"] or (1 if torchtitan and not fields["vp"] else _chunks(model, pp)),
        dp=dp,
        fsdp=fields["shard"].upper().startswith("FSDP"),
        recompute=frozenset(part for name, part in RECOMPUTED.items() if name in fields["recompute"].lower()),
        eager="eager" in fields["note"].lower(),
        tp_async="asynctp" in fields["note"].lower(),
    )


def _sizes(known: Mapping[str, int | None]) -> tuple[int, int, int, int] | None:
    """TP, PP, CP and DP; one that is not stated follows from the others, CP is 1 where two are not."""
    given = [known[name] for name in AXES]
    if given[2] is None and given.count(None) > 1:
        given[2] = 1
    product = math.prod(size for size in given if size is not None)
    if given.count(None) > 1 or (None in given and (known["gpus"] or 0) % product):
        return None
    tp, pp, cp, dp = ((known["gpus"] or 0) // product if size is None else size for size in given)
    return tp, pp, cp, dp


def _published_tokens(fields: Mapping[str, str], gpus: int) -> float:
    """Tokens of a step whose batch is not stated: of the published speed and time, or else a common number."""
    try:
        return float(fields["tok_s_gpu"]) * gpus * float(fields["step_s"])
    except ValueError:
        return BATCH_TOKENS


def _chunks(model: Model, pp: int) -> int:
    """Interleaving where it is not stated: as fine as layers divide, with at least two layers in a chunk."""
    if pp == 1:
        return 1
    layers = model.layers if model.layers % pp == 0 else model.layers + 2
    each = -(-layers // pp)
    return max(n for n in range(1, MOST_CHUNKS + 1) if n == 1 or (each % n == 0 and each // n >= FEWEST_LAYERS))
