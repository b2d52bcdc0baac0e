"""The configs of the recipes, each of which is sections and keys of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.exams import Gates, Needle, Task
from llama31.config.keys import MISSING, key
from llama31.config.planning import Failures
from llama31.config.sections import (
    Checkpoint,
    Cluster,
    Data,
    Dialogs,
    Guard,
    Log,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Preferences,
    Preflight,
    Profile,
    RewardModel,
    Schedule,
    Tokenizer,
    TrainedPrecision,
    Validation,
)


@dataclass
class Training:
    """Keys that every recipe has that trains."""

    name: str = key(MISSING, "name of the run")
    folder: str = key("runs/${name}", "run folder: config, metrics, checkpoints")
    seed: int = key(1234, "seed of the initial weights", low=0)
    deterministic: bool = key(
        False,
        "equal bits from every run on equal machines, and after a resume, at the price of speed: on a GPU attention's "
        "backward pass otherwise adds in any order (CPUs always give equal bits)",
    )
    resume: str = key("auto", "auto (newest complete checkpoint of the folder), none, or a checkpoint folder")
    take_over: bool = key(False, "begin though another process on this machine trains the same run, which then ends")
    init_from: str | None = key(None, "checkpoint folder whose weights start the run, on a schedule from its beginning")
    init_optimizer: bool = key(
        False, "take masters and moments of init_from too; false: a fresh optimizer over the weights alone"
    )
    init_changes: list[str] = key(
        [], "keys of the model that may differ from init_from's: rope_factor, rope_theta, norm_eps"
    )
    stop_after_steps: int | None = key(None, "end this process after so many steps, with a checkpoint", low=1)
    model: Model = field(default_factory=Model)
    parallel: Parallel = field(default_factory=Parallel)
    precision: Precision = field(default_factory=Precision)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    cluster: Cluster = field(default_factory=Cluster)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    validation: Validation = field(default_factory=Validation)
    guard: Guard = field(default_factory=Guard)
    preflight: Preflight = field(default_factory=Preflight)
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)


@dataclass
class Pretrain(Training):
    """Keys of `recipes.pretrain`: train on the next token."""

    data: Data = field(default_factory=Data)
    gates: Gates = field(default_factory=Gates)


@dataclass
class Probe(Pretrain):
    """Keys of `recipes.probe`: what a source of data is worth, by annealing with it and without (report, 3.1.3)."""

    candidates: list[str] = key([], "sources of data to judge; all others, by their weights, are the default data")
    share: float = key(0.3, "share of a candidate in the data of its annealings (the report's)", above=0)
    seeds: list[int] = key([1, 2, 3, 4, 5], "orders of the data: everything is annealed once with each (ours)")
    tasks: dict[str, Task] = key({}, "multiple-choice tasks to compare too, keyed by name: tasks.NAME.path=FILE")
    measure: str = key("acc_norm", "score of a task", choices=("acc", "acc_norm", "acc_bytes"))
    arm: int | None = key(None, "train only this arm, as a task of a Slurm array does; null: all that remain", low=0)
    collect: bool = key(False, "train nothing, only put together what is finished")


@dataclass
class Sft(Training):
    """Keys of `recipes.sft`: train on what assistants say in dialogs."""

    data: Dialogs = field(default_factory=Dialogs)


@dataclass
class Reward(Training):
    """Keys of `recipes.reward`: train a scalar head to rank answers, or to judge steps."""

    model: RewardModel = field(default_factory=RewardModel)
    objective: str = key(
        "preferences",
        "what the sources hold and is learned: preferences of answers, or steps of solutions with labels, each step's "
        "reward being the logit that it is right (report, section 4.3.3)",
        choices=("preferences", "steps"),
    )
    hard_above: float | None = key(
        None,
        "of objective=steps: labels above it are 1 and others 0 (Math-Shepherd's hard labels: 0); null: as they are",
        low=0, high=1,
    )  # fmt: skip
    layout: str = key(
        "tree",
        "answers in one row: unseen by each other (tree) or one after the other (plain, the report's approximation); "
        "separate: each behind a prompt of its own. Of steps tree or separate",
        choices=("tree", "plain", "separate"),
    )
    data: Preferences = field(default_factory=Preferences)


@dataclass
class Dpo(Training):
    """Keys of `recipes.dpo`: train on preferences directly, against the model that training begins with."""

    beta: float = key(0.1, "weight of the log-ratios (report)", above=0)
    masked: bool = key(True, "leave headers and terminations out of the preference term (report)")
    nll: float = key(0.2, "weight of the likelihood of the better answer, format included (report)", low=0)
    nll_mean: str = key(
        "tokens",
        "likelihood: mean over tokens of the batch, or of each answer's mean (the report does not say)",
        choices=("tokens", "dialogs"),
    )
    length_normalised: bool = key(False, "divide an answer's log-ratio by its tokens")
    data: Preferences = field(default_factory=Preferences)


@dataclass
class Pack:
    """Keys of `recipes.pack`: text -> tokens on disk."""

    overwrite: bool = key(False, "replace a packed source that is already there")
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


@dataclass
class Convert:
    """Keys of `recipes.convert`: Hugging Face (or Meta) weights to a checkpoint and back."""

    direction: str = key(MISSING, "which way to convert", choices=("from_hf", "to_hf", "from_meta", "to_meta"))
    hf: str = key(MISSING, "Hugging Face folder (from_meta, to_meta: folder in Meta's format)")
    checkpoint: str = key(MISSING, "checkpoint folder, or a run folder whose newest checkpoint is meant")
    dtype: str = key("bf16", "number format of the written weights", choices=("bf16", "fp32"))
    fp8: bool = key(False, "to_hf: SwiGLU of all layers but the first and the last in FP8, for servers (fbgemm_fp8)")
    max_shard_bytes: int = key(5_000_000_000, "largest safetensors file", low=1)
    meta_files: int = key(1, "to_meta: files to split the model into, one for each of so many GPUs", low=1)
    tokenizer: str | None = key(None, "tokenizer folder to export; null: the one that the run used")
    overwrite: bool = key(False, "replace what stands at the target")


@dataclass
class Average:
    """Keys of `recipes.average`: several checkpoints, or Hugging Face folders, to one with the average weights."""

    inputs: list[str] = key([], "checkpoints (or run folders: their newest), or Hugging Face folders; oldest first")
    run: str | None = key(None, "instead: a run folder, of which the newest checkpoints are averaged")
    last: int | None = key(None, "how many of run; null: all that it has", low=1)
    target: str = key(
        MISSING, "run folder (or .../step-00000100) to write to, or Hugging Face folder, as the inputs are"
    )
    weights: list[float] = key([], "weight of each input, relative to the others; empty: equal weights")
    decay: float | None = key(
        None, "instead: an input weighs so much of what the one after it does (exponential average)", above=0, high=1
    )
    tensors: str = key(
        "weights",
        "of checkpoints: weights, their FP32 masters, or the average kept during training (ema, of one input too)",
        choices=("weights", "masters", "ema"),
    )
    dtype: str | None = key(
        None, "number format of the written weights; null: that of the newest input", choices=("bf16", "fp32")
    )
    max_shard_bytes: int = key(5_000_000_000, "largest safetensors file", low=1)
    overwrite: bool = key(False, "replace what stands at the target")


@dataclass
class Evaluate:
    """Keys of `recipes.evaluate`: perplexity and divergence on packed text, choices, needles, continuations."""

    checkpoint: str = key(MISSING, "checkpoint folder, run folder (its newest checkpoint) or Hugging Face folder")
    split: str = key("heldout", "split of the packed data", choices=("heldout", "train"))
    tokens: int = key(131072, "tokens per source", low=1)
    against: str | None = key(
        None,
        "another model (BF16, of an FP8 export): KL of each token of data from its predictions; both in memory",
    )
    sequence_length: int | None = key(
        None, "tokens per row and most of a prompt; null: as at the end of training, and all positions", low=1
    )
    tasks: dict[str, Task] = key({}, "multiple-choice tasks keyed by name: tasks.NAME.path=FILE")
    details: bool = key(False, "write the log-likelihoods of every choice to the result too")
    needle: Needle = field(default_factory=Needle)
    prompts: list[str] = key([], "texts to continue; names of special tokens in them are text")
    max_new_tokens: int = key(64, "tokens to generate per prompt", low=1)
    temperature: float = key(0.0, "0: greedy; otherwise sampling", low=0)
    top_p: float = key(1.0, "nucleus for sampling", above=0, high=1)
    seed: int = key(1234, "seed of the sampling", low=0)
    output: str | None = key(
        None, "file to write the results to as JSON, the needle's heat map beside it; null: printed"
    )
    parallel: Parallel = field(default_factory=Parallel)
    precision: TrainedPrecision = field(default_factory=TrainedPrecision)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass
class Benchmark:
    """Keys of `recipes.benchmark`: ours against its peers, and what a user waits for."""

    parts: list[str] = key(
        ["train", "pack", "convert", "start", "checkpoint", "length", "align"],
        "what to measure: train, pack, convert, start, checkpoint, length, align; minutes each: curate (pages to token "
        "files, beside datatrove's own blocks), extend (is long context learned?), rounds (does every stage of "
        "post-training improve what it is meant to?), sandbox (what one costs), gpu (one step on a GPU; --config-name "
        "gpu, or the word gpu, has its shapes), calibrate (constants of this machine for recipes.plan), predict "
        "(those, and steps of small models beside what is predicted of them)",
    )
    part: str = key(
        "first",
        "of the part `gpu`: first (BF16, FP8, transformers, memory) and rest (longer rows, documents, dialogs, "
        "ceilings), each within budget_s; micro (kernels by themselves)",
        choices=("first", "rest", "micro"),
    )
    only: list[str] = key([], "cases of the part `gpu` by name, in place of those of `part`; empty: all of them")
    budget_s: int | None = key(
        None, "seconds for the part `gpu`, whose last cases are left out and named; null: 240, rest 480", low=1
    )
    record: str | None = key(None, "JSON file for all that the part `gpu` measured; null: none")
    commit: str | None = key(None, "commit to name beside the figures of the part `gpu`; null: as git says")
    write: str | None = key(
        None, "of calibrate and predict: YAML file for the constants, as conf/hardware/NAME.yaml; null: only printed"
    )
    processes: int | None = key(None, "that calibrate measures with at once; null: one per GPU, or per core", low=1)
    cases: list[str] = key(
        [
            "ours-own-fp32",
            "trainer-eager-fp32",
            "trainer-sdpa-fp32",
            "loop-eager-fp32",
            "loop-sdpa-fp32",
            "ours-own-mixed",
            "trainer-eager-mixed",
            "trainer-sdpa-mixed",
            "loop-eager-mixed",
            "loop-sdpa-mixed",
            "trainer-sdpa-bf16",
            "loop-sdpa-bf16",
        ],
        "TRAINER-ATTENTION-PRECISION; bf16 peers hold all state in BF16, mixed ones FP32 masters as ours does",
    )
    bf16: bool | None = key(
        None,
        "compute in BF16 where a part has it: cases in bf16 and mixed, checkpoint, length; false: those cases are left "
        "out and the parts compute in FP32; null: false where BF16 is slower than FP32 on this CPU",
    )
    repeats: int = key(3, "runs of each case, interleaved, each in a process of its own", low=1)
    steps: int = key(4, "measured optimizer steps per run", low=1)
    warmup_steps: int = key(1, "steps before them", low=1)
    sequence_length: int = key(512, "tokens per sequence", low=1)
    rows: int = key(4, "sequences per step", low=1)
    micro_batch: int = key(2, "sequences per micro-batch", low=1)
    attention_lengths: list[int] = key([2048, 8192, 32768], "tokens per row of the part `length`")
    cp_length: int = key(4096, "tokens per row where it compares two processes with one", low=16)
    align_records: int = key(24, "dialogs that the part `align` reads; half as many preferences", low=8)
    pages: list[str] = key([], "folders of English HTML that the part `curate` reads")
    heat_map: str | None = key(None, "PNG file for the needles that the part `extend` finds; null: none")
    timeout_s: int = key(600, "seconds after which one run has failed", low=1)
    llama3_tokenizer: str | None = key(
        None, "Meta's tokenizer.model; null: the one that the package llama-models holds"
    )
    output: str | None = key(None, "file to write the tables to, as Markdown; null: only printed")
    model: Model = field(default_factory=Model)


@dataclass
class Simulate(Failures):
    """Keys of `recipes.simulate`: what failures cost a long run. The report states none of the times; they are ours."""

    gpus: int = key(16384, "GPUs of the run", low=1)
    node_gpus: int = key(8, "GPUs of a node", low=1)
    days: float = key(54.0, "days that it lasts", above=0)
    replications: int = key(100, "simulated runs", low=5)
    seed: int = key(1234, "seed of the failures", low=0)
    goal: float = key(0.97, "effective training time that `table` asks for", above=0, high=1)
    table: bool = key(False, "print the effective time for every combination of the three lists that follow")
    table_stalls_s: list[float] = key([1.0, 5.0, 30.0], "values of checkpoint_stall_s in that table")
    table_detects_s: list[float] = key([10.0, 60.0, 300.0], "values of detect_s in that table")
    table_restarts_s: list[float] = key([60.0, 120.0, 300.0, 600.0], "values of restart_s in that table")
    output: str | None = key(None, "PNG file for bars of the lost time; null: only printed")


@dataclass
class Report:
    """Keys of `recipes.report`: one HTML page of one or several run folders."""

    runs: list[str] = key([], "run folders; several are compared: 'runs=[runs/a,runs/b]'")
    output: str | None = key(None, "HTML file to write; null: report.html in the first run folder")
