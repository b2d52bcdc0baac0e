"""What is killed, changed, damaged or begun twice, over all stages: scores and clusters in several tasks as well."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.command import entry
from llama31.curate.mixing.sources import of_folder
from llama31.curate.outcome import page, sources, summary
from llama31.curate.running import attempts, folder, ledger, progress, stages, tasks
from llama31.curate.scoring import quality
from llama31.tokens import tokenizers
from llama31.tokens.indexed import IndexedReader
from recipes.curate import finish
from tests import processes
from tests.curate.curated import composed, opened, outputs, run, texts

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
WORDS = [first + second for first in SYLLABLES[:12] for second in SYLLABLES[::7]]
OFTEN = "this line stands in many documents and is none of theirs"
SEVERAL = ("tasks=4", "minhash.cluster_tasks=2", "minhash.cluster_rounds=2", "tokens.parts=3")


def text(seed: int, good: bool) -> str:
    drawn, words = random.Random(seed), WORDS[: len(WORDS) // 2] if good else WORDS[len(WORDS) // 2 :]
    return "\n".join(" ".join(drawn.choices(words, k=12)) + f" {seed}." for _ in range(5))


def rows(number: int) -> Iterator[dict[str, str]]:
    """Documents of a file: good ones and bad ones, near duplicates of other files' ones, a line that stands often."""
    for i in range(40):
        seed = 1000 * number + i
        made = text(i if i < 10 else seed, good=i % 2 == 0)  # the first ten stand in every file, but for a word
        made = f"{made} {WORDS[number]}" + (f"\n{OFTEN}" if i % 4 == 0 else "")
        yield {"id": f"{number}-{i}", "text": made, "language": "de" if i % 3 == 0 else "en"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of two files each, and a model that tells good documents."""
    place = tmp_path_factory.mktemp("pages")
    for number, source in enumerate(("web", "web", "code", "code")):
        (place / source).mkdir(exist_ok=True)
        written = "".join(json.dumps(row) + "\n" for row in rows(number))
        (place / source / f"{number}.jsonl").write_text(written)
    good, bad = ([Document(text(n, kind), str(n)) for n in range(5000, 5060)] for kind in (True, False))
    quality.train(good, bad, place / "cited.bin")
    return place


def words(pages: Path, target: Path, *further: str) -> list[str]:
    given = ["name=x", f"folder={target}", f"cited.model={pages}/cited.bin", "best.score=cited", "best.share=0.6"]
    given += [f"sources.{name}.input={pages}/{name}" for name in ("web", "code")]
    given += [f"sources.{name}.format=jsonl" for name in ("web", "code")]
    given += [f"{name}.enabled=false" for name in ("repetition", "quality", "c4")]  # no prose
    given += ["sources.code.kind=code", "tokenizer.kind=bpe", f"tokenizer.path={pages}/bpe"]
    return [*given, "tokenizer.vocab_size=540", "tokens.heldout_fraction=0.2", "report.samples=1", *further]


@pytest.fixture(scope="module")
def several(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without disturbance: of all that may be in several tasks, several."""
    target = tmp_path_factory.mktemp("several")
    _, known = run(words(pages, target, *SEVERAL))
    names = {stage.name for stage in known}
    assert {"minhash_edges", "minhash_round_2", "minhash_survivors", "lines", "score", "ranking", "select"} <= names
    return target


@pytest.fixture(scope="module")
def one(pages: Path, several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one task."""
    target = tmp_path_factory.mktemp("one")
    _, known = run(words(pages, target, "tasks=1"))
    assert {stage.tasks for stage in known} == {1}
    return target


def test_one_task_and_several_keep_the_same_documents(one: Path, several: Path) -> None:
    numbers = []
    for stage in ("filter", "deduplicate", "lines", "score", "select"):
        assert texts(one, stage) == texts(several, stage)
        numbers.append(len(texts(one, stage)))
    # 40 of 160 are others but for a word; then lines go, not documents; then a part of each language.
    assert numbers[0] > numbers[1] == numbers[2] == numbers[3] > numbers[4] > 50
    # Sources 2 and 3 are code, whose lines are left alone.
    left = {code: str([each for each in texts(one, "lines") if (each[0][0] in "23") is code]) for code in (True, False)}
    assert OFTEN in str(texts(one, "deduplicate")) and OFTEN not in left[False] and OFTEN in left[True]


def documents(folder: Path, source: str, split: str) -> Counter[bytes]:
    """The tokens of a source's documents, of all its parts."""
    prefixes = [path.with_suffix("") for path in folder.glob(f"tokens/{source}*/{split}.bin")]
    readers = [IndexedReader(prefix) for prefix in prefixes]
    return Counter(reader.document(i).tobytes() for reader in readers for i in range(len(reader)))


def test_parts_of_token_files_hold_together_what_one_has(one: Path, several: Path) -> None:
    names = {path.name for path in one.glob("tokens/*") if path.name not in ("manifests", "samples", "partial")}
    assert names == {"general-en", "general-de", "code-en", "code-de"}
    for name in names:
        assert len(list(several.glob(f"tokens/{name}-0[0-2]/packed.json"))) > 1
        for split in ("train", "heldout"):
            assert documents(one, name, split) == documents(several, name, split)
            assert documents(one, name, split)
    whole, parts = ({(s.part, s.language): 0 for s in of_folder(place / "tokens")} for place in (one, several))
    for counts, place in ((whole, one), (parts, several)):
        for source in of_folder(place / "tokens"):
            counts[source.part, source.language] += source.tokens
    assert whole == parts
    weights = [Counter[tuple[str, str]](), Counter[tuple[str, str]]()]
    for weight, place in zip(weights, (one, several)):
        for mixed in sources.mixed(place, config.MixtureShares())[0].sources:
            weight[mixed.source.part, mixed.source.language] += mixed.weight
    assert {*weights[0]} == {*weights[1]}
    assert all(weights[0][key] == pytest.approx(weights[1][key], rel=1e-12) for key in weights[0])


def test_the_report_has_the_mixture_that_training_reads(pages: Path, several: Path, tmp_path: Path) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    given = words(pages, tmp_path, *SEVERAL, "mixture.train_tokens=1000000", "mixture.general=0.6")
    finish(*opened(given))
    told = json.loads((tmp_path / "report.json").read_text())
    train = entry.compose(config.Pretrain, "demo", ["data=x", "name=x"], tmp_path / "conf")
    weights = {name: one["weight"] for name, one in told["mixture"]["sources"].items()}
    assert {name: one.weight / 100 for name, one in train.data.sources.items()} == pytest.approx(weights, rel=1e-5)
    assert told["mixture"]["keys"]["general"] == 0.6 and told["packed"].keys() == weights.keys()
    page = (tmp_path / "report.html").read_text()
    assert all(line in page for line in ("<th class=n>epochs</th>", "are read", "possible instead"))
    assert any(one["repeated"] for one in told["mixture"]["sources"].values())


KILLED = """
import os, random, signal, sys
from tests.curate.curated import run
generator, kills, allowed = random.Random(11), 0, 0.1
while True:
    seconds = generator.uniform(0.05, allowed)
    if not (child := os.fork()):
        # Of processor time, after which the kernel ends it as SIGKILL does: nothing of it runs any more.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        run(sys.argv[1:])
        os._exit(0)

    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    kills, allowed = kills + 1, allowed * 1.15
    assert os.WTERMSIG(status) == signal.SIGPROF
print("killed", kills)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_killed_again_and_again_at_random_it_leaves_the_bytes_of_a_run_that_was_not(
    pages: Path, several: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": processes.search_path()}
    given = words(pages, tmp_path, *SEVERAL, f"tokenizer.path={tmp_path}/bpe")
    ended = processes.run([sys.executable, "-c", KILLED, *given], env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.split("killed ")[1]) >= 8
    assert outputs(tmp_path) == outputs(several) and len(outputs(several)) > 100
    assert not list(tmp_path.glob("*/partial/0*"))


def test_fewer_tasks_and_parts_leave_nothing_of_more(pages: Path, one: Path, several: Path, tmp_path: Path) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    run(words(pages, tmp_path, "tasks=1", "overwrite=true"))
    own = {path: digest for path, digest in outputs(tmp_path).items() if path.split("/")[0] not in ROUNDS}
    assert own == outputs(one)


def test_another_number_of_tasks_takes_away_nothing_that_others_made(
    pages: Path, several: Path, tmp_path: Path
) -> None:
    """Files of MinHash's buckets change their tasks."""
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    run(words(pages, tmp_path, *SEVERAL[1:], "tasks=3", "overwrite=true", "tokens.enabled=false"))
    assert len(list(tmp_path.glob("minhash_buckets/pairs/*"))) == 14
    assert texts(tmp_path, "select") == texts(several, "select")


def test_lists_of_inputs_samples_and_records_that_are_damaged_are_made_again(
    pages: Path, several: Path, tmp_path: Path
) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    given = words(pages, tmp_path, *SEVERAL)
    before = {path: path.read_bytes() for path in [*tmp_path.glob("inputs/*"), *tmp_path.glob("*/samples/*")]}
    (tmp_path / "inputs/00001.json").unlink()
    (tmp_path / "inputs/00002.json").write_text("{")
    (tmp_path / "lines/samples/00002.json").write_text("{}")
    ledger.manifest(tmp_path, "extract", 1).unlink()
    for stage, was, now in (("filter", '"documents": ', '"documents": 1'), ("score", "changed_ns", "chaoged_ns")):
        record = ledger.manifest(tmp_path, stage, 3)
        record.write_text(record.read_text().replace(was, now, 1))
    made, known = opened(given)
    found = {stage: ranks for stage, ranks in tasks.missing(made, known).items() if ranks}
    assert found["extract"] == [1] and found["filter"] == [0, 1, 2, 3]  # for they read what extraction leaves
    run(given)
    assert before == {path: path.read_bytes() for path in before}
    assert outputs(tmp_path) == outputs(several)
    assert [ledger.read(tmp_path, stage, 3) is not None for stage in ("filter", "score")] == [True, True]
    (tmp_path / folder.NAME).write_text("{")
    with pytest.raises(ValueError, match="curation.json cannot be read; give it back, or tasks=NUMBER overwrite=true"):
        opened(given)


def test_a_vocabulary_that_is_gone_is_made_again_and_another_one_makes_other_tokens(
    pages: Path, tmp_path: Path
) -> None:
    short = [f"{name}.enabled=false" for name in ("minhash", "lines", "divergence", "urls")]
    given = [one for one in words(pages, tmp_path, "tasks=2", *short) if not one.startswith(("cited", "best"))]
    given += ["extraction.count_tokens=false", f"tokenizer.path={tmp_path}/bpe"]
    made, known = run(given)
    left, file = outputs(tmp_path), tmp_path / "bpe/tokenizer.json"
    trained = file.read_bytes()
    file.unlink()
    assert [name for name, ranks in tasks.missing(made, known).items() if ranks] == ["vocabulary", "tokenize", "tokens"]
    run(given)
    assert file.read_bytes() == trained and outputs(tmp_path) == left
    file.write_text("{")
    with pytest.raises(ValueError, match="tokenizer.path=.*; fetch it again, or take it away: it is trained anew"):
        run(given)
    tokenizers.train_bpe([text(n, True) for n in range(60)], 540, tmp_path / "bpe")
    other = file.read_bytes()
    run(given)
    assert file.read_bytes() == other != trained
    assert outputs(tmp_path)["tokens/code-en/train.bin"] != left["tokens/code-en/train.bin"]


ROUNDS = ("minhash_edges", "minhash_round_1", "minhash_round_2", "minhash_leaves", "minhash_survivors")


def test_memory_and_tasks_for_clusters_do_not_make_the_filters_anew(pages: Path, several: Path, tmp_path: Path) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    more = [*SEVERAL, "minhash.memory_gb=9"]
    made, known = opened(words(pages, tmp_path, *more, "dry_run=true"))
    assert not any(tasks.missing(made, known).values())
    with pytest.raises(ValueError, match="minhash.cluster_tasks=3: .* was made with 2"):
        opened(words(pages, tmp_path, *more, "minhash.cluster_tasks=3"))
    made, known = opened(words(pages, tmp_path, *more, "minhash.cluster_tasks=3", "overwrite=true"))
    missing = tasks.missing(made, known)
    assert not missing["filter"] and not missing["minhash_buckets"] and missing["minhash_edges"] == [0, 1, 2]


def test_another_release_of_a_library_makes_again_what_it_decides_and_other_code_is_told(
    pages: Path,
    several: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    given, installed = words(pages, tmp_path, *SEVERAL), ledger.release
    for code in ("one", "another", "another"):
        monkeypatch.setattr(folder.commit, "commit", lambda code=code: code)
        assert not any(tasks.missing(*opened(given)).values())
    told = capsys.readouterr().out
    assert told.count("goes on with") == 2 and "was made by the code of one and goes on with another: what is" in told
    _, known = opened(given)
    content = summary.summary(tmp_path, "x", known, 1)
    assert content["commits"][-2:] == ["one", "another"] and "one → another" in page.html(content)
    monkeypatch.setattr(ledger, "release", lambda name: "9.9" if name == "tokenizers" else installed(name))
    with pytest.raises(ValueError, match="versions.tokenizers=9.9: .* was made with"):
        opened(given)
    made, known = opened([*given, "overwrite=true", "dry_run=true"])
    assert [name for name, ranks in tasks.missing(made, known).items() if ranks] == ["vocabulary", "tokenize", "tokens"]
    # What ends an address and words that C4 looks for come of libraries, and no model of fastText is asked but `cited`.
    for library, first in (("tldextract", "filter"), ("fasttext-numpy2-wheel", "score"), ("torch", None)):
        monkeypatch.setattr(ledger, "release", lambda name, other=library: "9" if name == other else installed(name))
        assert next((name for name, ranks in tasks.missing(made, known).items() if ranks), None) == first
    monkeypatch.setattr(ledger, "release", installed)
    monkeypatch.setattr(ledger, "VERSION", 99)
    monkeypatch.setattr(folder.commit, "commit", lambda: "third")
    with pytest.raises(ValueError, match="versions.stages=99: .* was made with [0-9]+; give that, or overwrite=true"):
        opened(given)
    capsys.readouterr()
    opened([*given, "overwrite=true"])
    assert "goes on with third\n" in capsys.readouterr().out
    attempts.begin(tmp_path, "minhash_buckets", 0)  # in an array, while all is submitted again by other code
    monkeypatch.setattr(folder.commit, "commit", lambda: "fourth")
    opened(given)
    assert ledger.reopen(tmp_path, "minhash_buckets", 0)
    record = json.loads((tmp_path / folder.NAME).read_text())
    del record["keys"]["versions.stages"]  # as of code that wrote none
    (tmp_path / folder.NAME).write_text(json.dumps({**record, "keys": {"versions.before": "1", **record["keys"]}}))
    with pytest.raises(ValueError, match="versions.stages=99: .* was made without it; give overwrite=true to make"):
        opened(given)


def test_of_models_those_decide_that_a_stage_asks(pages: Path, tmp_path: Path) -> None:
    given = ["tokens.enabled=false", "minhash.keep=best", "minhash.score=cited", f"encoders.a.model={pages}"]
    made = composed(words(pages, tmp_path, *given))
    found = {stage.name: {*ledger.libraries(made, stage)} for stage in stages.stages(made, 2)}
    assert {name for name, several in found.items() if {*ledger.FAST_TEXT} <= several} == {"filter", "score"}
    assert {name for name, several in found.items() if {*ledger.ENCODERS} <= several} == {"score"}


def test_files_of_another_time_are_looked_into_and_of_other_content_refused(
    pages: Path, several: Path, tmp_path: Path
) -> None:
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    made, known = opened(words(pages, tmp_path, *SEVERAL))
    by_name = {stage.name: stage for stage in known}
    (listed,) = tmp_path.glob("minhash_survivors/listed/00000-*")
    os.utime(listed, ns=(1, 1))
    assert tasks.missing(made, known)["minhash_survivors"] == [0]
    assert tasks.execute(made, by_name["minhash_survivors"], 0, by_name).was_done
    assert not any(tasks.missing(made, known).values())
    listed.write_bytes(b"x" * listed.stat().st_size)
    ledger.manifest(tmp_path, "deduplicate", 3).unlink()
    with pytest.raises(config.RunError, match="other content than was written; run minhash_survivors again"):
        tasks.execute(made, by_name["deduplicate"], 3, by_name)


def test_input_that_was_changed_or_is_gone(pages: Path, tmp_path: Path) -> None:
    mine, target = tmp_path / "pages", tmp_path / "target"
    shutil.copytree(pages, mine)
    (mine / "list").write_text("a.example\n")
    short = [f"{name}.enabled=false" for name in ("tokens", "minhash", "lines")]
    given = words(mine, target, "tasks=2", *short, f"domains.lists={{a: {mine}/list}}")
    made, known = run(given)
    before = ledger.read(target, "extract", 0), ledger.read(target, "extract", 1)
    assert not any(tasks.missing(made, known).values())
    (mine / "list").write_text("b.example\n")
    assert tasks.missing(made, known)["extract"] == [0, 1]
    (mine / "list").write_text("a.example\n")
    page = mine / "web/0.jsonl"
    page.write_bytes(page.read_bytes().replace(b"0-0", b"0-Z"))
    with pytest.raises(ValueError, match="sources.web.input=.*: its files are not those"):
        opened(given)
    for rank in (0, 1):
        ledger.manifest(target, "extract", rank).unlink()
    rank = next(rank for rank in (0, 1) if "0.jsonl" in folder.share(target, rank)["files"].get("web", ()))
    with pytest.raises(config.RunError, match="0.jsonl was changed since .* was begun; give it back, or overwrite"):
        tasks.execute(made, known[0], rank, {known[0].name: known[0]})
    page.unlink()
    with pytest.raises(config.RunError, match="0.jsonl is not there any more"):
        tasks.execute(made, known[0], rank, {known[0].name: known[0]})
    assert not tasks.execute(made, known[0], 1 - rank, {known[0].name: known[0]}).was_done
    assert ledger.read(target, "extract", 1 - rank)["left"][0]["xxh64"] == before[1 - rank]["left"][0]["xxh64"]  # type: ignore[index]


def test_of_two_attempts_the_later_one_counts_and_never_half_of_one(tmp_path: Path) -> None:
    first = attempts.begin(tmp_path, "stage", 3)
    (first / "documents").mkdir()
    (first / "documents/00003").write_text("all of it")
    second = attempts.begin(tmp_path, "stage", 3)
    with pytest.raises(config.RunError, match="stage, task 3: another process has begun it too"):
        attempts.publish(first, tmp_path, "stage", 3)
    # A block makes its folder as it needs it, also where the attempt's own is gone.
    (first / "late").mkdir(parents=True)
    (first / "late/file").write_text("the second half")
    with pytest.raises(config.RunError, match="another process has begun it too"):
        attempts.publish(first, tmp_path, "stage", 3)
    attempts.end(first)
    assert not list(tmp_path.glob("stage/documents/*")) and ledger.read(tmp_path, "stage", 3) is None
    (second / "whole").write_text("x")
    assert [left.path for left in attempts.publish(second, tmp_path, "stage", 3)] == ["whole"]
    assert (tmp_path / "stage/whole").read_text() == "x"


def test_what_an_attempt_published_before_it_was_killed_goes_with_the_next(tmp_path: Path) -> None:
    first = attempts.begin(tmp_path, "tokens", 0)
    for name in ("en-00", "de-00"):
        (first / name).mkdir()
        (first / name / "packed.json").write_text("{}")
    attempts.publish(first, tmp_path, "tokens", 0)  # and no record of it
    attempts.end(first)
    assert ledger.read(tmp_path, "tokens", 0) is None
    second = attempts.begin(tmp_path, "tokens", 0)
    (second / "en").mkdir()
    (second / "en/packed.json").write_text("{}")
    attempts.publish(second, tmp_path, "tokens", 0)
    assert [path.name for path in tmp_path.glob("tokens/*-*")] == []
    attempts.forget(tmp_path, "tokens", 0)
    assert not [path for path in tmp_path.glob("tokens/**/*") if path.is_file() and "partial" not in path.parts]


def test_a_vocabulary_is_there_when_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: sys.exit(9))  # killed before the last file
    with pytest.raises(SystemExit):
        tokenizers.train_bpe([text(n, True) for n in range(60)], 540, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists() and (tmp_path / "tokenizer_config.json").is_file()


def test_a_task_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TOLD_S", 0.01)
    staged = attempts.begin(tmp_path, "filter", 7)
    counted = iter(range(1, 1000))
    with progress.told(staged, lambda: (next(counted), 5_000_000), lambda: 0.25):
        while not (working := progress.at_work(tmp_path / "filter", 0.0)):
            pass
    assert working[0]["documents"] >= 1 and working[0]["fraction"] == 0.25
    assert not progress.at_work(tmp_path / "filter", working[0]["told"] + 3600)  # of a run before
    shown = progress.StageProgress("2/9 filter", 10, tmp_path / "filter")
    shown.begun = 100.0
    assert shown.text(110.0, working[:0]) == "2/9 filter: 0/10 tasks"
    said = shown.text(110.0, [{"documents": 3000, "bytes": 5_000_000, "fraction": 0.25}] * 2)
    assert said == "2/9 filter: 0/10 tasks, 2 at work, 25% through, 6,000 documents, 10 MB, 600/s, 0:03:10 left"
    shown.ended(True, 50, 100)
    shown.ended(False, 1000, 1_000_000)
    said = shown.text(110.0, [])
    assert "2/10 tasks, 1 done before, 1,000 documents, 1 MB, 100/s, 0:01:20 left" in said
