"""Python commands as forks of one process that has imported torch and all that recipes need: seconds less for each.

`python -m tests.forkserver SOCKET MODULE...` imports and listens. A program `python` of `programs` hands it the
arguments, folder, environment and streams that it was started with, forwards signals, and ends as the fork does. The
fork runs a module as `__main__`, or a text of Python, just as the interpreter would; only imports are there already.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import typing
from pathlib import Path
from typing import Any

from tests.processes import ROOT, search_path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words = {before!r} + sys.argv[1:]
if words[:1] == ["-u"]:
    words = words[1:]
if words[:1] not in (["-m"], ["-c"]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
asked = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(asked).to_bytes(8, "big")], [0, 1, 2])
link.sendall(asked)
answers = link.makefile("r")
child = int(answers.readline())
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, frame: os.kill(child, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
MODULES = tuple(
    f"llama31.{name}"
    for name in (
        "train.loop", "train.feeds", "evaluate.perplexity", "evaluate.choices", "evaluate.needle", "evaluate.generate",
        "convert.checkpoints", "convert.average", "judging.rejection", "judging.score", "engine.preference",
        "runs.plots",
    )
)  # fmt: skip
MODULES += ("torch.distributed.run", "hydra", "recipes", "tqdm")
QUICK = ("hydra", "hydra.core.override_parser.overrides_parser", "yaml", "llama31.config", "llama31.command.entry")
HEAVY = ("torch", "megatron", "deepspeed", "transformers", "datasets", "matplotlib", "numpy")
TELL = "TELL_IMPORTS"  # set in the environment of a command: its last line of errors names what is in HEAVY


@functools.cache
def programs(modules: tuple[str, ...] = MODULES) -> Path:
    """A folder with `python` and `torchrun`; the first call starts the server, which ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="forks."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path()}
    words = [sys.executable, "-m", "tests.forkserver", address, *modules]
    server = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    atexit.register(server.wait)
    atexit.register(typing.cast(Any, server.stdin).close)
    for name, before in {"python": [], "torchrun": ["-m", "torch.distributed.run"]}.items():
        text = CLIENT.format(python=sys.executable, before=before, address=address)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    assert typing.cast(Any, server.stdout).readline() == b"listening\n", "the server of forks did not start"
    return folder


def environment(modules: tuple[str, ...] = MODULES) -> dict[str, str]:
    """That of a command whose `python` and `torchrun`, with its workers, are forks."""
    folder = programs(modules)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": search_path(), "PYTHON_EXEC": str(folder / "python")}


def _serve(address: str) -> None:
    """Fork for each connection, until standard input is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who keep a connection
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("listening", flush=True)
        while True:
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                return
            link, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _keep(link)
                os._exit(0)
            link.close()


def _keep(link: socket.socket) -> None:
    """Start what is asked for, tell its number and how it ended; kill it where nobody waits any more."""
    size, streams, _, _ = socket.recv_fds(link, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += link.recv(1 << 16)
    child = os.fork()
    if child == 0:
        link.close()
        os._exit(_run(streams, *json.loads(asked)))
    for stream in streams:
        os.close(stream)
    link.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    select.select([ended, link], [], [])
    done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.killpg(child, signal.SIGKILL)
        return
    with contextlib.suppress(OSError):
        link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(streams: list[int], words: list[str], folder: str, environment: dict[str, str]) -> int:
    """What `python WORDS` does, and its exit status."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, folder if words[0] == "-m" else "")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = 0
    try:
        sys.argv = [words[1] if words[0] == "-m" else "-c", *words[2:]]
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - there is nobody above
        traceback.print_exc()
        code = 1
    if TELL in environment:
        print("imported:", *(name for name in HEAVY if name in sys.modules), file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main(address: str, *modules: str) -> None:
    """Import, then serve."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # each collection of a fork would go through all that was imported
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a fork would lose threads, and here are {threads}; is OMP_NUM_THREADS 1?"
    _serve(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
