"""Rejection sampling with a real server: transformers serve, which ignores `n` and more, and which is killed midway."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama31 import config
from llama31.judging import ranking, rejection
from llama31.sampling import drawing
from llama31.tokens import tokenizers
from recipes import sample
from tests.conftest import ROOT
from tests.engine.test_plain_trainer import transformers_llama
from tests.processes import LIMIT_S
from tests.sampling import scripted

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

WORDS = ["Name some birds.", "What is a river?", "Say it in short words, please."] * 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights and a tokenizer, as recipes.convert would write them."""
    folder = tmp_path_factory.mktemp("hf")
    words = tokenizers.train_bpe(WORDS, 530, folder)
    torch.manual_seed(1)
    shape = config.Model(
        "mini", layers=2, hidden_size=64, ffn_hidden_size=96, heads=4, kv_heads=2, vocab_size=words.vocab_size,
        max_positions=256, init_std=0.2,
    )  # fmt: skip
    transformers_llama(shape).save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving(model: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`transformers serve` on a port, from when it is healthy; killed in the end if it still runs."""
    program = str(Path(sys.executable).with_name("transformers"))
    words = [program, "serve", str(model), "--port", str(port), "--device", "cpu", "--host", "127.0.0.1"]
    with log.open("wb") as said:
        child = subprocess.Popen(words, stdout=said, stderr=said, cwd=ROOT, start_new_session=True)
    try:
        for _ in range(10 * LIMIT_S):
            assert child.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=LIMIT_S).close()
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"no health\n{log.read_text()}")
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def session(model: Path, folder: Path, port: int, answers: int, **changes: Any) -> rejection.Session:
    prompts = folder / "prompts.jsonl"
    folder.mkdir(exist_ok=True)
    prompts.write_text('{"prompt": "Name some birds."}\n{"prompt": "What is a river?"}\n')
    server = config.Server(
        urls=[f"http://127.0.0.1:{port}/v1"], concurrency=2, attempts=2, backoff_s=0.05, timeout_s=LIMIT_S, wait_s=5
    )
    run = config.Sample(
        folder=str(folder / "drawn"), prompts=str(prompts), policy=str(model), part="draw", server=server,
        sampling=config.Sampling(answers=answers, max_new_tokens=12), tokenizer=config.Tokenizer("huggingface", ""),
    )  # fmt: skip
    return rejection.open_session(replace(run, **changes))


def draw(opened: rejection.Session) -> None:
    tasks = rejection.to_draw(opened)
    rejection.draw(opened, tasks, rejection.connect(opened, tasks))


def test_a_real_server_drives_sampling_and_dies_midway(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi", reason="transformers serve needs its serving extra (requirements-dev.txt)")
    port, folder = free_port(), tmp_path / "drawn"
    with serving(exported, port, tmp_path / "log") as child:
        draw(session(exported, tmp_path, port, 2))
        assert "prompts as text, ends by generation_config; does not honour n" in capsys.readouterr().out
        first = drawing.read_lines(folder / drawing.CANDIDATES)
        assert len({(line["prompt"], line["k"]) for line in first}) == 4
        asked = session(exported, tmp_path, port, 5)
        tasks = drawing.missing(asked.prompts, 5, first)

        def kill_midway(done: int, total: int) -> None:
            if done == 2:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

        with pytest.raises(config.RunError, match="no server answers any more"):
            drawing.draw(folder, tasks, rejection.connect(asked, tasks), kill_midway)
    kept = drawing.read_lines(folder / drawing.CANDIDATES)
    assert kept[:4] == first and 6 <= len(kept) < 10
    with serving(exported, port, tmp_path / "log"):
        draw(session(exported, tmp_path, port, 5))
    lines, register = drawing.read_lines(folder / drawing.CANDIDATES), drawing.Register(folder).known
    assert lines[: len(kept)] == kept and len(lines) == len({(line["prompt"], line["k"]) for line in lines}) == 10
    assert len({line["text"] for line in lines}) > 5 and all(0 < line["tokens"] <= 12 for line in lines)
    # without top_k=0 in what it is asked it draws from 50 tokens, its own default
    assert all(register[line["server"]]["truncated"] is False and register[line["server"]]["lengths"] for line in lines)
    assert all(register[line["server"]]["checked"] and not register[line["server"]]["n"] for line in lines)


def test_what_servers_drew_is_ranked_without_them(exported: Path, tmp_path: Path) -> None:
    """As slurm/sample.sh does: the addresses are known to the part that draws alone."""
    with scripted.serving(scripted.Script()) as url:
        port = int(url.split(":")[-1].split("/")[0])
        draw(session(exported, tmp_path, port, 2))
    settings = (tmp_path / "drawn" / drawing.SETTINGS).read_text()
    later: dict[str, Any] = {"part": "rank", "reward": "unread", "server": config.Server()}
    again = session(exported, tmp_path, port, 2, **later)
    assert not drawing.missing(again.prompts, 2, drawing.read_lines(again.folder / drawing.CANDIDATES))
    assert (tmp_path / "drawn" / drawing.SETTINGS).read_text() == settings
    with pytest.raises(ValueError, match="it holds answers drawn with api=completions"):
        session(exported, tmp_path, port, 2, server=config.Server())


def test_best_answers_are_made_anew_without_a_reward_model(exported: Path, tmp_path: Path) -> None:
    """Nothing is to be scored, so nothing is built: what stands in for the reward model here could not be."""
    with scripted.serving(scripted.Script()) as url:
        port = int(url.split(":")[-1].split("/")[0])
        draw(session(exported, tmp_path, port, 2))
    opened = session(
        exported, tmp_path, port, 2, part="rank", reward=str(exported), filters=config.Filters(min_tokens=1)
    )
    found, refused = ranking.candidates(opened.folder, drawing.known(opened.prompts), 2)
    model = drawing.Policy("reward", drawing.fingerprint(exported))
    todo = ranking.unscored(found, {})
    ranking.score(
        opened.folder, opened.prompts, todo, model, lambda pairs: [float(len(one.text())) for _, one in pairs], 99
    )
    sample.main(opened.run)
    assert not torch.distributed.is_initialized()
    assert len(drawing.read_lines(opened.folder / drawing.BEST)) == 2 == len(found) and not refused
