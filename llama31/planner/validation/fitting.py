"""The numbers of a stack fitted to published step times, and how far off a family is that was left out. No torch.

Least squares of log(predicted / published) beside what is known before (`hardware.priors`), by Gauss and Newton.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llama31.config import Hardware, Prior
from llama31.planner import speed
from llama31.planner.validation.published import PublishedRun

NOISE = 0.04  # of a published step time: what releases differ by
ROUNDS = 6
STEP = 0.02  # of a logarithm, for differences
REFERENCE = {"megatron": "H100", "torchtitan": "H100-500W"}  # the devices whose runs a stack is fitted to
POWER = "power"


class LeftOutFamily(NamedTuple):
    """A family that was predicted by numbers which have not seen it."""

    stack: str
    family: str
    errors: list[float]  # predicted / published - 1


def families_left_out(rows: Sequence[PublishedRun], hardware: Hardware) -> list[LeftOutFamily]:
    """For each stack and family of models, where others remain to fit to."""
    result = []
    for stack in REFERENCE:
        known = [row for row in rows if fitted(row, stack)]
        families = list(dict.fromkeys(row.family for row in known))
        for family in families if len(families) > 1 else []:
            own = [row for row in known if row.family == family]
            others = fit([row for row in known if row.family != family], hardware, stack)
            result.append(LeftOutFamily(stack, family, [math.exp(_log_ratio(row, others)) - 1 for row in own]))
    return result


def fit(rows: Sequence[PublishedRun], hardware: Hardware, stack: str) -> Hardware:
    """`hardware` with the numbers of `stack` that have priors, starting from those, fitted to `rows`."""
    priors = {name.removeprefix(f"{stack}_"): prior for name, prior in hardware.priors.items() if prior.stack == stack}
    place = np.zeros(len(priors))
    spread = np.array([prior.spread for prior in priors.values()])

    def residuals(at: np.ndarray) -> np.ndarray:
        changed = _changed(hardware, stack, priors, at)
        return np.array([_log_ratio(row, changed) / NOISE for row in rows])

    for _ in range(ROUNDS if priors and rows else 0):
        place = place + _newton(residuals, place, spread)
    return _changed(hardware, stack, priors, place)


def _newton(residuals: Callable[[np.ndarray], np.ndarray], place: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """One step towards the least sum."""
    now = residuals(place)
    slopes = np.stack([(residuals(place + STEP * unit) - now) / STEP for unit in np.eye(len(place))], axis=1)
    normal = slopes.T @ slopes + np.diag(1 / spread**2)
    step: np.ndarray = -np.linalg.solve(normal, slopes.T @ now + place / spread**2)
    return np.clip(step, -0.5, 0.5)


def _changed(hardware: Hardware, stack: str, priors: Mapping[str, Prior], place: np.ndarray) -> Hardware:
    values = {name: prior.value * math.exp(shift) for (name, prior), shift in zip(priors.items(), place)}
    devices = hardware.devices
    if POWER in values:
        device = REFERENCE[stack]
        devices = {**devices, device: dataclasses.replace(devices[device], power=values.pop(POWER))}
    stacks = {**hardware.stacks, stack: dataclasses.replace(hardware.stacks[stack], **values)}
    return dataclasses.replace(hardware, devices=devices, stacks=stacks)


def fitted(row: PublishedRun, stack: str) -> bool:
    """Whether a row may be fitted to: its step time, batch and layout are published, on the stack's own devices."""
    whole = row.averaged and row.job is not None and row.step_s is not None
    return whole and row.job is not None and row.job.stack == stack and row.device == REFERENCE[stack]


def _log_ratio(row: PublishedRun, hardware: Hardware) -> float:
    assert row.job is not None and row.step_s is not None
    seconds = speed.step(row.job, hardware.devices[row.job.device], hardware.stacks[row.job.stack])
    return math.log(speed.total(seconds) / row.step_s)
