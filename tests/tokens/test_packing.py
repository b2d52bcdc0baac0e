"""Packing: what stands in the files, whatever the number of processes, and nothing half-written when it fails."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama31 import config
from llama31.data import batches
from llama31.tokens import pack, packed, sources, tokenizers
from llama31.tokens.indexed import IndexedReader
from recipes import pack as recipe
from tests.processes import LIMIT_S, search_path

TEXTS = [f"text {i} of some words, Wörter <|end_of_text|> " * (1 + i % 7) for i in range(300)]


def _source(tmp_path: Path, texts: list[str], name: str = "in.jsonl") -> config.Source:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return config.Source(input=str(path))


def _data(tmp_path: Path, source: config.Source, **keys: object) -> config.Data:
    usual = {"folder": str(tmp_path / "packed"), "workers": 1}
    return config.Data(sources={"s": source}, **(usual | keys))  # type: ignore[arg-type]


def _documents(tmp_path: Path, split: str, name: str = "s") -> list[list[int]]:
    reader = IndexedReader(tmp_path / "packed" / name / split)
    return [reader.document(i).tolist() for i in range(len(reader))]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_begin_and_end_and_hold_no_injected_token(tmp_path: Path, bpe: config.Tokenizer) -> None:
    data = _data(tmp_path, _source(tmp_path, TEXTS), heldout_fraction=0.2)
    record = pack.pack(data, "s", bpe)
    vocabulary = tokenizers.load(bpe)
    train, heldout = _documents(tmp_path, "train"), _documents(tmp_path, "heldout")
    for document in train + heldout:
        assert document[0] == vocabulary.bos_id and document[-1] == vocabulary.eos_id
        assert not {vocabulary.bos_id, vocabulary.eos_id} & set(document[1:-1])
    decoded = [vocabulary.decode(document[1:-1]) for document in train]
    assert decoded == [text for text in TEXTS if text in set(decoded)]  # in the order of the source
    assert sorted(decoded + [vocabulary.decode(document[1:-1]) for document in heldout]) == sorted(TEXTS)
    assert 30 <= len(heldout) <= 90
    assert (record.train.tokens, record.heldout.documents) == (sum(map(len, train)), len(heldout))
    assert packed.read(data, "s") == record and record.vocab_size == 560


def test_bos_and_eos_can_be_left_out(tmp_path: Path, bpe: config.Tokenizer) -> None:
    pack.pack(_data(tmp_path, _source(tmp_path, TEXTS), bos=False, eos=False), "s", bpe)
    assert _documents(tmp_path, "train")[0] == tokenizers.load(bpe).encode(TEXTS[0])


@pytest.mark.parallel
def test_bytes_do_not_depend_on_the_processes(
    tmp_path: Path, bpe: config.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_ITEM_BYTES", 2000)
    source = _source(tmp_path, TEXTS)
    assert len(sources.items(source, "s")) > 10
    record = [pack.pack(_data(tmp_path / str(n), source, workers=n, heldout_fraction=0.1), "s", bpe) for n in (1, 3)]
    assert record[0] == record[1]
    assert _bytes(tmp_path / "1/packed/s") == _bytes(tmp_path / "3/packed/s")


def test_heldout_documents_do_not_depend_on_the_order(tmp_path: Path, bpe: config.Tokenizer) -> None:
    chosen = []
    for i, texts in enumerate([TEXTS, TEXTS[::-1], TEXTS[100:]]):
        folder = tmp_path / str(i)
        folder.mkdir()
        pack.pack(_data(folder, _source(folder, texts), heldout_fraction=0.1), "s", bpe)
        chosen.append({tuple(document) for document in _documents(folder, "heldout")})
    assert chosen[0] == chosen[1] and chosen[2] < chosen[0]
    other = _data(tmp_path, _source(tmp_path, TEXTS), heldout_fraction=0.1, seed=5)
    pack.pack(other, "s", bpe)
    assert {tuple(document) for document in _documents(tmp_path, "heldout")} != chosen[0]


def test_a_small_source_gets_a_held_out_document(tmp_path: Path, bpe: config.Tokenizer) -> None:
    data = _data(tmp_path, _source(tmp_path, TEXTS[:5]), heldout_fraction=1e-9, bos=False, eos=False)
    record = pack.pack(data, "s", bpe)
    assert (record.train.documents, record.heldout.documents) == (4, 1)
    key = min(TEXTS[:5], key=lambda text: pack.heldout_key(text, data.seed))
    encode = tokenizers.load(bpe).encode
    assert _documents(tmp_path, "heldout") == [encode(key)]
    assert _documents(tmp_path, "train") == [encode(text) for text in TEXTS[:5] if text != key]


def test_a_single_document_has_no_heldout_split(tmp_path: Path, bpe: config.Tokenizer) -> None:
    with pytest.warns(UserWarning, match="single document"):
        record = pack.pack(_data(tmp_path, _source(tmp_path, TEXTS[:1])), "s", bpe)
    assert record.heldout.documents == 0 and sorted(_bytes(tmp_path / "packed/s")) == [
        "packed.json",
        "train.bin",
        "train.blocks",
        "train.idx",
    ]


def test_documents_that_end_otherwise_than_this_tokenizer_ends_them(tmp_path: Path, bpe: config.Tokenizer) -> None:
    """Packed once when an Instruct folder's end of a turn was taken for the end of text; the tokenizer is the same."""
    words, data = tokenizers.load(bpe), _data(tmp_path, _source(tmp_path, TEXTS))
    schedule = config.Schedule(total_tokens=1024, batch_tokens=64, sequence_length=16, peak_lr=1e-3)
    pack.pack(data, "s", bpe)
    batches.check_ends(data, batches.Batches(data, schedule), words.eos_id, resumed=False)
    reader = IndexedReader(tmp_path / "packed/s/train")
    tokens = np.memmap(tmp_path / "packed/s/train.bin", reader.dtype, mode="r+")
    tokens[reader.edges(slice(1, None)) - 1] = words.special["<|eot_id|>"]
    tokens.flush()
    record = f"data.sources.s: .*end with token {words.special['<|eot_id|>']}, .* end of text is {words.eos_id}; "
    with pytest.raises(ValueError, match=record + "pack it again with overwrite=true"):
        pack.pack(data, "s", bpe)
    given = batches.Batches(data, schedule)
    with pytest.raises(ValueError, match=record + "pack it again with overwrite=true"):
        batches.check_ends(data, given, words.eos_id, resumed=False)
    with pytest.warns(UserWarning, match=record + "this run began with them"):
        batches.check_ends(data, given, words.eos_id, resumed=True)
    pack.pack(data, "s", bpe, overwrite=True)
    batches.check_ends(data, batches.Batches(data, schedule), words.eos_id, resumed=False)
    without = _data(tmp_path, data.sources["s"], folder=str(tmp_path / "no ends"), eos=False)
    pack.pack(without, "s", bpe)
    batches.check_ends(without, batches.Batches(without, schedule), words.eos_id, resumed=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_document_is_counted_and_named(
    tmp_path: Path, bpe: config.Tokenizer, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number, content in enumerate([b"one", b"\xff\xfe", b"a\0b", b" \n", b"two", b"", b"three"]):
        (folder / f"{number}.c").write_bytes(content)
    (folder / "7.c").symlink_to(tmp_path / "gone")
    data = _data(tmp_path, config.Source(input=str(folder), format="tree"), workers=workers)
    assert pack.pack(data, "s", bpe).train.documents == 2
    printed = capsys.readouterr().out
    named = ", ".join(str(folder / f"{number}.c") for number in (1, 2, 7))
    assert f"packed s: 3 files left out that are no text in UTF-8: {named}\n" in printed
    assert "packed s: 2 documents left out that are blank\n" in printed


def test_packing_again(tmp_path: Path, bpe: config.Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    source = _source(tmp_path, TEXTS)
    first = pack.pack(_data(tmp_path, source), "s", bpe)
    changed_s = (tmp_path / "packed/s/train.bin").stat().st_mtime_ns
    assert pack.pack(_data(tmp_path, source), "s", bpe) == first
    assert (tmp_path / "packed/s/train.bin").stat().st_mtime_ns == changed_s
    assert "already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"other settings .*'seed': 1234.*overwrite=true"):
        pack.pack(_data(tmp_path, source, seed=1), "s", bpe)
    _source(tmp_path, TEXTS[:100])
    with pytest.raises(ValueError, match="from another input"):
        pack.pack(_data(tmp_path, source), "s", bpe)
    again = pack.pack(_data(tmp_path, source), "s", bpe, overwrite=True)
    assert again.fingerprint != first.fingerprint and again.train.documents < 101
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["s"]


@pytest.mark.parallel
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_leaves_nothing(
    tmp_path: Path, bpe: config.Tokenizer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(sources, "_ITEM_BYTES", 2000)
    source = _source(tmp_path, TEXTS)
    pack.pack(_data(tmp_path, source), "s", bpe)
    before = _bytes(tmp_path / "packed/s")
    with open(source.input, "a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"in.jsonl:301 is no JSON"):
        pack.pack(_data(tmp_path, source, workers=workers), "s", bpe, overwrite=True)
    assert _bytes(tmp_path / "packed/s") == before
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["s"]


def test_nothing_to_pack(tmp_path: Path, bpe: config.Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"data.sources.s.input=.*holds no documents"):
        pack.pack(_data(tmp_path, _source(tmp_path, [" ", ""])), "s", bpe)
    assert list((tmp_path / "packed").iterdir()) == []


def test_two_packers_of_one_source(tmp_path: Path, bpe: config.Tokenizer) -> None:
    staged = tmp_path / "packed/.s.staged"
    staged.mkdir(parents=True)
    (staged / "train.bin").write_text("left by a killed packer")
    lock = os.open(staged, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="is being written by another process"):
        pack.pack(_data(tmp_path, _source(tmp_path, TEXTS)), "s", bpe)
    assert staged.exists()
    os.close(lock)  # as the death of the other does
    pack.pack(_data(tmp_path, _source(tmp_path, TEXTS)), "s", bpe)
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["s"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True, timeout=LIMIT_S).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=LIMIT_S)


@pytest.mark.parametrize("texts", [40, 1000])  # fails on closing, and while writing
def test_full_disk(tmp_path: Path, small_disk: Path, bpe: config.Tokenizer, texts: int) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (56_000 if texts == 40 else 1000))
    data = _data(small_disk, _source(tmp_path, [text * 3 for text in TEXTS * 10][:texts]))
    with pytest.raises(ValueError, match=r"data.folder=.*: no space left to write .*packed/s .*larger disk"):
        pack.pack(data, "s", bpe)
    assert list((small_disk / "packed").iterdir()) == []


def test_full_disk_for_the_tokenizer(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 50_000)
    data = _data(small_disk, _source(tmp_path, TEXTS))
    with pytest.raises(ValueError, match="no space left to write .*tok"):
        pack.train_tokenizer(data, config.Tokenizer(kind="bpe", path=str(small_disk / "tok"), vocab_size=565))
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_file_size_limit(tmp_path: Path, bpe: config.Tokenizer) -> None:
    """As a quota would: needs no root."""
    _source(tmp_path, TEXTS * 10)
    code = f"""
import resource, sys
from llama31 import config
from llama31.tokens import pack
data = config.Data(folder="packed", workers=1, sources={{"s": config.Source(input="in.jsonl")}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}))
pack.pack(data, "s", config.Tokenizer(kind="bpe", path={bpe.path!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env=os.environ | {"PYTHONPATH": search_path()},
    )  # fmt: skip
    assert done.returncode == 1 and "ValueError: data.folder=packed: no space left to write packed/s" in done.stderr
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize("folder", ["{file}", "{file}/deeper", "/proc/x", "/proc/x/y"])
def test_folder_that_cannot_be_written(tmp_path: Path, bpe: config.Tokenizer, folder: str) -> None:
    data = _data(tmp_path, _source(tmp_path, TEXTS[:3]))
    data.folder = folder.format(file=data.sources["s"].input)
    with pytest.raises(ValueError, match=rf"^data.folder={data.folder}: cannot be written \(.*\); give a folder"):
        pack.pack(data, "s", bpe)
    settings = config.Tokenizer(kind="bpe", path=f"{data.folder}/tok", vocab_size=600)
    with pytest.raises(ValueError, match=rf"^tokenizer.path={settings.path}: cannot be written"):
        pack.train_tokenizer(data, settings)


def test_unreadable_input_is_not_blamed_on_the_folder(
    tmp_path: Path, bpe: config.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _data(tmp_path, _source(tmp_path, TEXTS[:3]))

    def fail(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(sources, "opened", fail)
    with pytest.raises(PermissionError, match=r"in\.jsonl"):
        pack.pack(data, "s", bpe)


def test_recipe_trains_the_tokenizer_once(tmp_path: Path) -> None:
    data = _data(tmp_path, _source(tmp_path, [f"{text} {i * 7919}" for i, text in enumerate(TEXTS * 2)]))
    data.sources["t"] = _source(
        tmp_path, ["Überhaupt ganz andere Wörter, 漢字 " + str(i) for i in range(50)], "t.jsonl"
    )
    settings = config.Tokenizer(kind="bpe", path=str(tmp_path / "tok"), vocab_size=600, train_bytes=20_000)
    recipe.main(config.Pack(data=data, tokenizer=settings))
    before = _bytes(tmp_path / "tok")
    recipe.main(config.Pack(data=data, tokenizer=settings, overwrite=True))
    assert _bytes(tmp_path / "tok") == before
    assert packed.read(data, "s").tokenizer_fingerprint == packed.read(data, "t").tokenizer_fingerprint
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=700: .*tok has 600 ids"):
        recipe.main(config.Pack(data=data, tokenizer=config.Tokenizer("bpe", str(tmp_path / "tok"), 700)))


def test_the_sample_for_the_tokenizer_is_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_ITEM_BYTES", 2000)
    data = _data(tmp_path, _source(tmp_path, TEXTS), heldout_fraction=0.2)
    size = Path(data.sources["s"].input).stat().st_size
    everything = list(pack._sample(data, size))
    assert everything == [text for text in TEXTS if pack.heldout_key(text, data.seed) >= 0.2 * 2**64]
    some = list(pack._sample(data, size // 4))
    numbers = [int(text.split()[1]) for text in some]
    assert 0.2 * size <= sum(len(text.encode()) for text in some) <= 0.3 * size and set(some) <= set(TEXTS)
    assert all(any(low <= n < low + 60 for n in numbers) for low in range(0, 300, 60))  # from everywhere


def test_long_runs_are_cut_where_a_bpe_is_trained() -> None:
    text = "a b " + "x" * 2500 + " c" + " " * 1001 + "d"
    pieces = list(pack.trainable(text))
    assert "".join(pieces) == text and [len(piece) for piece in pieces] == [1004, 1000, 1502, 2]
    assert list(pack.trainable("words of a text\n")) == ["words of a text\n"]
