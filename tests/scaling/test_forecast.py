"""Forecasts of accuracy: both planted steps are found again, and what says nothing is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.config import REPORT_BUDGETS, Forecasting
from llama31.scaling import forecast
from llama31.scaling.forecast import Examined
from recipes import scaling
from tests.scaling import planted

TARGET = 3.8e25


def nll(flops: float) -> float:
    return float(1.25 - 0.06 * np.log10(flops / 6e18))


def accuracy(likelihood: float) -> float:
    return float(0.25 + 0.75 / (1 + np.exp((likelihood - 0.85) / 0.07)))


def models(noise: float, rng: np.random.Generator) -> list[Examined]:
    """The ladder, and four models that were trained otherwise and are better than all of it."""
    likelihoods = [(flops, nll(flops) + rng.normal(0, noise)) for flops in REPORT_BUDGETS]
    likelihoods += [(None, 0.75 + 0.06 * n) for n in range(4)]
    return [Examined("planted", flops, one, accuracy(one) + rng.normal(0, noise)) for flops, one in likelihoods]


def made(noise: float, seed: int, **keys: object) -> forecast.Forecast:
    rng = np.random.default_rng(seed)
    return forecast.fit(models(noise, rng), Forecasting(input="f.csv", **keys), 200, rng)  # type: ignore[arg-type]


def test_planted_steps_are_found_again() -> None:
    exact = made(0.0, 0)
    assert exact.nll.value == pytest.approx(nll(TARGET)) and exact.line.slope == pytest.approx(-0.06)
    assert exact.accuracy.value == pytest.approx(accuracy(nll(TARGET)), abs=1e-6)
    assert (exact.sigmoid.middle, exact.sigmoid.width) == pytest.approx((0.85, 0.07), abs=1e-6)


def test_intervals_of_a_new_model_hold_it_as_often_as_they_say() -> None:
    held = []
    for seed in range(100):
        one, rng = made(0.006, seed), np.random.default_rng(1000 + seed)
        new = nll(TARGET) + rng.normal(0, 0.006)
        held += [one.nll.holds(new), one.accuracy.holds(accuracy(new) + rng.normal(0, 0.006))]
    assert 0.87 <= np.mean(held) <= 1


def test_models_beyond_are_held_out_and_compared() -> None:
    given = Forecasting(input="f.csv", most_flops=1e21)
    rng = np.random.default_rng(0)
    one = forecast.fit(models(0.003, rng), given, 200, rng)
    assert [model.flops for model, _, _ in one.held_out] == [3e21, 1e22]
    assert all(likelihood.holds(nll(model.flops or 0)) for model, likelihood, _ in one.held_out)
    assert forecast.summary(one).count("held out, planted") == 2


def test_what_says_nothing_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = models(0.0, rng)
    given = Forecasting(input="f.csv")
    with pytest.raises(ValueError, match="3 different FLOPs up to forecast.most_flops=1e\\+22, and the line takes 4"):
        forecast.fit(whole[:3], given, 100, rng)
    rising = [Examined("", one.flops, 2 - one.nll, one.accuracy) for one in whole]
    with pytest.raises(ValueError, match="nll does not fall with FLOPs .*negative log-likelihood"):
        forecast.fit(rising, given, 100, rng)
    guessing = [Examined("", one.flops, one.nll, 0.25) for one in whole[:-4]]
    guessing[0] = Examined("", guessing[0].flops, guessing[0].nll, 0.26)
    with pytest.raises(ValueError, match="accuracy does not grow as nll falls"):
        forecast.fit(guessing, given, 100, rng)
    with pytest.raises(ValueError, match="forecast.ceiling=0.2: not above forecast.chance=0.25"):
        forecast.fit(whole, Forecasting(input="f.csv", ceiling=0.2), 100, rng)
    path = planted.write(tmp_path / "f.csv", ("flops", "nll", "accuracy"), [(1e19, 1.2, 31), ("", 1.1, 0.3)])
    with pytest.raises(ValueError, match="f.csv:2, column accuracy: 31 is above 1; give a share"):
        forecast.read(Forecasting(input=str(path)))
    with pytest.raises(ValueError, match="forecast.input=null: there is nothing to fit"):
        forecast.read(Forecasting())


def test_the_upper_half_that_nobody_reached_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    small = forecast.fit(models(0.002, rng)[:-4], Forecasting(input="f.csv"), 100, rng)
    assert "the upper half of the sigmoid is assumed" in forecast.summary(small)
    assert "warning: no model" not in forecast.summary(made(0.002, 0))


def test_the_recipe_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(one.flops or "", one.nll, one.accuracy) for one in models(0.004, np.random.default_rng(0))]
    rows.append((TARGET, nll(TARGET), accuracy(nll(TARGET))))
    path = planted.write(tmp_path / "f.csv", ("flops", "nll", "accuracy"), rows)
    output, picture = tmp_path / "f.json", tmp_path / "f.png"
    run = config.Scaling(
        "forecast", replications=100, output=str(output), picture=str(picture), forecast=Forecasting(input=str(path))
    )
    scaling.main(run)
    record = json.loads(output.read_text())
    assert record["held_out"][0]["where"] == f"{path}:{len(rows) + 1}" and picture.stat().st_size > 10_000
    assert "half way at nll 0.8" in capsys.readouterr().out
