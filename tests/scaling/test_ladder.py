"""The ladder: the report's budgets, rates and batches; layouts that are possible; files that the trainer accepts."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry
from llama31.config import Ladder
from llama31.plan import layout, memory, schedule, shapes
from llama31.planner import proposals, search
from llama31.scaling import family, ladder, scripts
from llama31.slurm import jobs
from recipes import scaling
from tests.processes import LIMIT_S

RUN = entry.read(config.Scaling, "scaling", ["task=ladder"])[0]
SITE = ladder.site_of(RUN.ladder, RUN.hardware, RUN.precision)


def test_runs_are_those_of_the_report() -> None:
    """Section 3.2.1: 6e18 to 1e22 FLOPs, 40M to 16B, warm-up of 2,000 steps, 2e-4 to 4e-4, cosine to 0.1 of the peak,
    250K to 4M tokens a step, one batch for each budget."""
    given = Ladder()
    made = ladder.rungs(given, SITE)
    groups = scripts.by_budget(made)
    assert [budget for budget, _ in groups] == config.REPORT_BUDGETS
    assert {made[0].name, made[-1].name} == {"6e18_40m", "1e22_16b"} and len({rung.name for rung in made}) == len(made)
    assert [made[0].schedule.peak_lr, made[-1].schedule.peak_lr] == [4e-4, 2e-4]
    assert [made[0].schedule.batch_tokens, made[-1].schedule.batch_tokens] == [262144, 4194304]
    for budget, group in groups:
        assert len(group) >= 6 and len({rung.schedule.batch_tokens for rung in group}) == 1
        expected = 0.299 * budget**0.537
        assert group[0].schedule.total_tokens > 1.5 * expected and group[-1].schedule.total_tokens < expected / 2
        for rung in group:
            plan = rung.schedule
            assert rung.flops == pytest.approx(budget, rel=1e-3) and plan.decay == "cosine"
            assert schedule.learning_rate(plan, 2000 * plan.batch_tokens) == pytest.approx(plan.peak_lr)
            assert schedule.learning_rate(plan, plan.total_tokens) == pytest.approx(0.1 * plan.peak_lr)


def test_a_part_of_the_budgets_gives_the_same_runs() -> None:
    whole = {rung.name: rung for rung in ladder.rungs(Ladder(budgets=[1e19, 1e20, 1e21]), SITE)}
    for budget in (1e19, 1e21):
        alone = ladder.rungs(Ladder(budgets=[budget]), SITE)
        assert alone == [rung for rung in whole.values() if rung.budget == budget] and alone


def test_every_layout_is_the_planners_and_ends_in_time() -> None:
    made = ladder.rungs(Ladder(), SITE)
    for rung in made:
        plan = schedule.stages(rung.schedule)
        assert not layout.problems(rung.model, rung.parallel, plan, rung.gpus, SITE.numbers)
        room = memory.Capacity(SITE.memory_gb)
        need, _ = layout.worst(rung.model, rung.parallel, plan, rung.parallel.dp or 1, SITE.numbers, room)
        assert need.total <= SITE.memory_gb * 1e9 and 0 < rung.hours <= 24
    asked = proposals.request(config.Plan(made[-1].model, gpus=made[-1].gpus, hardware=RUN.hardware))
    assert search.fastest(asked, 1)[0].parallel == made[-1].parallel  # recipes.plan says the same
    nodes, faster = ({one.name: one.nodes for one in of} for of in (made, ladder.rungs(Ladder(hours=12), SITE)))
    assert faster["1e21_439m"] == 4 * nodes["1e21_439m"]  # by the hours that are asked for
    assert faster["1e22_16b"] == nodes["1e22_16b"] == 64  # a step has 512 rows


def test_what_the_planner_cannot_lay_out_is_refused() -> None:
    one_head = config.Model("m", 1, 16, 32, 1, 1, 512)
    plan = config.Schedule(total_tokens=9, batch_tokens=1, sequence_length=1, peak_lr=1.0)
    with pytest.raises(config.ConfigError, match="gpus_per_node=2: no layout of m on 2 GPUs is accepted .* give fewer"):
        ladder.laid_out(one_head, plan, 2, SITE)
    with pytest.raises(config.ConfigError, match="ladder.device=H101: there is no such entry; give one of H100, "):
        ladder.site_of(Ladder(device="H101"), RUN.hardware, RUN.precision)


@pytest.mark.parametrize("parameters", [5e4, 1e6, *family.sizes(40e6, 16e9, 16)])
def test_shapes_have_the_size_that_they_are_named_for(parameters: float) -> None:
    model = family.model(parameters, 128256, 8192)
    assert shapes.non_embedding(model) == pytest.approx(parameters, rel=0.12)
    assert model.hidden_size % model.heads == 0 and model.head_dim % 2 == 0 and model.heads % model.kv_heads == 0
    assert 0.4 < model.hidden_size / model.layers / family.aspect(model.hidden_size) < 2.5


def test_sizes_are_named_in_short_and_impossible_ones_refused() -> None:
    assert [family.named(n) for n in (40e6, 132.6e6, 999.6e6, 1.46e9, 15e3)] == ["40m", "133m", "1b", "1.5b", "15k"]
    with pytest.raises(ValueError, match="no shape has 1,000 parameters .* as ladder.smallest and ladder.largest"):
        family.model(1e3, 128256, 8192)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"span": 1.1},
            "ladder.budgets=6e\\+18: 1 of 16 models reach .* and a minimum takes 4; give more ladder.sizes",
        ),
        ({"warmup_steps": 9000}, "ladder.budgets=6e\\+18: a model would end after .* steps .* 9,000 of them warm-up"),
        ({"budgets": []}, "ladder.budgets=\\[\\]: no budgets; give different numbers"),
        ({"largest": 1e6}, "ladder.largest=1000000.0: not above ladder.smallest; give more than 4e\\+07"),
        (
            {"largest_batch_flops": 6e18},
            "ladder.largest_batch_flops=6e\\+18: not above ladder.smallest_batch_flops; give",
        ),
        ({"smallest_batch": 250000}, "smallest_batch=250000: not a whole number of sequences .*; give 253952"),
        ({"largest_batch": 4000000}, "largest_batch=4000000: not a power of two times .*; give 4194304"),
    ],
)
def test_what_makes_no_ladder_is_named_with_a_remedy(keys: dict[str, object], said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        ladder.rungs(replace(Ladder(), **keys), SITE)  # type: ignore[arg-type]


def test_arguments_are_asked_for_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = Ladder(folder=str(tmp_path), budgets=[1e19])
    scaling.main(replace(RUN, ladder=given))
    assert capsys.readouterr().out.endswith(f"\nsbatch {tmp_path}/1e19.sh tokenizer=... data=...\n")
    with pytest.raises(
        config.ConfigError, match="ladder.arguments=foo=1: recipes.pretrain refuses them .foo=1: no such"
    ):
        scaling.main(replace(RUN, ladder=replace(given, arguments="foo=1")))


def test_files_are_what_the_trainer_and_slurm_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "data=own data.sources.web.input=x tokenizer=llama3 tokenizer.path=t"
    given = Ladder(folder=str(tmp_path / "a b"), arguments=words, dollars_per_gpu_hour=2)
    scaling.main(replace(RUN, ladder=replace(given, dry_run=True)))
    bill = capsys.readouterr().out
    assert not any(tmp_path.iterdir()) and re.search(
        r"\d+ runs: [\d,]+ GPU-hours of H100 .*, [\d,]+ dollars at 2 each", bill
    )
    scaling.main(replace(RUN, ladder=given))
    said = capsys.readouterr().out
    assert said.startswith(bill.rstrip()) and said.count("\nsbatch '") == 10  # the cost first, then what to submit
    made, home = ladder.rungs(given, SITE), tmp_path / "a b"
    assert {path.stem for path in (home / "conf").iterdir()} == {rung.name for rung in made}
    for rung in (made[0], made[-1]):
        arguments = ["--config-dir", str(home / "conf"), "--config-name", rung.name, *words.split()]
        run, warnings = entry.read(config.Pretrain, "pretrain", arguments, lambda run, gpus=rung.gpus: gpus)
        assert not warnings and (run.model, run.parallel, run.schedule) == (rung.model, rung.parallel, rung.schedule)
        assert run.folder == str(home / "runs" / rung.name) and run.optimizer.weight_decay == 0.1
        assert jobs.nodes(run, config.Job(nodes=rung.nodes)) == rung.nodes
    for budget, group in scripts.by_budget(made):
        script = home / f"{group[0].name.split('_')[0]}.sh"
        text = script.read_text()
        subprocess.run(["bash", "-n", script], check=True, timeout=LIMIT_S)
        assert f"--array=0-{len(group) - 1}\n" in text and f"--nodes={group[0].nodes} " in text, budget
        assert f"names=({' '.join(rung.name for rung in group)})" in text and words in text
