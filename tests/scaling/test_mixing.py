"""Mixtures of data: a planted mixing law is found again, its best mixture is proposed, and poor data is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.config import Mixing
from llama31.scaling import mixing
from llama31.scaling.mixing import Tried
from llama31.scaling.resampling import Floats
from recipes import scaling
from tests.scaling import planted
from tests.scaling.test_fit import recorded

NAMES = ["code", "math", "web"]
EXPONENTS = np.array([[-1.5, 0.1, 0.3], [0.2, -1.2, 0.1], [0.3, 0.2, -2.0]])
CONSTANTS = np.array([1.2, 2.0, 1.8])
SLOPES = np.array([0.06, 0.10, 0.05])  # of the texts' power laws over FLOPs


def losses(shares: Floats, flops: Floats) -> Floats:
    """[runs, texts] of shares [runs, sources]."""
    scale = np.log(flops / 1e19)[:, None] * SLOPES
    return np.asarray(CONSTANTS + np.exp(0.5 + shares @ EXPONENTS.T - scale))


def tried(noise: float, rng: np.random.Generator, sizes: tuple[float, ...] = (1e19,), runs: int = 24) -> Tried:
    shares = rng.dirichlet([2.0, 2.0, 2.0], runs)
    flops = np.resize(sizes, runs)
    measured = losses(shares, flops) + rng.normal(0, noise, (runs, 3))
    return Tried(NAMES, NAMES, shares, measured, flops if len(sizes) > 1 else None)


def best(flops: float) -> Floats:
    """By looking at every mixture in steps of half a percent."""
    grid = np.array([(a, b, 200 - a - b) for a in range(201) for b in range(201 - a)]) / 200
    return np.asarray(grid[losses(grid, np.full(len(grid), flops)).mean(axis=1).argmin()])


@pytest.mark.parametrize(("sizes", "target"), [((1e19,), None), ((1e19, 1e20, 1e21), 1e23)])
def test_the_best_mixture_of_a_planted_law_is_proposed(sizes: tuple[float, ...], target: float | None) -> None:
    rng = np.random.default_rng(0)
    found = mixing.propose(tried(0.0, rng, sizes), Mixing(target_flops=target, beyond=0.2), 20, rng)
    assert [found.shares[name].value for name in NAMES] == pytest.approx(best(target or 1e19), abs=0.006)
    shares = np.array([[found.shares[name].value for name in NAMES]])
    assert found.loss.value == pytest.approx(losses(shares, np.array([target or 1e19])).mean(), abs=1e-3)
    assert not found.at_bounds and found.gain.value > 0


def test_intervals_hold_the_best_mixture() -> None:
    held, law = [], best(1e19)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = mixing.propose(tried(0.004, rng), Mixing(), 40, rng)
        held += [found.shares[name].holds(share) for name, share in zip(NAMES, law, strict=True)]
    assert np.mean(held) >= 0.8


def test_weights_draw_the_mixture_to_their_text_and_ends_are_named() -> None:
    rng = np.random.default_rng(0)
    given = tried(0.0, rng)
    found = mixing.propose(given, Mixing(weights={"code": 1.0}), 20, rng)
    most = float(given.shares[:, 0].max())
    assert found.shares["code"].value == pytest.approx(most, abs=1e-3)
    assert any(text.startswith("code at") for text in found.at_bounds)
    assert "at an end of what was tried: code" in mixing.summary(found)
    beyond = mixing.propose(given, Mixing(weights={"code": 1.0}, beyond=1.0), 20, rng)
    assert beyond.shares["code"].value == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="mix.weights=.*: give weights, one above 0, of code, math, web"):
        mixing.propose(given, Mixing(weights={"book": 1.0}), 100, rng)


def write(path: Path, given: Tried, flops: float | None = None) -> Path:
    header = [*(f"share.{name}" for name in NAMES), *(f"loss.{name}" for name in NAMES)]
    rows = [[*shares, *of] for shares, of in zip(given.shares, given.losses, strict=True)]
    if flops is not None:
        header, rows = [*header, "flops"], [[*row, flops] for row in rows]
    return planted.write(path, header, rows)


def test_wrong_rows_and_too_little_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = tried(0.0, rng)
    path = tmp_path / "mix.csv"
    given.shares[1] *= 0.9
    write(path, given)
    with pytest.raises(ValueError, match="mix.csv:3: its shares sum to 0.9"):
        mixing.read(Mixing(input=str(path)))
    path.write_text("share.web,share.code,loss.web,loss.code\n0,1,2.5,\n-0.5,1.5,2,3\n")
    with pytest.raises(ValueError, match="mix.csv:3, column share.web: '-0.5' is no finite number from 0 on"):
        mixing.read(Mixing(input=str(path)))
    path.write_text("share.web,share.code,loss.web,loss.code\n0,1,2.5,\n")
    with pytest.raises(ValueError, match="mix.csv:2, column loss.code: is empty"):
        mixing.read(Mixing(input=str(path)))
    write(path, tried(0.0, rng, runs=5))
    with pytest.raises(ValueError, match="5 runs, and 4 coefficients for each text take 6; add runs"):
        mixing.read(Mixing(input=str(path)))
    fixed = tried(0.0, rng)
    half = fixed.shares[:, :1] / 2
    write(path, replace(fixed, shares=np.concatenate([half, half, 1 - 2 * half], axis=1)))
    with pytest.raises(ValueError, match="the mixtures vary in 1 of 2 directions"):
        mixing.read(Mixing(input=str(path)))
    path.write_text("share.web,share.code,loss.web\n0,1,2.5\n")
    with pytest.raises(ValueError, match="1 held-out texts .* what is best for a single text is a single source"):
        mixing.read(Mixing(input=str(path)))
    with pytest.raises(ValueError, match="mix.input: give either"):
        mixing.read(Mixing())


def test_flops_that_are_all_alike_are_no_term_of_the_law(tmp_path: Path) -> None:
    path = write(tmp_path / "mix.csv", tried(0.0, np.random.default_rng(0)), 1e19)
    assert mixing.read(Mixing(input=str(path))).flops is None


def test_run_folders_give_shares_and_losses(tmp_path: Path) -> None:
    folders = [recorded(tmp_path / str(number), 4096, 4096) for number in range(5)]
    with pytest.raises(ValueError, match="mix.runs: the mixtures vary in 0 of 1 directions"):
        mixing.read(Mixing(runs=folders))


def test_the_recipe_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "mix.csv", tried(0.003, np.random.default_rng(0)))
    output, picture = tmp_path / "mix.json", tmp_path / "mix.png"
    run = config.Scaling("mix", replications=100, output=str(output), picture=str(picture), mix=Mixing(input=str(path)))
    scaling.main(run)
    record = json.loads(output.read_text())
    assert sum(one["value"] for one in record["shares"].values()) == pytest.approx(1)
    assert picture.stat().st_size > 10_000 and "gained over the best mixture tried" in capsys.readouterr().out
