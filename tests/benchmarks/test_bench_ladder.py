"""The small ladder: what is planned, and what is said of runs held out; nothing is trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import small_ladder
from llama31.command import entry
from llama31.config import Pretrain
from llama31.scaling import ladder
from llama31.scaling.observations import Trained
from tests.scaling import planted


@pytest.mark.parametrize("scale", [small_ladder.WHOLE, small_ladder.TRIAL])
def test_three_budgets_have_five_sizes_at_least(scale: small_ladder.LadderScale, tmp_path: Path) -> None:
    made = ladder.rungs(small_ladder.planned(tmp_path, scale), small_ladder.any_site())
    sizes = [sum(rung.budget == budget for rung in made) for budget in scale.budgets]
    assert len(sizes) == 3 and min(sizes) >= 5


def test_runs_held_out_are_the_one_that_the_law_says_and_a_larger_one(tmp_path: Path) -> None:
    names = small_ladder.held_out(tmp_path, small_ladder.WHOLE, 3e6)
    conf = ["--config-dir", str(tmp_path / "ladder/conf"), *small_ladder.text_of(tmp_path)]
    tokens = [
        entry.read(Pretrain, "pretrain", ["--config-name", name, *conf], lambda _: 1)[0].schedule.total_tokens
        for name in names
    ]
    assert tokens[0] > 1.3 * tokens[1] and tokens[0] == pytest.approx(3e6, rel=0.25)


def test_the_formula_stands_beside_what_was_measured() -> None:
    values = {"E": planted.E, "A": planted.A, "a": planted.ALPHA, "B": planted.B, "b": planted.BETA}
    best = planted.best_tokens(1e21)
    runs = [
        Trained("", 1e21, 1e21 / 6 / tokens, tokens, planted.formula(1e21 / 6 / tokens, tokens))
        for tokens in (best, best / 3)
    ]
    said = small_ladder.compared({"parametric": {name: {"value": value} for name, value in values.items()}}, runs)
    assert said.count("+0.0%") == 2 and said.endswith("the model that the law proposes is the better one")
    assert "the larger model is the better one" in small_ladder.compared(
        {"parametric": {name: {"value": value} for name, value in values.items()}}, runs[::-1]
    )
