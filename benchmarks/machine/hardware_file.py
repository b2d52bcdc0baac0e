"""Measured machines as a file of conf/hardware, and as a table. No torch."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine.constants import Machine

ALONE = "-1"  # behind a device's name: with one process at work


def names(stem: str, machines: Sequence[Machine]) -> dict[str, Machine]:
    """Machines by the name of their device: NAME with most processes at work, NAME-1 with one."""
    most = max(machines, key=lambda one: one.readings.processes)
    return {stem if one is most else f"{stem}{ALONE}": one for one in machines}


def to_yaml(named: Mapping[str, Machine]) -> str:
    """Devices and stacks of one name each, with what was measured in comments."""
    stem = next(iter(named))
    lines = [f"# python -m recipes.plan hardware={stem} device={stem} stack={stem} ...", *_measured(named)]
    for group, of in (("devices", lambda one: one.device), ("stacks", lambda one: one.stack)):
        lines.append(f"{group}:")
        for name, machine in named.items():
            lines.append(f"  {name}:")
            lines += [f"    {key}: {_word(value)}" for key, value in dataclasses.asdict(of(machine)).items()]
    return "\n".join(lines) + "\n"


def table(named: Mapping[str, Machine]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| device | processes | products TFLOP/s | attention | copy GB/s | messages GB/s | their start us | host us |",
        "|" + "---|" * 8,
    ]
    for name, one in named.items():
        device, stack = one.device, one.stack
        share, peak = (
            (stack.products_fp32, device.fp32_tflops)
            if one.readings.params == "fp32"
            else (stack.products_bf16, device.bf16_tflops)
        )
        alone = one.readings.processes == 1
        messages = "| " if alone else f"{device.nvlink_gb_s:.3g} | {device.message_us:.0f}"
        numbers = f"{share * peak:.3g} | {stack.attention_forward:.3g} | {1e3 * device.copy_tb_s:.3g} | {messages}"
        lines.append(f"| {name} | {one.readings.processes} | {numbers} | {stack.host_us:.3g} |")
    return "\n".join(lines)


def commands(path: Path, stem: str) -> str:
    """How the file is used."""
    given = f"hardware={stem} device={stem} stack={stem}"
    where = "" if path.resolve().parent == _conf() else f"--config-dir {path.parent.parent} "
    return f"python -m recipes.plan {where}{given} model=... precision=..."


def _conf() -> Path:
    return Path(__file__).resolve().parents[2] / "conf/hardware"


def _measured(named: Mapping[str, Machine]) -> list[str]:
    first = next(iter(named.values())).readings
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"# Measured by recipes.benchmark calibrate on {today}: {first.device}, {first.params}, {first.versions}.",
        "# Not measured, and as little true as said: watts, prices, networks between nodes (as inside of one), FP8.",
    ]
    for name, machine in named.items():
        readings = machine.readings
        lines.append(f"# {name}: {readings.processes} processes at work.")
        for kind, ranks, size, seconds in readings.messages:
            rate = size / seconds / 1e9
            lines.append(f"#   {kind} of {ranks}: {size:,.0f} bytes sent in {1e6 * seconds:,.0f} us, {rate:.3g} GB/s")
    return lines


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
