"""What sbatch makes of its options and of the environment that it is called in, checked before it is called.

Torch-free. Slurm itself says nothing to most of this: a job after one that it does not know starts at once, a list in
--export is torn at its commas, and the variables of a job step bind the processes of jobs submitted from within.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llama31 import config

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
OWN = ("SLURM_CONF", "SLURM_CLUSTERS")  # which cluster; every other SLURM_ is of the job that a command is typed in
PASSING = re.compile(
    r"(SLURM|SLURMD|SRUN|SQUEUE|PMI|PMIX|PET|TORCHELASTIC)_|SBATCH_WAIT$|"
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|ROLE_NAME$|MASTER_(ADDR|PORT)$"
)
DEVICES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES")
# How a job ends without success, in squeue's words.
FAILED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
SHORT_S = 600  # limits up to this are short for the scripts' --signal (slurm/job.sh)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given` without what belongs to the job or job step that it is the environment of, and without filters."""
    passing = {*DEVICES} if "SLURM_JOB_ID" in given else set()
    return {name: value for name, value in given.items() if name in OWN or not (PASSING.match(name) or name in passing)}


def option(words: Sequence[str], name: str, letter: str) -> str | None:
    """The value of the last --NAME among options of sbatch, spelled in any way that it takes; None without one."""
    last = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        long, equals, value = word.partition("=")
        if len(long) > 4 and f"--{name}".startswith(long):
            last = value if equals else following
        elif re.match(rf"-{letter}(?!-)", word):
            last = word[2:] or following
    return last


def without(words: Sequence[str], name: str, letter: str) -> list[str]:
    """Options of sbatch without --NAME and its value."""
    kept, skip = [], False
    for word in words:
        long, equals, _ = word.partition("=")
        taken = (len(long) > 4 and f"--{name}".startswith(long)) or re.match(rf"-{letter}(?!-)", word) is not None
        if not (taken or skip):
            kept.append(word)
        skip = taken and not equals and (long.startswith("--") or len(word) == 2)
    return kept


def dependency(words: Sequence[str], after: str | None, key: str) -> tuple[list[str], list[str]]:
    """Options that make a job wait for `after` (numbers, parted by colons) and for what `words` ask, and the rest.

    `key` gives the words. Raises ValueError where both cannot be: a list with `?` is fulfilled by any one of its jobs.
    """
    asked = option(words, "dependency", "d")
    if after is None:
        return [], list(words)
    if asked is not None and "?" in asked:
        raise ValueError(
            f"{key}=--dependency={asked}: with ? one job of it is enough, but this one also follows another "
            "of its chain; join them by commas"
        )
    own = ",".join([f"afterok:{after}", *([asked] if asked else [])])
    return [f"--dependency={own}", "--kill-on-invalid-dep=yes"], without(words, "dependency", "d")


def check_dependencies(command: Sequence[str], ask: Callable[[Sequence[str]], str]) -> None:
    """Whether Slurm knows every job that `command`, of sbatch, is to wait for.

    Raises RunError where it does not, for it would take the job for done, or where its end makes waiting vain. `ask`
    gives what a client of Slurm printed, and raises RunError with what it said.
    """
    waits = option(command, "dependency", "d") or ""
    for kind, numbers in re.findall(r"(\w+):([\d:_+*]+)", waits):
        for number in numbers.split(":"):
            number = re.sub(r"\+.*|_\*$", "", number)
            try:
                record = ask(["scontrol", "show", "job", "-o", number])
            except config.RunError as error:
                if "Invalid job id" not in str(error):
                    raise
                raise config.RunError(
                    f"--dependency={waits}: Slurm knows no job {number}. It may have ended long ago, or never been, "
                    "and a job after it would start at once. Leave it out where what it was to make is there"
                ) from error
            ended = [state for state in re.findall(r"JobState=(\w+)", record) if state in FAILED]
            if kind in ("afterok", "aftercorr") and ended:
                raise config.RunError(
                    f"--dependency={waits}: job {number} ended {ended[0]}, so what waits for its success never starts"
                )


def export(words: Sequence[str], given: Mapping[str, str], key: str) -> list[str]:
    """--export, where the site hands on nothing (SBATCH_EXPORT=NONE): what an operator set for the scripts of slurm/.

    `key` gives the words. Raises ValueError for a list that sbatch would tear: it parts at commas, also within a value.
    """
    asked = option(words, "export", "!")
    for name in asked.split(",") if asked else []:
        if "=" not in name and name not in ("ALL", "NIL", "NONE", *given):
            raise ValueError(
                f"{key}=--export={asked}: sbatch parts it at every comma, and there is no variable {name!r} "
                "here; export NAME=VALUE before this command, and name NAME alone, or ALL"
            )
    if asked or given.get("SBATCH_EXPORT") not in ("NIL", "NONE"):
        return []
    texts = [(SCRIPTS / name).read_text() for name in ("env.sh", "sample.sh", "vllm.sh")]
    names = [name for text in texts for name in re.findall(r"^: \"\$\{(\w+):=", text, re.MULTILINE)]
    names = [name for name in ("VLLM_PYTHON", *names) if name in given]
    return [f"--export={','.join(dict.fromkeys(names))}"] if names else []


def of_job(
    job: config.CurationJobs | config.SynthesisJobs, after: str | None, given: Mapping[str, str],
    key: str = "job.options",
) -> list[str]:  # fmt: skip
    """Options of an array: where and how long it runs, after which jobs, what it is handed of `given`, its own.

    `key` gives the last. Raises ValueError as `dependency` and `export`.
    """
    asked = {"partition": job.partition, "account": job.account, "time": job.time}
    own, rest = dependency(shlex.split(job.options), after, key)
    words = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return [*words, *own, *export(rest, given, key), *rest]


def seconds(limit: str) -> int | None:
    """Seconds of a time limit as sbatch reads it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S); None without a limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        return None
    days, *parts = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        scales = (3600, 60, 1)
    else:
        scales = (60, 1, 0) if parts[2] is None else (3600, 60, 1)
    total = (days or 0) * 86400 + sum((part or 0) * scale for part, scale in zip(parts, scales, strict=True))
    return total or None  # a limit of zero asks for none


def limit(script: Path, time: str | None, words: Sequence[str], given: Mapping[str, str]) -> str | None:
    """The time limit of a job: of its options, or else of the environment, or else of its script; None: the site's."""
    asked = re.search(r"^#SBATCH --time=(\S+)", script.read_text(), re.MULTILINE)
    return option(words, "time", "t") or time or given.get("SBATCH_TIMELIMIT") or (asked[1] if asked else None)


def short(script: Path, time: str | None, words: Sequence[str], given: Mapping[str, str]) -> str | None:
    """What to tell of a time limit that is too short for the signal which `script` asks for; None where it is not."""
    asked = limit(script, time, words, given)
    length = seconds(asked) if asked else None
    signalled = re.search(r"^#SBATCH --signal=B:USR1@(\d+)", script.read_text(), re.MULTILINE)
    if length is None or length > SHORT_S or signalled is None or option(words, "signal", "!") is not None:
        return None
    return (
        f"a time limit of {length} s is short for slurm/{script.name}, which is told {signalled[1]} s before its end "
        f"to save: it will do so with {length // 3} s left and come back; give more than {SHORT_S // 60} minutes, or "
        f"a signal of your own: submit.options=--signal=B:USR1@{length // 3}"
    )
