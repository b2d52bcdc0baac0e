"""Published runs, read and predicted: rows of public tables, their sources in the file beside this one."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry
from llama31.planner.validation import accuracy, fitting, published
from recipes import plan

RUNS = Path(__file__).with_name("published.csv")
GOALS = (0.05, 0.15, 0.06, 0.15)  # step time and memory, mean and worst


@pytest.fixture(scope="module")
def asked() -> config.Plan:
    return entry.compose(config.Plan, "plan", [f"validate={RUNS}"])


@pytest.fixture(scope="module")
def rows(asked: config.Plan) -> list[published.PublishedRun]:
    return published.read(RUNS, asked.models, asked.hardware)


def changed(folder: Path, run: str, **fields: str) -> Path:
    """A file with one row of the published ones, with other fields."""
    with RUNS.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == run)
    path = folder / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow({**row, **fields})
    return path


def read_one(path: Path, asked: config.Plan) -> published.PublishedRun:
    (row,) = published.read(path, asked.models, asked.hardware)
    return row


def test_predictions_hold_on_published_rows(asked: config.Plan, rows: list[published.PublishedRun]) -> None:
    mean = accuracy.averages(accuracy.results(rows, asked.hardware))
    assert all(value is not None and value < limit for value, limit in zip(mean.values(), GOALS)), mean


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"vp": "5.0", "tp": "4.", "gpus": "64.0"}, True),
        ({"gpus": "?", "gpu": "NVIDIA H100 SXM", "model": "Llama-3.1-70B-Instruct", "precision": "bfloat16"}, True),
        ({"step_s": "", "gpu": "DGX-H100"}, True),
        ({"gpu": "H100 PCIe"}, False),
    ],
)
def test_fields_may_be_spelled_as_others_do(
    fields: dict[str, str], same: bool, asked: config.Plan, tmp_path: Path
) -> None:
    plain = {"vp": "5", "tp": "4", "gpus": "64", "tok_s_gpu": "1,000.5", "pp": "4", "cp": "2", "dp": "2", "seq": "8192"}
    plain |= {"gbs": "128", "mbs": "1", "step_s": str(128 * 8192 / 64 / 1000.5), "model": "70B", "precision": "bf16"}
    first = read_one(changed(tmp_path, "DGXC2412-70B-bf16-64", **plain), asked)
    other = read_one(changed(tmp_path, "DGXC2412-70B-bf16-64", **{**plain, **fields}), asked)
    assert (other.job == first.job) is same and other.averaged is same and first.averaged
    assert other.step_s == pytest.approx(first.step_s or 0) and other.tokens_per_s == 1000.5


def test_which_rows_are_averaged(rows: list[published.PublishedRun]) -> None:
    assert {row.id: row.reason for row in rows if not row.averaged} == {
        "L3T4-2": "not published: vp",
        "NeMoLS-64k": "not published: gbs",
        "MB2511-8B-B200-fp8": "B200 is predicted, not averaged",
    }
    assert [row.line for row in rows] == list(range(2, 22))


def test_what_a_source_leaves_open_counts_as_filled(tmp_path: Path, asked: config.Plan) -> None:
    row = read_one(changed(tmp_path, "L3T4-2", vp="?", recompute="?"), asked)
    assert row.averaged and row.device == "H100" and row.job is not None
    assert row.job.vpp == 4  # 126 layers, embedding and loss: 8 to a stage, two to a chunk


def test_what_is_left_open_follows_from_the_rest(tmp_path: Path, asked: config.Plan) -> None:
    """Batch of 128 rows on TP 4, PP 4, CP 2, DP 2."""
    for fields in ({"gbs": "?"}, {"dp": "?"}, {"cp": "?"}, {"tp": "?"}, {"dp": "?", "cp": "2", "gbs": "?"}):
        job = read_one(changed(tmp_path, "DGXC2412-70B-bf16-64", **fields), asked).job
        assert job is not None and (job.tp, job.pp, job.cp, job.dp) == (4, 4, 2, 2)
        assert job.micro_batches == pytest.approx(64, abs=1)
    row = read_one(changed(tmp_path, "DGXC2412-70B-bf16-64", dp="", tp="?"), asked)
    assert (row.job, row.reason) == (None, "not published: dp")


def test_a_device_that_nobody_described_is_listed(tmp_path: Path, asked: config.Plan) -> None:
    row = read_one(changed(tmp_path, "MB2511-8B-B200-fp8", gpu="MI300X"), asked)
    assert row.job is None and row.reason.startswith("line 2, column gpu: no such device")
    shown = accuracy.tables(accuracy.results([row], asked.hardware), [])
    assert "MI300X" not in shown and "column gpu" in shown and "0 of 1 rows are averaged" in shown


def test_some_layers_of_a_model_and_its_other_names(tmp_path: Path, asked: config.Plan) -> None:
    row = read_one(changed(tmp_path, "DGXC2412-405B-7L-fp8-32", model="Llama-3.1-405B-21L"), asked)
    assert row.job is not None and (row.job.model.layers, row.family) == (21, "405B")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seq": "8k"}, "line 2, column seq: '8k': no whole number above 0"),
        ({"model": "9B"}, "line 2, column model: '9B': no such model; give one of 1b, 3b, 405b"),
        ({"model": "8B-40L"}, "line 2, column model: '8B-40L': 8b has 32 layers"),
        ({"precision": "int4"}, "line 2, column precision: 'int4'"),
        ({"step_s": "-1"}, "line 2, column step_s: '-1': no number above 0"),
        ({"mem_gib": "nan"}, "line 2, column mem_gib: 'nan'"),
        ({"gpus": "9"}, "line 2, column dp: '4': tp x pp x cp x dp = 8, and gpus = 9"),
        ({"gbs": "127"}, "line 2, column gbs: '127': no multiple of mbs x dp = 4"),
        ({"vp": "5"}, "line 2, column vp: '5': chunks are interleaved over stages, and pp is 1"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, asked: config.Plan, fields: dict[str, str], said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        read_one(changed(tmp_path, "DGXC2409-8B-bf16-8", **fields), asked)
    assert said in str(caught.value) and len(caught.value.issues) == 1


def test_wrong_files_are_named(tmp_path: Path, asked: config.Plan) -> None:
    path = tmp_path / "runs.csv"
    for content, said in (
        ("id,model\n", "line 1 has no column gpu, gpus"),
        (",".join(published.COLUMNS) + "\n", "it holds no rows"),
        (",".join(published.COLUMNS) + "\nx,8B\n", "line 2, column id: 'x': it has 2 fields, and the first line 19"),
    ):
        path.write_text(content)
        with pytest.raises(config.ConfigError) as caught:
            published.read(path, asked.models, asked.hardware)
        assert said in str(caught.value)


def test_a_family_is_predicted_by_numbers_that_have_not_seen_it(
    asked: config.Plan, rows: list[published.PublishedRun]
) -> None:
    """However slow its runs are said to be, what is predicted of them stays as it was."""
    slower = [
        dataclasses.replace(row, step_s=2 * row.step_s) if row.family == "70B" and row.step_s else row for row in rows
    ]
    before, after = (fitting.families_left_out(given, asked.hardware) for given in (rows, slower))
    assert [one.family for one in before] == ["8B", "70B", "405B", "Llama 2", "8B", "70B", "405B"]
    for one, other in zip(before, after):
        if one.family == "70B":
            assert [1 + error for error in one.errors] == pytest.approx([2 * (1 + error) for error in other.errors])
        else:
            assert one.errors != other.errors


def test_planted_numbers_are_fitted(asked: config.Plan, rows: list[published.PublishedRun]) -> None:
    """Step times of a machine with slower products and more exposed messages are predicted again after a fit."""
    stacks = asked.hardware.stacks
    planted = dataclasses.replace(stacks["megatron"], products_bf16=0.65, products_fp8=0.55, tp_exposed=0.45)
    machine = dataclasses.replace(asked.hardware, stacks={**stacks, "megatron": planted})
    known = [one for one in accuracy.results(rows, machine) if fitting.fitted(one.row, "megatron")]
    measured = [dataclasses.replace(one.row, step_s=one.step_s) for one in known]
    before, after = (
        [abs(one.step_error or 0) for one in accuracy.results(measured, hardware)]
        for hardware in (asked.hardware, fitting.fit(measured, asked.hardware, "megatron"))
    )
    assert max(after) < 0.02 and max(before) > 0.1


def test_recipe_writes_the_errors(tmp_path: Path, asked: config.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "errors.json"
    plan.main(dataclasses.replace(asked, output=str(output)))
    shown = capsys.readouterr().out
    assert "17 of 20 rows are averaged" in shown and "| megatron | Llama 2 | 2 |" in shown
    content = json.loads(output.read_text())
    assert list(content) == ["step_time_mape", "step_time_worst", "memory_mape", "memory_worst", "rows"]
    row = next(row for row in content["rows"] if row["id"] == "MBmem-tp8")
    assert row["step_s"]["predicted"] == pytest.approx(sum(row["seconds_by_cause"].values()))
    assert row["memory_gib"]["error"] == pytest.approx(row["memory_gib"]["predicted"] / 50.2 - 1)
    assert row["tokens_per_s_gpu"]["predicted"] == pytest.approx(32 * 4096 / 32 / row["step_s"]["predicted"])
