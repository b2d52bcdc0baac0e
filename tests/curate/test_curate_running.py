"""All stages, files to token files: killed and begun again, on one task and on four, with other keys, with damage."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datatrove.io import get_datafolder

from llama31 import config
from llama31.command import entry, inputs
from llama31.curate.heuristics import token_counts
from llama31.curate.outcome import costs
from llama31.curate.running import blocks, folder, ledger, local, stages, tasks
from llama31.tokens.indexed import IndexedReader
from tests.conftest import ROOT
from tests.curate import debian
from tests.curate.curated import composed, outputs, run, texts
from tests.processes import LIMIT_S, search_path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some pages of LibreOffice's help in two languages, one of them without text."""
    target = tmp_path_factory.mktemp("pages")
    for package in ("libreoffice-help-en-us", "libreoffice-help-de"):
        for number, path in enumerate(debian.files(package, limit=40)):
            shutil.copy2(path, target / f"{package}-{number:02d}.html")
    (target / "empty.html").write_text("<html><body></body></html>")
    return target


def words(pages: Path, target: Path, *further: str) -> list[str]:
    given = ["name=x", f"folder={target}", f"sources.help.input={pages}", "sources.help.format=html"]
    given += ["tokenizer.kind=bpe", f"tokenizer.path={target}/bpe", "tokenizer.vocab_size=700", "report.samples=2"]
    return [*given, *further]


@pytest.fixture(scope="module")
def done(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without disturbance on four tasks."""
    target = tmp_path_factory.mktemp("done")
    run(words(pages, target, "tasks=4"))
    return target


def test_every_page_arrives_or_is_counted(pages: Path, done: Path) -> None:
    blocks = [ledger.read(done, "extract", rank)["blocks"] for rank in range(4)]  # type: ignore[index]
    read, kept = (sum(one[number]["documents"] for one in blocks) for number in (0, 1))
    empty = sum(one[1]["counts"].get("empty", 0) for one in blocks)
    assert read == 81 and empty >= 1 and read == kept + empty == len(texts(done, "extract")) + empty


def test_words_of_all_tasks_are_what_documents_are_compared_with(done: Path) -> None:
    (counted,) = ledger.read(done, "token_counts", 0)["left"]  # type: ignore[index]
    merged = token_counts.read(get_datafolder(str(done / "token_counts/merged")), token_counts.MERGED)
    parts = [
        token_counts.read(get_datafolder(str(done / "extract/token_counts")), f"{rank:05d}.npz") for rank in range(4)
    ]
    for language, found in merged.items():
        assert found.sum() == sum(part[language].sum() for part in parts if language in part) > 0
    assert {"en", "de"} <= merged.keys() and "merged" in str(counted)
    names = [block["name"] for block in ledger.read(done, "filter", 0)["blocks"]]  # type: ignore[index]
    assert names.index("Divergence") < names.index("Repeated content")


def test_token_files_hold_the_documents_of_all_tasks(done: Path) -> None:
    packed = {path.parent.name: json.loads(path.read_text()) for path in done.glob("tokens/*/packed.json")}
    assert {"general-en", "general-de"} <= packed.keys()
    documents = sum(one[split]["documents"] for one in packed.values() for split in ("train", "heldout"))
    assert documents == len(texts(done, "lines")) > 40
    for name, one in packed.items():
        reader = IndexedReader(done / "tokens" / name / "train")
        assert len(reader) == one["train"]["documents"] and reader.tokens.size == one["train"]["tokens"]


def test_one_task_gives_the_same_documents(pages: Path, done: Path, tmp_path: Path) -> None:
    run(words(pages, tmp_path, "tasks=1"))
    assert texts(tmp_path, "extract") == texts(done, "extract")
    splits = [f"{name}/{split}" for name in ("general-en", "general-de") for split in ("train", "heldout")]
    for split in splits:
        one, four = (IndexedReader(target / "tokens" / split) for target in (tmp_path, done))
        assert len(one) == len(four)


def test_killed_at_random_and_begun_again(pages: Path, done: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.curate", *words(pages, tmp_path, "tasks=4", "workers=2")]
    environment = {**os.environ, "PYTHONPATH": search_path()}
    generator, kills = random.Random(3), 0
    for _ in range(2):
        with (tmp_path / "log").open("ab") as log:
            started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            time.sleep(generator.uniform(1.0, 5.0))
            kills += started.poll() is None
            started.send_signal(signal.SIGKILL)
            started.wait()
    ended = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr.decode()
    assert kills and outputs(tmp_path) == outputs(done)


def test_what_is_damaged_is_made_again_and_what_hangs_on_it_stays(
    pages: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    before, shard = outputs(tmp_path), tmp_path / "extract/documents/00002.jsonl.zst"
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "tokens/general-de/train.idx").unlink()
    given = words(pages, tmp_path, f"tokenizer.path={done}/bpe")  # as it was begun
    run(given)
    said = capsys.readouterr().out
    assert f"extract, task 2: {shard} has" in said and "train.idx is missing" in said
    assert outputs(tmp_path) == before


def test_a_task_refuses_input_that_is_not_what_was_written(pages: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    made = composed(words(pages, tmp_path, f"tokenizer.path={done}/bpe"))
    known = {stage.name: stage for stage in stages.stages(made, folder.opened(made).tasks)}
    shard = tmp_path / "lines/documents/00001.jsonl.zst"
    shard.write_bytes(b"x" * shard.stat().st_size)
    ledger.manifest(tmp_path, "tokenize", 1).unlink()
    with pytest.raises(config.RunError, match="other content than was written; run lines again"):
        tasks.execute(made, known["tokenize"], 1, known)
    assert tasks.execute(made, known["tokenize"], 0, known).was_done


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ("extraction.technical_marks=5", "extraction.technical_marks=5: .* was made with 3; give that, or overwrite"),
        ("tasks=2", "tasks=2: .* has 4 shards"),
        ("tokens.bos=false", "tokens.bos=false: .* was made with true"),
        ("sources.more.input=/tmp", "sources.more.input=/tmp: .* was made without it; leave it out, or overwrite=true"),
    ],
)
def test_another_config_on_the_same_folder_is_refused(further: str, said: str, pages: Path, done: Path) -> None:
    given = [further, "sources.more.format=html"] if "more" in further else [further]
    with pytest.raises(ValueError, match=said):
        folder.opened(composed(words(pages, done, *given)))


def test_other_files_are_refused_and_taken_over(pages: Path, tmp_path: Path) -> None:
    mine, target = tmp_path / "pages", tmp_path / "target"
    shutil.copytree(pages, mine)
    run(words(mine, target, "tasks=2", "tokens.enabled=false"))
    (mine / "another.html").write_text("<html><body><p>Another page, and some text on it.</p></body></html>")
    given = words(mine, target, "tokens.enabled=false")
    with pytest.raises(ValueError, match="sources.help.input=.*: its files are not those"):
        folder.opened(composed(given))
    before = len(texts(target, "extract"))
    run([*given, "overwrite=true"])
    assert len(texts(target, "extract")) == before + 1


TEXT = ("sources.t.format=jsonl", "tokens.enabled=false", "dry_run=true")


def test_every_stage_has_a_rate_in_the_bill(tmp_path: Path) -> None:
    given = ["cited.model=no.bin", "best.score=cited", "minhash.cluster_tasks=2", "minhash.cluster_rounds=2"]
    given += ["sources.t.input=x", "sources.t.format=jsonl", "language.model=no.bin", "knowledge.model=no.bin"]
    made = composed(words(tmp_path, tmp_path, *given))
    known = stages.stages(made, 600)
    asked = costs.models(made.language, made.cited, made.encoders, made.knowledge, made.minhash)
    size = costs.PageBytes(2e9, 1e9)
    assert asked == costs.Models(True, 2, 0)
    there = {"help": {"bytes": 2_000_000_000, "packed": 0}, "t": {"bytes": 400_000_000, "packed": 200_000_000}}
    assert costs.input_bytes(made.sources, there) == size
    (tmp_path / "two").mkdir()
    for name in ("a.jsonl.zst", "b.jsonl"):
        (tmp_path / "two" / name).write_bytes(b"12345")
    found = folder.opened(composed(["name=x", f"folder={tmp_path}", f"sources.t.input={tmp_path}/two", *TEXT])).inputs
    assert costs.input_bytes(made.sources, found) == costs.PageBytes(0, 25)
    sets = {"help": config.PageSource(format="dataset"), "t": config.PageSource(format="parquet")}  # Arrow as it is
    assert costs.input_bytes(sets, there) == costs.PageBytes(0, 2e9 + 1.6e9)
    hours = {stage.name: costs.core_hours(stage.name, size, asked) for stage in known}
    assert {*hours} == {*blocks.BUILDERS, "minhash_round_1", "minhash_round_2"} - {"minhash_round"}
    assert all(value > 0 for value in hours.values())
    # A byte of text takes what 5.6 of HTML do, but for reading it; and what an encoder takes, all of the rest is not.
    html = costs.PageBytes(7.6e9)
    assert hours["filter"] == pytest.approx(costs.core_hours("filter", html, asked))
    best = config.DocumentDeduplication(keep="best", score="cited")
    copies = costs.models(made.language, made.cited, {}, made.knowledge, best)
    assert copies.copies and costs.core_hours("filter", size, copies) > hours["filter"]
    assert hours["extract"] < 0.6 * costs.core_hours("extract", html, asked)
    knowledge = config.KnowledgeClasses(str(tmp_path))
    encoders = costs.models(made.language, made.cited, {"code": config.EncoderScore("no")}, knowledge, made.minhash)
    assert encoders == costs.Models(True, 1, 2) and costs.core_hours("score", size, encoders) > 40 * sum(hours.values())
    lines = costs.table(known, {stage.name: [*range(0, stage.tasks, 2)] for stage in known}, size, asked)
    half = sum(hours[one.name] * -(-one.tasks // 2) / one.tasks for one in known)
    assert lines[-1] == f"# total: {half:.2g} core-h, 0 GPUs, for 2 GB of pages and 1 GB of text"


def test_two_processes_do_not_curate_the_same_folder(pages: Path, tmp_path: Path) -> None:
    with (
        local.alone(tmp_path),
        pytest.raises(ValueError, match=f"folder={tmp_path}: another process"),
        local.alone(tmp_path),
    ):
        pytest.fail("both have it")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["sources.help.format=zip"], "sources.help.format=zip: no such choice; give one of warc"),
        (["sources.help.language=German"], "sources.help.language=German: no ISO 639-1 code"),
        (["sources.help.content=html"], "sources.help.content=html: format=html holds pages anyway"),
        (["tokenizer.kind=tiktoken", "tokenizer.path="], "tokenizer.path=: there is nothing to make tokens with"),
        (["task=3"], "task=3: a task is one of a stage; give stage=NAME too"),
        (["stage=extrakt"], "stage=extrakt: no such stage with these keys; give one of extract"),
        (["stage=tokens", "task=1", "tasks=8"], "task=1: tokens has 1 tasks; give at most 0"),
        (["extraction.count_tokens=false"], "divergence.enabled=true: no tokens are counted that documents could be"),
        (["tokens.bos=false", "tokens.eos=false"], "tokens.eos=false: nothing would stand between two documents"),
        (["best.score=cited"], "best.score=cited: nobody gives that score; give cited.model=FILE or an encoder"),
        (["best.share=0.5"], "best.share=0.5: best by which score?; give best.score too"),
        (["encoders.a.threshold=0.5"], "encoders.a.model=: there is nothing to score by"),
        (["language.languages=[en]"], "nobody says which language a text is in; give language.model=FILE, or leave"),
        (["sources.help.imput=x"], "sources.help.imput=x: no such key; did you mean sources.help.input"),
    ],
)
def test_keys_are_refused_with_a_remedy(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        entry.load(config.Curate, "curate", [*words(tmp_path, tmp_path), *given])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "encoders.a.model=/tmp",
            "encoders.a.model=/tmp: there is no config.json in it; give the folder of",
        ),
        ("knowledge.model=/tmp", "knowledge.model=/tmp: there is no config.json in it; give the folder of"),
        ("cited.model=no.bin", "cited.model=no.bin: there is no such folder or file; give a folder or a file that is"),
        ("adult.lists={en: no.txt}", "adult.lists.en=no.txt: there is no such folder or file"),
        ("domains.lists={a: no}", "domains.lists.a=no: there is no such folder or file"),
    ],
)
def test_files_that_are_not_there_are_told_before_anything_runs(given: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=said):
        inputs.check(composed(words(tmp_path, tmp_path, given)))


def test_a_wrong_key_waits_for_nothing_of_curation() -> None:
    code = "import sys, recipes.curate; from llama31.command import inputs, validate; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": search_path()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert not {"datatrove", "torch", "resiliparse", "pyarrow"} & set(done.stdout.split())


def test_folders_without_files_and_sources_that_are_one_file(pages: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"sources.help.files=: .* holds 0 files and none like \*\*/\*.htm"):
        folder.opened(composed(words(tmp_path / "empty", tmp_path / "a")))
    made, _ = run(words(next(pages.glob("*en-us-03*")), tmp_path / "b", "tokens.enabled=false"))
    assert len(texts(Path(made.folder), "extract")) == 1
