"""Keys of `recipes.synthesize`: data that models write and programs check (report, sections 4.2.3 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import MISSING, key
from llama31.config.sampling import Server

SYNTHESES = ("factuality", "steerability", "safety", "guard")


@dataclass
class SynthesisSampling:
    """How answers are drawn where a task says nothing else. The report states neither temperature nor length."""

    temperature: float = key(1.0, "0: greedy", low=0)
    top_p: float = key(1.0, "nucleus", above=0, high=1)
    max_new_tokens: int = key(2048, "longest answer; what does not end by then is asked for once more", low=1)
    seed: int = key(1234, "seed of all answers", low=0)


@dataclass
class SynthesisJobs:
    """What is asked of Slurm: an array of shards, and the job that gathers them."""

    at_once: int | None = key(
        None, "elements of the array that run at a time; null: as many as there is room for", low=1
    )
    cpus: int = key(8, "cores of each, on which checks run", low=1)
    partition: str | None = key(None, "partition; null: Slurm's default")
    account: str | None = key(None, "account that pays; null: Slurm's default")
    time: str | None = key(None, "time limit of an element as sbatch reads it; null: that of slurm/synthesize.sh")
    options: str = key("", "further options of sbatch: 'job.options=--exclude=n3 --qos=high'")


@dataclass
class FactualitySynthesis:
    """What a model knows that it knows (report, section 4.3.6). Numbers are ours: the report states none."""

    answers: int = key(8, "answers to each question", low=1)
    consistent: float = key(0.75, "share of the answers from which on they are consistent", above=0, high=1)
    keep_right: bool = key(True, "keep a right answer too, where answers are consistently right")
    characters: int = key(4000, "characters of a snippet that are shown", low=1)


@dataclass
class SteerabilitySynthesis:
    """System prompts that are obeyed (report, section 4.3.7). Numbers are ours."""

    rules: int = key(2, "rules of form in a system prompt, which a program checks", low=1, high=4)
    answers: int = key(4, "answers to each prompt", low=1)


@dataclass
class SafetySynthesis:
    """Safe and still helpful (report, section 5.4). Numbers are ours."""

    answers: int = key(4, "answers to each prompt", low=1)
    borderline: int = key(1, "harmless prompts that look like each harmful one", low=0)


@dataclass
class GuardSynthesis:
    """Examples of a classifier of unsafe content (report, section 5.4.7)."""

    votes: int = key(2, "times that a judge labels; what it does not say each time is dropped", low=1)
    code_interpreter: bool = key(False, "the hazard of code interpreters, S14, too")


@dataclass
class Synthesize:
    """Keys of `recipes.synthesize`: prompts, answers, checks, and the records that passed them."""

    task: str = key(MISSING, "what is made", choices=SYNTHESES)
    name: str = key(MISSING, "name of what is made")
    folder: str = key("synthesis/${name}", "folder of all that is made; the same command goes on where it stopped")
    input: str = key(MISSING, "what it is made from: JSON lines, Parquet, or folders of files, comma-separated")
    text_key: str = key("text", "field of a record that the task reads")
    limit: int | None = key(None, "items to read, from the first; null: all", low=1)
    shards: int = key(1, "shards, each an element of the array on Slurm", low=1, high=100_000)
    shard: int | None = key(None, "make this shard alone, as an element of the array does; null: all", low=0)
    part: str = key(
        "all",
        "all, make (the shards), or gather (files, summary and page of what is made)",
        choices=("all", "make", "gather"),
    )
    prompts: str | None = key(None, "folder of own prompts, TASK/NAME.txt, in the place of those of conf/prompts")
    items_at_once: int | None = key(None, "items at work; null: four for each request that servers take", low=1)
    checks: int | None = key(None, "checks that run at a time; null: one per core", low=1)
    server: Server = field(default_factory=Server)
    judge: Server = field(default_factory=Server)
    sampling: SynthesisSampling = field(default_factory=SynthesisSampling)
    factuality: FactualitySynthesis = field(default_factory=FactualitySynthesis)
    steerability: SteerabilitySynthesis = field(default_factory=SteerabilitySynthesis)
    safety: SafetySynthesis = field(default_factory=SafetySynthesis)
    guard: GuardSynthesis = field(default_factory=GuardSynthesis)
    samples: int = key(5, "records of each kind, and dropped items of each reason, shown on the page", low=0, high=100)
    submit: bool = key(False, "submit the shards to Slurm as an array, and after it the gathering")
    job: SynthesisJobs = field(default_factory=SynthesisJobs)
    dry_run: bool = key(False, "print what is done, and the commands of Slurm, and run nothing")
