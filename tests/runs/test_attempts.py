"""Who owns a run folder when two attempts live at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama31.runs import attempts
from tests.conftest import ROOT


def test_numbers_go_up_and_nobody_gets_one_twice(tmp_path: Path) -> None:
    assert attempts.newer(tmp_path, 0) is None and attempts.starts(tmp_path) == {}
    assert [attempts.claim(tmp_path) for _ in range(3)] == [0, 1, 2]
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: attempts.claim(tmp_path), range(40)))
    assert sorted(claimed) == list(range(3, 43))
    assert attempts.path_of(tmp_path, 42).name == "0042"


def test_a_newer_one_is_seen(tmp_path: Path) -> None:
    mine = attempts.claim(tmp_path)
    assert attempts.newer(tmp_path, mine) is None
    (tmp_path / "attempts" / "notes.txt").touch()
    attempts.claim(tmp_path)
    attempts.claim(tmp_path)
    assert attempts.newer(tmp_path, mine) == 2 and attempts.newer(tmp_path, 2) is None


def test_starts_come_from_what_the_attempts_wrote(tmp_path: Path) -> None:
    for content in ('{"from_step": 0}', '{"from_step": 12, "host": "a"}', "torn {", "[]", '{"from_step": null}'):
        folder = attempts.path_of(tmp_path, attempts.claim(tmp_path))
        (folder / "attempt.json").write_text(content)
    attempts.claim(tmp_path)  # and one that wrote nothing
    assert attempts.starts(tmp_path) == {0: 0, 1: 12}
    (attempts.path_of(tmp_path, 5) / "attempt.json").write_text(json.dumps({"from_step": 7}))
    assert attempts.starts(tmp_path) == {0: 0, 1: 12, 5: 7}


def test_a_twin_is_known_while_its_process_lives(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"from llama31.runs.attempts import claim; claim({str(tmp_path)!r}); print(1); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None and child.stdout.readline()
        assert attempts.living(tmp_path) == (0, child.pid)
        record = json.loads((tmp_path / "attempts" / "0000" / "process.json").read_text())
        for changed in ({"host": "elsewhere"}, {"began": "1"}, {"pid": os.getpid()}):
            (tmp_path / "attempts" / "0000" / "process.json").write_text(json.dumps(record | changed))
            assert attempts.living(tmp_path) is None, changed
        (tmp_path / "attempts" / "0000" / "process.json").write_text(json.dumps(record))
        (tmp_path / "attempts" / "0000" / "end.json").touch()
        assert attempts.living(tmp_path) is None, "it has said its last word"
        (tmp_path / "attempts" / "0000" / "end.json").unlink()
        assert attempts.living(tmp_path) is not None
    finally:
        child.kill()
        child.wait(timeout=60)
    assert attempts.living(tmp_path) is None
