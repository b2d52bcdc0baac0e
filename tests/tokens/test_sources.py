"""Documents of every format, the same however they are cut into items, and errors that name key, value and remedy."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sysconfig
from pathlib import Path

import pytest

from llama31 import config
from llama31.tokens import sources

TEXTS = [f"document {i} " + "wörter " * i for i in range(60)]


def _texts(source: config.Source) -> list[str]:
    return [text for item in sources.items(source, "s") for text in sources.documents(item, source, "s")]


def _jsonl(texts: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, key: text}).encode() + b"\n" for i, text in enumerate(texts))


@pytest.mark.parametrize("item_bytes", [1, 17, 1000, 10**6])
@pytest.mark.parametrize("ending", [b"", b"\n", b'{"text": "last"}'])
def test_jsonl_is_the_same_in_any_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item_bytes: int, ending: bytes
) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS) + ending)
    monkeypatch.setattr(sources, "_ITEM_BYTES", item_bytes)
    result = _texts(config.Source(input=str(tmp_path / "a.jsonl")))
    assert result == TEXTS + (["last"] if ending.startswith(b"{") else [])


def test_compressed_jsonl(tmp_path: Path) -> None:
    import zstandard

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_jsonl(TEXTS[:30])))
    two_frames = zstandard.compress(_jsonl(TEXTS[30:40])) + zstandard.compress(_jsonl(TEXTS[40:]))
    (tmp_path / "b.jsonl.zst").write_bytes(two_frames)
    assert _texts(config.Source(input=str(tmp_path))) == TEXTS


LINES = [(suffix, "lines") for suffix in ("json", "json.gz", "jsonl.xz", "ndjson.bz2", "json.zst")]


@pytest.mark.parametrize(
    ("suffix", "form"), [*LINES, ("json", "array"), ("json.gz", "array"), ("json", "pretty"), ("json.bz2", "pretty")]
)
def test_records_whatever_the_suffix_says(tmp_path: Path, suffix: str, form: str) -> None:
    import zstandard

    records = [{"text": text} for text in TEXTS]
    content = {"lines": _jsonl(TEXTS), "array": json.dumps(records).encode()}
    content["pretty"] = json.dumps(records, indent=1).encode()
    _, _, packed = suffix.partition(".")
    pack = {"": bytes, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstandard.compress}
    (tmp_path / f"a.{suffix}").write_bytes(pack[packed](content[form]))
    assert _texts(config.Source(input=str(tmp_path / f"a.{suffix}"))) == TEXTS
    assert _texts(config.Source(input=str(tmp_path), format="jsonl")) == TEXTS


def test_json_that_holds_no_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"a\.json is neither JSON lines nor JSON .* format=text"):
        _texts(config.Source(input=str(tmp_path)))
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(_jsonl(TEXTS))[:-20])
    with pytest.raises(ValueError, match=r"b\.jsonl\.bz2 is damaged .*; fetch it again"):
        _texts(config.Source(input=str(tmp_path / "b.jsonl.bz2")))
    (tmp_path / "b.jsonl.bz2").unlink()
    (tmp_path / "a.json").write_text('[{"text": "one"}, 2]')
    with pytest.raises(ValueError, match=r"record 2 is no JSON object"):
        _texts(config.Source(input=str(tmp_path)))
    (tmp_path / "a.json").write_text('{\n "text": "one"\n}')
    assert _texts(config.Source(input=str(tmp_path))) == ["one"]


def test_links_are_followed_once_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    disk, root = tmp_path / "disk", tmp_path / "in"
    disk.mkdir()
    root.mkdir()
    (disk / "a.jsonl").write_bytes(_jsonl(["linked"]))
    (root / "own.jsonl").write_bytes(_jsonl(["own"]))
    (root / "web").symlink_to(disk)
    (root / "web-again").symlink_to(disk)
    (disk / "up").symlink_to(root)
    (root / "table.csv").write_text("a,b")
    (root / ".hidden.jsonl").write_bytes(_jsonl(["hidden"]))
    source = config.Source(input=str(root))
    assert sorted(_texts(source)) == ["linked", "own"]
    left = [str(Path(path).relative_to(root)) for path in sources.unread(source)]
    again = ["web-again (read already)", "web/up (read already)"]
    assert sorted(left) == [".hidden.jsonl", "table.csv", *again]
    assert sources.unread(config.Source(input=str(root), suffixes=".jsonl")) == [str(root / path) for path in again]
    assert sources.unread(config.Source(input=str(root / "own.jsonl"))) == []


def test_parquet_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"body": TEXTS, "n": list(range(60))}), tmp_path / "a.parquet", row_group_size=7
    )
    monkeypatch.setattr(sources, "_ITEM_BYTES", 1000)
    source = config.Source(input=f"{tmp_path}/*.parquet", text_key="body")
    assert len(sources.items(source, "s")) > 2 and _texts(source) == TEXTS
    with pytest.raises(ValueError, match=r"data.sources.s.text_key=text: .* it has body, n"):
        _texts(config.Source(input=str(tmp_path)))


def test_datasets_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    saved = datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": TEXTS})})
    saved.save_to_disk(str(tmp_path / "d"))
    monkeypatch.setattr(sources, "_ITEM_ROWS", 7)
    source = config.Source(input=str(tmp_path / "d"), split="test")
    assert len(sources.items(source, "s")) == 9 and _texts(source) == TEXTS
    with pytest.raises(ValueError, match="split=train: datasets cannot load it"):
        _texts(config.Source(input=str(tmp_path / "d")))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["007", "1e3", "NaN"], None),
        (["2024-01-02", "2024-01-03T04:05:06Z"], r"text_key=text: .* holds datetime there, which is no text"),
        (["a \ud800 surrogate"], r"split=train: datasets cannot load it: .*generating the dataset"),
    ],
)
def test_datasets_change_no_text_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], message: str | None
) -> None:
    """Their reader of JSON makes dates of texts that look like dates; numbers stay as they are written."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(_jsonl(texts))
    source = config.Source(input=str(tmp_path / "in"), format="dataset")
    if message is None:
        assert _texts(source) == texts
    else:
        with pytest.raises(ValueError, match=message):
            _texts(source)


def test_a_file_whose_name_holds_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "sp ace" / "a,b.jsonl"
    path.parent.mkdir()
    path.write_bytes(_jsonl(TEXTS[:2]))
    assert _texts(config.Source(input=str(path))) == TEXTS[:2]


def test_text_folders_and_commas(tmp_path: Path) -> None:
    for i, name in enumerate(["b.txt", "a/z.md", "a/b/c.rst", "skipped.bin", ".hidden.txt", "own.log"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TEXTS[i])
    assert _texts(config.Source(input=str(tmp_path))) == [TEXTS[0], TEXTS[1], TEXTS[2]]
    assert _texts(config.Source(input=f"{tmp_path}/own.log, {tmp_path}/b.txt,{tmp_path}")) == [
        TEXTS[i] for i in (5, 0, 1, 2)
    ]
    assert _texts(config.Source(input=str(tmp_path), suffixes=".log,.md")) == [TEXTS[5], TEXTS[1]]


def test_tree_takes_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "a.py": b"x = 1",
        "latin.py": b"\xe9\xe8",
        "image.png": b"\x89PNG\x00",
        "empty.py": b" \n",
        "__pycache__/a.pyc": b"text",
        ".git/config": b"text",
        "site-packages/p.py": b"text",
        "sub/b.c": b"int b;",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(sources, "_ITEM_FILES", 2)
    assert _texts(config.Source(input=str(tmp_path), format="tree")) == ["x = 1", "int b;"]
    assert _texts(config.Source(input=str(tmp_path), format="tree", suffixes=".c")) == ["int b;"]


def test_placeholders_mean_folders_that_every_machine_has() -> None:
    paths = sysconfig.get_paths()
    for name, folder in (("{stdlib}", paths["stdlib"]), ("{site-packages}", paths["purelib"])):
        cut = sources.items(config.Source(input=name, format="tree", suffixes=".py"), "s")
        files = [path for item in cut for path in item.paths]
        assert files and all(path.startswith(folder) for path in files)
    library = sources.items(config.Source(input="{stdlib}", format="tree", suffixes=".py"), "s")
    assert not any("site-packages" in path[len(paths["stdlib"]) :] for item in library for path in item.paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": }\n', r"data.sources.s.input: .*a.jsonl:3 is no JSON .*mend or remove"),
        (b'{"text": "a"}\n[1]\n', r"a.jsonl:2 is no JSON object"),
        (b'{"text": "a"}\n{"body": "b", "n": 1}\n', r"data.sources.s.text_key=text: .*a.jsonl:2 .* body, n"),
        (b'{"text": 7}\n', r"text_key=text: .*a.jsonl:1 holds int there, which is no text; its fields are text"),
        (b"\xff\xfe\n", r"a.jsonl:1 is no JSON"),
    ],
)
@pytest.mark.parametrize("item_bytes", [5, 10**6])
def test_bad_lines_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, item_bytes: int
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    monkeypatch.setattr(sources, "_ITEM_BYTES", item_bytes)
    with pytest.raises(ValueError, match=message):
        _texts(config.Source(input=str(tmp_path / "a.jsonl")))


def test_null_and_blank_texts_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": " \\n"}\n{"text": "a"}\n')
    assert _texts(config.Source(input=str(tmp_path / "a.jsonl"))) == ["a"]


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    import zstandard

    for name, packed in (("a.jsonl.gz", gzip.compress), ("b.jsonl.zst", zstandard.compress)):
        for content in (packed(_jsonl(TEXTS))[:-9], packed(_jsonl(TEXTS))[:20] + b"?" * 60):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"data.sources.s.input: .*{name} is damaged"):
                _texts(config.Source(input=str(tmp_path / name)))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no readable Parquet"):
        _texts(config.Source(input=str(tmp_path / "c.parquet")))


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    def message(**keys: str) -> str:
        with pytest.raises(ValueError) as error:
            _texts(config.Source(**keys))
        return str(error.value)

    assert "data.sources.s.input=/no/such: no such file" in message(input="/no/such")
    assert "data.sources.s.input is empty" in message(input="")
    assert "data.sources.s.format=csv: choose one of" in message(input="x", format="csv")
    (tmp_path / "a.py").write_text("x")
    assert "set format (tree" in message(input=str(tmp_path))
    assert "no files ending in .c" in message(input=str(tmp_path), suffixes=".c", format="tree")
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    assert "a.txt is not UTF-8 (byte 0); convert it, or set format=tree" in message(input=str(tmp_path / "a.txt"))
    (tmp_path / "a.jsonl").write_text("")
    assert "holds no text" in message(input=str(tmp_path / "a.jsonl"))
