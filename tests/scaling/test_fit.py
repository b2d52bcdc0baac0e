"""Compute-optimal tokens: planted laws are found again within their intervals, and what cannot be fitted is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from llama31 import config
from llama31.config import Fit
from llama31.plan import shapes
from llama31.runs import plots
from llama31.scaling import isoflop, observations, parametric
from llama31.scaling.observations import Trained
from recipes import scaling
from tests.scaling import planted


def fitted(runs: list[Trained], seed: int = 0, **keys: object) -> isoflop.Law:
    return isoflop.fit(runs, Fit(**keys), 400, np.random.default_rng(seed))  # type: ignore[arg-type]


def test_constants_of_the_report_give_its_tokens_and_its_model() -> None:
    """0.29 and 0.53 as printed give 10.46T; the legend of Figure 3 gives 16.29T, and 5.71 FLOPs make 402B of 16.55T."""
    law = fitted(planted.of_report(0.0, np.random.default_rng(0)), tolerance=0.001)
    assert law.alpha.value == pytest.approx(0.537) and law.factor.value == pytest.approx(0.299)
    assert law.tokens.value == pytest.approx(16.29e12, rel=1e-3)
    assert law.flops_per_parameter_token == pytest.approx(5.71)
    assert law.parameters.value == pytest.approx(3.8e25 / 5.71 / 16.29e12, rel=1e-3)
    assert law.parameters.value == pytest.approx(402e9 * 16.55 / 16.29, rel=0.01)
    curvature = (
        0.06 * (3.8e25 / 6e18) ** -0.1
    )  # flatter than any budget: what departs by this factor costs a thousandth
    assert law.departure.value == pytest.approx(math.exp(math.sqrt(0.001 / curvature)))
    assert law.departure.low == pytest.approx(law.departure.high)


@pytest.mark.parametrize(("budgets", "sizes"), [(planted.FEW, 5), (config.REPORT_BUDGETS, 7)])
def test_intervals_hold_a_planted_law_as_often_as_they_say(budgets: list[float], sizes: int) -> None:
    """With five sizes at three budgets residuals have six degrees of freedom, and still 95 % are about 95 %."""
    held = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        law = isoflop.fit(planted.of_report(0.003, rng, budgets, sizes), Fit(), 200, rng)
        held.append(law.alpha.holds(0.537) and law.tokens.holds(0.299 * 3.8e25**0.537))
    assert 0.87 <= np.mean(held) <= 1


def test_a_formula_is_found_again_and_both_ways_agree() -> None:
    rng = np.random.default_rng(1)
    runs = planted.of_formula(0.001, rng, config.REPORT_BUDGETS, 7)
    law = fitted(runs, flops_per_parameter_token=6.0)
    found = parametric.fit(runs, 3.8e25, 6.0, 1e-3, 200, rng)
    known = {"E": planted.E, "A": planted.A, "a": planted.ALPHA, "B": planted.B, "b": planted.BETA}
    assert {name: one.holds(known[name]) for name, one in found.coefficients.items()} == dict.fromkeys(known, True)
    assert found.exponent.holds(planted.ALPHA / (planted.ALPHA + planted.BETA)) and not found.stuck
    best = planted.best_tokens(3.8e25)
    assert found.tokens.holds(best) and found.loss.holds(planted.formula(3.8e25 / 6 / best, best))
    assert law.alpha.holds(found.exponent.value) and "warning" not in parametric.summary(found, law.alpha)
    apart = replace(law.alpha, low=0.7, high=0.8)
    assert "exclude each other" in parametric.summary(found, apart)


def test_an_outlier_moves_squares_and_not_huber() -> None:
    rng = np.random.default_rng(2)
    runs = planted.of_formula(0.0005, rng, config.REPORT_BUDGETS, 7)
    runs[0] = replace(runs[0], loss=runs[0].loss + 0.5)
    found = [parametric.fit(runs, 3.8e25, 6.0, huber, 100, rng).exponent.value for huber in (1e-3, 1e3)]
    true = planted.ALPHA / (planted.ALPHA + planted.BETA)
    assert abs(found[0] - true) < 0.005 < abs(found[1] - true)


def test_a_minimum_at_an_end_is_refused_with_the_model_that_is_missing() -> None:
    rng = np.random.default_rng(0)
    good = planted.of_report(0.0, rng, planted.FEW, 5)
    few = planted.of_report(0.0, rng, [1e22], 5, shift=1 / 5)
    many = planted.of_report(0.0, rng, [3e22], 5, shift=5)
    with pytest.raises(ValueError) as error:
        fitted([*good, *few, *many])
    first, second = str(error.value).splitlines()
    largest, smallest = min(run.parameters for run in few), max(run.parameters for run in many)
    assert first.startswith("1e+22 FLOPs: the minimum is at the end of most tokens")
    assert f"add models below {largest:.3g} parameters, or give fit.without='[1e+22]'" in first
    assert second.startswith("3e+22 FLOPs: the minimum is at the end of fewest tokens")
    assert f"add models above {smallest:.3g} parameters" in second
    assert fitted([*good, *few, *many], without=[1e22, 3e22]).alpha.value == pytest.approx(0.537)
    hill = [replace(run, loss=10 - run.loss) for run in good[:5]]
    with pytest.raises(ValueError, match="1e\\+19 FLOPs: the parabola has no minimum .* add models on both sides"):
        fitted([*hill, *good[5:]])


def test_too_few_points_are_named() -> None:
    runs = planted.of_report(0.0, np.random.default_rng(0), planted.FEW, 5)
    with pytest.raises(ValueError, match="1e\\+21 FLOPs: runs with 3 different numbers of tokens .* a minimum takes 4"):
        fitted(runs[:-2])
    with pytest.raises(ValueError, match="fit: a power law takes 3 budgets, and there are 2; add runs of other FLOPs"):
        fitted(runs, without=[1e20])
    with pytest.raises(
        ValueError, match="fit.without=\\[2e\\+20\\]: no such budget; give some of 1e\\+19, 1e\\+20, 1e\\+21"
    ):
        fitted(runs, without=[2e20])
    with pytest.raises(ValueError, match="fit: 7 runs, and the parametric law takes 8"):
        parametric.fit(runs[:7], 1e25, 6.0, 1e-3, 100, np.random.default_rng(0))


def test_minima_that_are_unsure_or_off_the_law_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    unsure = fitted(planted.of_report(0.08, rng, planted.FEW, 9))
    assert any("the minimum is inside in" in text for text in unsure.warnings())
    runs = planted.of_report(0.0005, rng, planted.FEW, 9)
    shifted = [replace(run, tokens=run.tokens * 1.3) if run.flops == 1e20 else run for run in runs]
    assert any("scatter by" in text for text in fitted(shifted).warnings())
    assert fitted(runs, target_flops=1e22).warnings() == []
    assert fitted(runs).warnings() == ["the target is 4.6 decades beyond the largest budget, and the budgets span 2.0"]


def test_wrong_cells_are_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "name,flops,parameters,tokens,loss\n"
        "a,1e19,1e8,many,2.5\n"
        "\n"
        "b,1e19,-1e8,1e9,\n"
        "c,1e19,1e8\n"
        "d,1e19,1e8,1e9,inf\n"
    )  # fmt: skip
    with pytest.raises(ValueError) as error:
        observations.trained(Fit(input=str(path)))
    assert str(error.value).splitlines() == [
        f"fit.input={path}: cannot be used",
        f"  {path}:2, column tokens: 'many' is no finite number above 0; correct it, or take the line out",
        f"  {path}:4, column parameters: '-1e8' is no finite number above 0; correct it, or take the line out",
        f"  {path}:4, column loss: 'nothing' is no finite number above 0; correct it, or take the line out",
        f"  {path}:5: 3 cells under 5 columns; give one for each",
        f"  {path}:6, column loss: 'inf' is no finite number above 0; correct it, or take the line out",
    ]
    path.write_text("flops,tokens,tokens,loss\n")
    with pytest.raises(ValueError, match="has no column parameters, has the column tokens twice"):
        observations.trained(Fit(input=str(path)))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read .* give a CSV file in UTF-8"):
        observations.trained(Fit(input=str(path)))
    with pytest.raises(ValueError, match="fit.input=null: there is nothing to fit"):
        observations.trained(Fit())


def recorded(folder: Path, tokens: int, validated: int | None) -> str:
    """A run folder as training leaves it: 4,096 tokens in steps of 1,024."""
    model = {
        "name": "m",
        "layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "heads": 4,
        "kv_heads": 2,
        "vocab_size": 512,
    }
    schedule = {"total_tokens": 4096, "batch_tokens": 1024, "sequence_length": 128, "peak_lr": 1e-3}
    sources = {"web": {"weight": 3.0}, "code": {"weight": 1.0}}
    attempt = folder / "attempts/0000"
    attempt.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": model, "schedule": schedule, "data": {"sources": sources}})
    )
    lines = [{"kind": "start", "step": 0, "tokens": 0}]
    lines += [{"kind": "train", "step": n // 1024, "tokens": n} for n in range(1024, tokens + 1, 1024)]
    if validated is not None:
        line = {"kind": "validation", "step": validated // 1024, "tokens": validated, "loss": 5.5}
        lines.append(line | {"losses": {"web": 5.4, "code": 5.8}})
    (attempt / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_records_of_finished_runs_are_read_and_unfinished_ones_refused(tmp_path: Path) -> None:
    done = recorded(tmp_path / "done", 4096, 4096)
    (run,) = observations.trained(Fit(runs=[done]))
    model = config.Model("m", 2, 32, 64, 4, 2, 512)
    flops = 4096 * shapes.flops_per_token(model, 128)
    assert run == Trained(done, flops, shapes.parameters(model), 4096, 5.5)
    (layers,) = observations.trained(Fit(runs=[done], count="layers"))
    assert layers.parameters == shapes.non_embedding(model)
    half, unseen = recorded(tmp_path / "half", 2048, 2048), recorded(tmp_path / "unseen", 4096, None)
    with pytest.raises(ValueError) as error:
        observations.trained(Fit(runs=[half, unseen, done]))
    assert str(error.value).splitlines() == [
        f"fit.runs={half}: it has seen 2,048 of 4,096 tokens; let it finish, or leave it out: its rate has not come "
        "down",
        f"fit.runs={unseen}: no finite held-out loss stands at its end; train with held-out text "
        "(data.heldout_fraction), or leave it out",
    ]
    with pytest.raises(ValueError, match="fit.runs=.*nowhere: there is no such folder"):
        observations.trained(Fit(runs=[str(tmp_path / "nowhere")]))


def test_runs_of_nearly_equal_flops_are_of_one_budget() -> None:
    runs = [Trained("", flops, 1e8, 1e9, 3.0) for flops in (1.04e19, 1e19, 1.2e19, 0.99e19)]
    assert [len(group) for _, group in observations.budgets(runs, 0.1)] == [3, 1]


def test_the_recipe_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planted.of_report(0.002, np.random.default_rng(0), planted.FEW, 5)
    given = Fit(input=str(planted.write_runs(tmp_path / "runs.csv", runs)), target_flops=1e22)
    output, picture = tmp_path / "fit.json", tmp_path / "fit.svg"
    run = config.Scaling("fit", replications=100, output=str(output), picture=str(picture), fit=given)
    scaling.main(run)
    said = capsys.readouterr().out
    assert said.count("\n| 1e+") == 3 and "tokens(C) = A C^alpha: alpha 0.5" in said and "a / (a + b)" in said
    record = json.loads(output.read_text())
    assert record["alpha"]["low"] < record["alpha"]["value"] < record["alpha"]["high"]
    assert len(record["budgets"]) == 3 and record["parametric"]["E"]["value"] > 0
    assert picture.read_text().startswith("<?xml") and "IsoFLOP" not in said
    with pytest.raises(ValueError, match="picture=.*fit.pdf: give a file in a folder that is there"):
        scaling.main(replace(run, picture=str(tmp_path / "fit.pdf")))
    assert plots.draw_panels(tmp_path / "a.png", "t", isoflop.panels(fitted(runs))).read_bytes()[1:4] == b"PNG"
