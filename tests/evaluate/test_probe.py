"""The data-value probe: its arms, its statistics, and that it finds the data that help."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.command.validate import validate
from llama31.config import ConfigError, Job
from llama31.evaluate import probe
from llama31.runs import metrics
from llama31.slurm import bills, jobs
from tests.conftest import Command

GIVEN = [
    "name=worth", "init_from=runs/half", "candidates=[books,web]", "seeds=[3,5]", "model=tiny", "schedule=probe",
    "data=own", "tokenizer=demo", "data.sources.code.weight=1", "data.sources.math.weight=3",
    "data.sources.books.weight=9", "data.sources.web.weight=9",
]  # fmt: skip


def probed(*overrides: str) -> config.Probe:
    return entry.compose(config.Probe, "probe", [*GIVEN, *overrides])


def test_arms_are_the_default_data_and_each_candidate_with_each_seed() -> None:
    run = probed()
    assert [(arm.number, arm.candidate, arm.seed, str(arm.folder)) for arm in probe.arms(run)] == [
        (0, None, 3, "runs/worth/arms/default-seed-3"),
        (1, None, 5, "runs/worth/arms/default-seed-5"),
        (2, "books", 3, "runs/worth/arms/with-books-seed-3"),
        (3, "books", 5, "runs/worth/arms/with-books-seed-5"),
        (4, "web", 3, "runs/worth/arms/with-web-seed-3"),
        (5, "web", 5, "runs/worth/arms/with-web-seed-5"),
    ]


def test_shares() -> None:
    """30 % candidate, and 70 % of what the default data are: code to math as 1 to 3."""
    run = probed()
    assert probe.weights(run, None) == {"code": 1, "math": 3, "books": 0, "web": 0}
    mixed = probe.weights(run, "books")
    total = sum(mixed.values())
    shares = {name: weight / total for name, weight in mixed.items()}
    assert shares == pytest.approx({"code": 0.175, "math": 0.525, "books": 0.3, "web": 0})


def test_an_arm_is_a_run_of_its_own() -> None:
    run = probed("resume=none", "optimizer.beta1=0.8")
    default, _, books = (probe.pretraining(run, arm) for arm in probe.arms(run)[:3])
    assert type(books) is config.Pretrain and books.folder == "runs/worth/arms/with-books-seed-3"
    assert (books.resume, books.init_from, books.init_optimizer) == ("auto", "runs/half", True)
    assert books.data.seed == default.data.seed == 3 and books.optimizer.beta1 == 0.8
    assert books.data.sources["books"].weight == pytest.approx(4 * 3 / 7)
    assert default.data.sources["books"].weight == 0 and run.data.sources["books"].weight == 9
    names = ("name", "folder", "data")
    same = [dataclasses.replace(one, **{name: getattr(books, name) for name in names}) for one in (default, books)]
    assert same[0] == same[1]
    assert validate(books, 1) == []
    assert (books.schedule.decay, books.schedule.final_lr, books.schedule.total_tokens) == ("linear", 0, 40_000_000_000)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["init_from=null", "init_optimizer=false"],
            "init_from=null: a probe goes on from a half-trained checkpoint; give init_from=FOLDER",
        ),
        (["candidates=[]"], "candidates=[]: there is nothing to judge"),
        (["candidates=[wiki]"], "candidates=wiki: no source of the data; give some of code, math, books, web"),
        (["candidates=[books,books]"], "one of them stands there twice"),
        (["candidates=[code,math,books,web]"], "there is no default data to compare with"),
        (["share=1"], "share=1.0: nothing of the default data is left; give less than 1"),
        (["share=0"], "share=0.0: out of range; give a number above 0"),
        (["seeds=[]"], "seeds=[]: nothing would be annealed"),
        (["arm=6"], "arm=6: there are 6 arms, from 0; give at most 5"),
        (["data.mixture=[{from_tokens: 9, weights: {code: 1}}]"], "data.mixture=1: weights that change on the way"),
        (["gates.every_tokens=9"], "gates.every_tokens=9: an annealing ends with its tokens"),
    ],
)
def test_impossible_probes(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(probed(*overrides), 1)
    assert said in str(caught.value) and len(caught.value.issues) == 1


def test_missing_files_are_named_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no demo has been packed
    run = probed(f"init_from={tmp_path}", f"tasks.arc.path={tmp_path}/arc.jsonl")
    with pytest.raises(ConfigError) as caught:
        inputs.check(run)
    keys = {issue.key for issue in caught.value.issues}
    assert keys == {"tokenizer.path", "data.folder", "init_from", "tasks.arc.path"}


# --- results ---


def planted(run: config.Probe, losses: dict[str | None, Sequence[float]], **changed: Any) -> None:
    """Results of some arms: `losses` of code by candidate and seed; math is 1 worse with the default, always."""
    for arm in probe.arms(run):
        by_seed = losses.get(arm.candidate, ())
        index = run.seeds.index(arm.seed)
        if index < len(by_seed):
            arm.folder.mkdir(parents=True)
            loss = by_seed[index]
            record: dict[str, Any] = {
                "losses": {"code": loss, "math": loss + 1, "books": 2.0},
                "tasks": {"arc": loss / 10},
            }
            record |= {"settings": {**probe.settings(run, "half"), **changed}}
            (arm.folder / probe.RESULT).write_text(json.dumps(record))


@pytest.fixture
def run(tmp_path: Path) -> config.Probe:
    return probed(f"folder={tmp_path}", "seeds=[1,2,3,4]")


def test_differences_are_taken_between_arms_of_one_seed(run: config.Probe) -> None:
    planted(run, {None: [3.0, 4.0, 5.0, 6.0], "books": [2.9, 3.7, 4.9, 5.7], "web": [3.1]})
    result = probe.collect(run)
    assert result["missing"] == ["with-web-seed-2", "with-web-seed-3", "with-web-seed-4"]
    code = result["candidates"]["books"]["code"]
    assert code["differences"] == pytest.approx([-0.1, -0.3, -0.1, -0.3]) and code["seeds"] == [1, 2, 3, 4]
    assert code["difference"] == pytest.approx(-0.2) and (code["default"], code["with"]) == pytest.approx((4.5, 4.3))
    # by hand: s = 0.2 / sqrt(3), t(0.975, 3) = 3.1824
    assert code["ci95"] == pytest.approx(3.182446 * 0.2 / 3**0.5 / 2)
    both = result["candidates"]["books"][probe.DEFAULT]
    assert (both["default"], both["difference"]) == pytest.approx((4.5 + 3 / 4, -0.2))
    score = result["candidates"]["books"]["arc (score)"]
    assert score["difference"] == pytest.approx(-0.02)
    assert result["candidates"]["web"]["code"]["ci95"] is None
    said = {
        name: {f: probe.shows(f, one) for f, one in figures.items()} for name, figures in result["candidates"].items()
    }
    assert said["books"] == {
        "default data": "better", "arc (score)": "worse", "code": "better", "math": "better", "books": "no difference",
    }  # fmt: skip
    assert set(said["web"].values()) == {"one seed: no interval"}
    text = probe.table(result)
    assert "| books | code | 4.5000 | 4.3000 | -0.2000 | ± 0.1837 | 4 | better |" in text
    assert "| web | code | 3.0000 | 3.1000 | +0.1000 |  | 1 | one seed: no interval |" in text
    assert text.endswith("Not finished: with-web-seed-2, with-web-seed-3, with-web-seed-4.")
    assert probe.intervals(result)["code"]["books"] == (pytest.approx(-0.2), pytest.approx(0.1837386))


def test_finished_arms_are_not_done_again(run: config.Probe) -> None:
    planted(run, {None: [3.0, 4.0, 5.0, 6.0], "web": [3.1]})
    assert probe.array(probe.remaining(run)) == "4-7,9-11"
    one = dataclasses.replace(run, arm=5)
    assert [arm.number for arm in probe.remaining(one)] == [5] and probe.folder_of(one) == probe.arms(run)[5].folder
    assert probe.remaining(dataclasses.replace(run, arm=0)) == [] and str(probe.folder_of(run)) == run.folder
    probe.refuse_others(run, "half")
    with pytest.raises(
        ValueError, match=r"default-seed-1 was annealed with another init_from \(init_from was half, now"
    ):
        probe.refuse_others(run, "other")
    with pytest.raises(ValueError, match=r"with another share \(share was 0.3, now 0.5\); give another name="):
        probe.refuse_others(dataclasses.replace(run, share=0.5), "half")
    (probe.arms(run)[0].folder / probe.RESULT).write_text("{")
    with pytest.raises(ValueError, match="delete it to measure the arm again"):
        probe.collect(run)


def test_the_picture_shows_the_intervals(tmp_path: Path) -> None:
    from llama31.runs import plots

    panels = {"code": {"books": (-0.2, 0.1), "web": (0.1, None)}, "math": {"books": (0.2, 0.1)}}
    assert plots.draw_intervals(tmp_path / "p.png", "title", panels, "nats").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


# --- jobs ---


def test_an_array_of_the_arms_that_remain(run: config.Probe) -> None:
    planted(run, {None: [3.0, 4.0, 5.0, 6.0]})
    words = [*GIVEN, f"folder={run.folder}", "seeds=[1,2,3,4]"]
    step = jobs.single("probe", words, Job(recipe="probe"))
    said = jobs.command(step, Job(recipe="probe"))
    assert "--array=4-11" in said and f"--output={run.folder}/logs/%j.out" in said and said[-len(words) - 1 :] == [
        str(jobs.SCRIPTS / "probe.sh"), *words,
    ]  # fmt: skip
    assert str(bills.training(step.run, 8, 0.4)).startswith("8 arms, each 8 GPUs, 40B tokens")
    planted(dataclasses.replace(run, candidates=["books"]), {"books": [1.0] * 4})
    planted(dataclasses.replace(run, candidates=["web"]), {"web": [1.0] * 4})
    with pytest.raises(ValueError, match="every arm is finished"):
        jobs.command(step, Job(recipe="probe"))
    task = jobs.single("probe", [*words, "arm=5"], Job(recipe="probe"))  # what a task of the array asks
    assert f"RUN_FOLDER={run.folder}/arms/with-books-seed-2" in jobs.facts(task, Job(recipe="probe"))


def test_dry_run(quick: Command) -> None:
    result = quick("-m", "recipes.submit", "recipe=probe", "dry_run=true", *GIVEN, check=True)
    assert "--array=0-5" in result.stdout and "slurm/probe.sh name=worth" in result.stdout
    assert "# probe: 6 arms, each 8 GPUs, 40B tokens" in result.stdout


# --- the real thing ---

CONSONANTS, VOWELS = "bdfgklmn", "aeiou"


def texts(order: Sequence[str], count: int, seed: int) -> list[str]:
    """Words of syllables; which follow each other depends on `order`."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        at, said = int(random.integers(len(order))), []
        for _ in range(60):
            said.append(order[at])
            at = (at + int(random.integers(1, 3))) % len(order)
        result.append(" ".join(said))
    return result


@pytest.mark.torch
def test_data_like_the_text_that_counts_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`goal` is held out and never drawn, `good` is text of its kind, `same` is more of the default data."""
    from llama31.parallel import mesh
    from llama31.tokens import pack
    from recipes import probe as recipe
    from tests.parallel.training import fit

    random = np.random.default_rng(0)
    words = [c + v for c in CONSONANTS for v in VOWELS]
    plain, other = random.permutation(words).tolist(), random.permutation(words).tolist()
    written = {"plain": (plain, 1), "same": (plain, 2), "goal": (other, 3), "good": (other, 4)}
    for name, (order, seed) in written.items():
        lines = [json.dumps({"text": text}) for text in texts(order, 150, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = {name: config.Source(input=str(tmp_path / f"{name}.jsonl")) for name in written}
    sources["goal"].weight = 0
    vocabulary = config.Tokenizer(kind="bpe", path=str(tmp_path / "words"), vocab_size=560)
    data = config.Data(folder=str(tmp_path / "data"), sources=sources, heldout_fraction=0.1, workers=1)
    pack.train_tokenizer(data, vocabulary)
    for name in sources:
        pack.pack(data, name, vocabulary)
    (tmp_path / "task.jsonl").write_text(json.dumps({"query": "ba", "choices": ["be", "bi"], "gold": 0}))
    run = config.Probe(
        name="worth",
        folder=str(tmp_path / "worth"),
        init_from=str(tmp_path / "half"),
        init_optimizer=True,
        candidates=["good", "same"],
        seeds=[1, 2, 3],
        tasks={"mine": config.Task(str(tmp_path / "task.jsonl"))},
        model=config.Model("small", 1, 32, 64, 2, 1, vocab_size=560, init_std=0.1),
        precision=config.Precision(params="fp32"),
        parallel=config.Parallel(micro_batch=8),
        schedule=config.Schedule(16 * 512, 512, 64, peak_lr=3e-3, decay="linear"),
        validation=config.Validation(tokens=512),
        preflight=config.Preflight(enabled=False),
        log=config.Log(progress=False),
        data=data,
        tokenizer=vocabulary,
    )
    half = probe.pretraining(run, probe.arms(run)[0])
    half.schedule.decay, half.init_from, half.init_optimizer, half.folder = (
        "constant",
        None,
        False,
        str(tmp_path / "half"),
    )
    fit(half)
    mesh.close()

    run.schedule.decay = "linear"
    recipe.main(dataclasses.replace(run, stop_after_steps=2))  # stopped: no other arm begins, nothing is put together
    (first,) = (tmp_path / "worth/arms").iterdir()
    assert first.name == "default-seed-1" and not (first / probe.RESULT).exists()
    recipe.main(dataclasses.replace(run, arm=3))
    assert not (tmp_path / "worth/probe.json").exists() and len(list((tmp_path / "worth/arms").iterdir())) == 2
    recipe.main(run)
    result = json.loads((tmp_path / "worth/probe.json").read_text())
    assert result["missing"] == []
    goal = {name: figures["goal"] for name, figures in result["candidates"].items()}
    assert goal["good"]["difference"] < -5 * goal["good"]["ci95"] < 0 and probe.shows("goal", goal["good"]) == "better"
    assert abs(goal["same"]["difference"]) < abs(goal["good"]["difference"]) / 5
    assert result["candidates"]["good"]["mine (score)"]["with"] in (0, 1 / 3, 2 / 3, 1)
    assert (tmp_path / "worth/probe.png").exists() and "| good | goal |" in (tmp_path / "worth/probe.md").read_text()
    attempts = sorted((tmp_path / "worth/arms").glob("*/attempts/*"))
    assert len(attempts) == 9 + 1  # one arm went on where it stopped, one that was there was not done again
    steps = [line["step"] for line in metrics.read(first) if line["kind"] == "train"]
    assert steps == list(range(1, 17))
    capsys.readouterr()
    recipe.main(dataclasses.replace(run, collect=True))
    assert "| good | goal |" in capsys.readouterr().out
    assert sorted((tmp_path / "worth/arms").glob("*/attempts/*")) == attempts
