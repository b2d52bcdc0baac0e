"""Every key that a run may set.

The dataclasses below are the schema: defaults and bounds live here alone, YAML under `conf/` states only what
differs, and `load` is the only door from Hydra to the rest of the code. Units stand in names: `_tokens`, `_s`,
`_bytes`. What keys must satisfy together is in `validate.py` and `layout.py`.

A new recipe is one dataclass here, one `conf/<recipe>.yaml` and one file in `recipes/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
MISSING: Any = "???"  # OmegaConf's mark for a key that has to be given
MOST_TOKENS = 10**16  # a thousand times what is trained on today, and still exact in FP64 and int64


class Issue(NamedTuple):
    """One problem of a config: the key, its value, what is wrong and what to do about it."""

    key: str
    value: Any
    problem: str
    remedy: str

    def __str__(self) -> str:
        shown = str(self.value).lower() if isinstance(self.value, bool) else self.value
        given = self.key if self.value is MISSING else f"{self.key}={'null' if shown is None else shown}"
        return f"{given}: {self.problem}; {self.remedy}"


class RunError(RuntimeError):
    """Work that had begun could not go on; the message says why, what is safe, and what to do."""


class ConfigError(ValueError):
    """All problems of a config at once. `hint` is a last line that concerns them together."""

    def __init__(self, issues: Sequence[Issue], hint: str = "") -> None:
        self.issues = list(issues)
        self.hint = hint
        super().__init__("\n".join([*map(str, self.issues), *([hint] if hint else [])]))


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """One key of the schema: its default, the sentence that `--help` prints, and the values that it may take.

    `low` and `high` are inclusive bounds, `above` is an exclusive one; None itself is judged by the type alone.
    """
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    """Shape of a Llama 3.1 (report, Table 3). Sizes are final numbers, not formulas."""

    name: str = key(MISSING, "name of this row of the model table")
    layers: int = key(MISSING, "transformer layers", low=1)
    hidden_size: int = key(MISSING, "width of the residual stream", low=1)
    ffn_hidden_size: int = key(MISSING, "width of the SwiGLU", low=1)
    heads: int = key(MISSING, "query heads", low=1)
    kv_heads: int = key(MISSING, "key/value heads (GQA groups)", low=1)
    vocab_size: int = key(128256, "rows of the embedding; at least the tokenizer's ids", low=1)
    tied_embeddings: bool = key(False, "output layer shares the embedding (Llama 3.2 1B and 3B)")
    max_positions: int = key(131072, "longest context, written to config.json on export", low=1)
    rope_theta: float = key(500000.0, "base of the rotary embedding", above=0)
    rope_factor: float = key(8.0, "Llama 3.1 RoPE scaling factor; 0 switches the scaling off", low=0)
    norm_eps: float = key(1e-5, "epsilon of RMSNorm", above=0)
    init_std: float = key(0.02, "standard deviation of initial weights (the report does not state its own)", low=0)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass
class Parallel:
    """Layout of the processes, in the report's order TP, CP, PP, DP (section 3.3.2)."""

    tp: int = key(1, "tensor-parallel processes", low=1)
    cp: int = key(1, "context-parallel processes", low=1)
    pp: int = key(1, "pipeline stages", low=1)
    dp: int | None = key(None, "data-parallel replicas; null: what the world size leaves", low=1)
    vpp: int = key(1, "model chunks per pipeline stage (interleaved schedule when above 1)", low=1)
    microbatch_group: int | None = key(None, "contiguous micro-batches per chunk (the report's N); null: pp", low=1)
    embedding_as_layer: bool = key(False, "count the embedding as one layer when splitting into stages")
    loss_as_layer: bool = key(False, "count the output head and loss as one layer when splitting into stages")
    from_tokens: int = key(
        0, "tokens seen when this layout takes over; ramp stages ended by then are not held against it", low=0
    )
    micro_batch: int = key(1, "sequences per micro-batch", low=1)
    sequence_parallel: bool = key(True, "shard norms and residuals over tp (only when tp > 1)")
    zero: int = key(1, "DeepSpeed ZeRO stage over dp x cp", low=1, high=3)
    recompute: str = key("none", "activation recomputation", choices=("none", "selective", "full"))


@dataclass
class Precision:
    """Number formats. Gradients are accumulated and reduced in FP32 whatever stands here (report, 3.3.2)."""

    params: str = key("bf16", "parameters and activations", choices=("bf16", "fp32"))
    fp8: str = key(
        "none",
        "FP8 recipe",
        choices=("none", "delayed", "tensorwise", "blockwise", "mxfp8"),
    )


@dataclass
class Ramp:
    """A change of batch or sequence length at a number of tokens seen."""

    from_tokens: int = key(MISSING, "tokens seen when this step of the ramp begins", low=0, high=MOST_TOKENS)
    batch_tokens: int = key(MISSING, "tokens per optimizer step from here on", low=1, high=MOST_TOKENS)
    sequence_length: int = key(MISSING, "tokens per sequence from here on", low=1)


@dataclass
class Schedule:
    """Learning rate, batch and sequence length as functions of tokens seen."""

    total_tokens: int = key(MISSING, "tokens to train on", low=1, high=MOST_TOKENS)
    batch_tokens: int = key(MISSING, "tokens per optimizer step at the start", low=1, high=MOST_TOKENS)
    sequence_length: int = key(MISSING, "tokens per sequence at the start", low=1)
    ramp: list[Ramp] = key([], "later batch and sequence lengths, a list replaced as a whole")
    peak_lr: float = key(MISSING, "learning rate after warm-up", above=0)
    final_lr: float = key(0.0, "learning rate at the end of the decay", low=0)
    warmup_tokens: int = key(0, "tokens of linear warm-up from 0", low=0, high=MOST_TOKENS)
    decay: str = key("cosine", "shape after warm-up", choices=("cosine", "linear", "constant"))
    clock: str = key(
        "tokens",
        "what warm-up and decay advance by: tokens, or optimizer steps (the report)",
        choices=("tokens", "steps"),
    )
    decay_tokens: int | None = key(
        None, "tokens at which final_lr is reached; null: total_tokens", low=1, high=MOST_TOKENS
    )


@dataclass
class Optimizer:
    """AdamW (report, section 3.4.1). Betas, epsilon and clipping are ours: the report does not state them."""

    beta1: float = key(0.9, "Adam's first beta", low=0, high=0.9999999)
    beta2: float = key(0.95, "Adam's second beta", low=0, high=0.9999999)
    eps: float = key(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = key(0.1, "decoupled weight decay, on matrices only", low=0)
    clip_norm: float = key(1.0, "gradient norm above which gradients are scaled down; 0: never", low=0)


@dataclass
class Source:
    """One source of text: where it comes from and its share of the mixture."""

    input: str = key("", "file, folder, glob (comma-separated), or dataset for `datasets`; read by recipes.pack")
    format: str = key(
        "auto",
        "kind of input; auto: by its suffix",
        choices=("auto", "text", "jsonl", "parquet", "tree", "dataset"),
    )
    text_key: str = key("text", "field of a record that holds the text")
    split: str = key("train", "split, for format dataset")
    suffixes: str = key("", "comma-separated file suffixes to take from a folder; empty: all of the format")
    packed: str = key("", "packed folder read by training; empty: <data.folder>/<source name>")
    weight: float = key(1.0, "share of the mixture, in tokens, relative to the other weights", low=0)


@dataclass
class Data:
    """Sources, packing and mixture."""

    folder: str = key(MISSING, "folder of the packed sources")
    sources: dict[str, Source] = key({}, "sources keyed by name: data.sources.NAME.weight=2")
    heldout_fraction: float = key(0.01, "share of the documents packed as held-out split", low=0, high=0.5)
    bos: bool = key(True, "begin each document with <|begin_of_text|>")
    eos: bool = key(True, "end each document with <|end_of_text|>")
    slot_tokens: int | None = key(
        None, "tokens of the pieces that are visited in random order; null: the longest sequence", low=1
    )
    document_mask: bool = key(True, "forbid attention across documents of one row (report, section 3.2)")
    seed: int = key(1234, "seed of the held-out split and of the order of the sequences", low=0, high=2**63 - 1)
    workers: int | None = key(None, "processes that pack; null: one per core", low=1)
    prefetch: int = key(2, "batches prepared ahead of the step by a thread; 0: none", low=0)


@dataclass
class Tokenizer:
    """Text to token ids."""

    kind: str = key(
        MISSING,
        "tiktoken (Meta's tokenizer.model), huggingface (tokenizer.json) or bpe (trained here)",
        choices=("tiktoken", "huggingface", "bpe"),
    )
    path: str = key(MISSING, "file or folder of the tokenizer; for bpe, where the trained one is written")
    vocab_size: int | None = key(None, "for bpe: ids to train, the 256 special tokens included", low=1)
    train_bytes: int = key(20_000_000, "for bpe: bytes of text to train on", low=1)


@dataclass
class Cluster:
    """The machine: never a training number."""

    processes_per_node: int | None = key(None, "processes per node; null: as torchrun started them", low=1)
    peak_tflops: float | None = key(None, "dense BF16 TFLOPs per device for MFU; null: from the device's name", above=0)
    timeout_s: int = key(1800, "seconds after which a collective that does not end fails", low=1)


@dataclass
class Checkpoint:
    """When to save and what to keep."""

    every_tokens: int | None = key(None, "tokens between checkpoints; null: only at the end", low=1)
    keep_last: int | None = key(2, "complete checkpoints kept; null: all", low=1)


@dataclass
class Validation:
    """Held-out loss during training."""

    every_tokens: int | None = key(None, "tokens between validations; null: only at the end", low=1)
    tokens: int = key(131072, "held-out tokens per source and validation", low=1)


@dataclass
class Log:
    """Views of the record; the record itself is always metrics.jsonl."""

    tensorboard: bool = key(False, "write TensorBoard events beside metrics.jsonl")
    wandb: bool = key(False, "send metrics to Weights & Biases (its package has to be installed)")
    progress: bool = key(True, "progress bar with ETA on rank 0")


@dataclass
class Profile:
    """torch profiler and memory snapshot for chosen steps."""

    first_step: int | None = key(None, "first profiled step; null: none", low=0)
    steps: int = key(1, "profiled steps", low=1)
    memory: bool = key(False, "record a memory snapshot too (GPU)")


@dataclass
class Pretrain:
    """Keys of `recipes.pretrain`: train on the next token."""

    name: str = key(MISSING, "name of the run")
    folder: str = key("runs/${name}", "run folder: config, metrics, checkpoints")
    seed: int = key(1234, "seed of the initial weights", low=0)
    resume: str = key("auto", "auto (newest complete checkpoint of the folder), none, or a checkpoint folder")
    init_from: str | None = key(None, "checkpoint folder whose weights start the run, with a fresh optimizer")
    stop_after_steps: int | None = key(None, "end this process after so many steps, with a checkpoint", low=1)
    model: Model = field(default_factory=Model)
    parallel: Parallel = field(default_factory=Parallel)
    precision: Precision = field(default_factory=Precision)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Optimizer = field(default_factory=Optimizer)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    cluster: Cluster = field(default_factory=Cluster)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    validation: Validation = field(default_factory=Validation)
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)


@dataclass
class Pack:
    """Keys of `recipes.pack`: text -> tokens on disk."""

    overwrite: bool = key(False, "replace a packed source that is already there")
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


@dataclass
class Convert:
    """Keys of `recipes.convert`: Hugging Face (or Meta) weights to a checkpoint and back."""

    direction: str = key(MISSING, "which way to convert", choices=("from_hf", "to_hf", "from_meta"))
    hf: str = key(MISSING, "Hugging Face folder (from_meta: Meta's folder)")
    checkpoint: str = key(MISSING, "checkpoint folder, or a run folder whose newest checkpoint is meant")
    dtype: str = key("bf16", "number format of the written weights", choices=("bf16", "fp32"))
    max_shard_bytes: int = key(5_000_000_000, "largest safetensors file", low=1)
    tokenizer: str | None = key(None, "tokenizer folder to export; null: the one that the run used")
    overwrite: bool = key(False, "replace what stands at the target")


@dataclass
class Evaluate:
    """Keys of `recipes.evaluate`: perplexity on packed text, and continuations of prompts."""

    checkpoint: str = key(MISSING, "checkpoint folder, or a run folder whose newest checkpoint is meant")
    split: str = key("heldout", "split of the packed data", choices=("heldout", "train"))
    tokens: int = key(131072, "tokens per source", low=1)
    sequence_length: int | None = key(None, "tokens per row; null: that of the end of training", low=1)
    prompts: list[str] = key([], "texts to continue")
    max_new_tokens: int = key(64, "tokens to generate per prompt", low=1)
    temperature: float = key(0.0, "0: greedy; otherwise sampling", low=0)
    top_p: float = key(1.0, "nucleus for sampling", above=0, high=1)
    seed: int = key(1234, "seed of the sampling", low=0)
    output: str | None = key(None, "file to write the results to as JSON; null: only printed")
    parallel: Parallel = field(default_factory=Parallel)
    precision: Precision = field(default_factory=Precision)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass
class Benchmark:
    """Keys of `recipes.benchmark`: ours against its peers, and what a user waits for."""

    parts: list[str] = key(["train", "pack", "convert", "start"], "what to measure: train, pack, convert, start")
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
    repeats: int = key(3, "runs of each case, interleaved, each in a process of its own", low=1)
    steps: int = key(4, "measured optimizer steps per run", low=1)
    warmup_steps: int = key(1, "steps before them", low=1)
    sequence_length: int = key(512, "tokens per sequence", low=1)
    rows: int = key(4, "sequences per step", low=1)
    micro_batch: int = key(2, "sequences per micro-batch", low=1)
    timeout_s: int = key(600, "seconds after which one run has failed", low=1)
    llama3_tokenizer: str | None = key(
        None, "Meta's tokenizer.model; null: the one that the package llama-models holds"
    )
    output: str | None = key(None, "file to write the tables to, as Markdown; null: only printed")
    model: Model = field(default_factory=Model)


@dataclass
class Simulate:
    """Keys of `recipes.simulate`: what failures cost a long run. The report states none of the times; they are ours."""

    gpus: int = key(16384, "GPUs of the run", low=1)
    days: float = key(54.0, "days that it lasts", above=0)
    failure_factor: float = key(1.0, "failures per GPU and day, relative to the report's", above=0)
    planned_factor: float = key(1.0, "planned interruptions per day, relative to the report's", low=0)
    checkpoint_every_s: float | None = key(None, "training between checkpoints; null: Young/Daly's optimum", above=0)
    checkpoint_stall_s: float = key(5.0, "time that one checkpoint stops training", above=0)
    checkpoint_write_s: float = key(60.0, "time from the stall's end until that checkpoint is safe", low=0)
    detect_s: float = key(30.0, "until all have stopped, where a process dies or reports an error", low=0)
    hang_detect_s: float = key(600.0, "the same where a rank hangs: PyTorch's time-out of a collective", low=0)
    silent_detect_s: float = key(3600.0, "the same where results are wrong in silence", low=0)
    restart_s: float = key(300.0, "from all stopped to the next step: queue, start, load", low=0)
    planned_s: float = key(600.0, "planned interruption, from its checkpoint to the restart", low=0)
    spare_nodes: int | None = key(None, "nodes that stand by; null: always one more", low=0)
    repair_hours: float = key(24.0, "hours until a failed node stands by again", low=0)
    replications: int = key(100, "simulated runs", low=5)
    seed: int = key(1234, "seed of the failures", low=0)
    goal: float = key(0.97, "effective training time that `table` asks for", above=0, high=1)
    table: bool = key(False, "print the effective time for every combination of the three lists that follow")
    table_stalls_s: list[float] = key([1.0, 5.0, 30.0], "values of checkpoint_stall_s in that table")
    table_detects_s: list[float] = key([10.0, 60.0, 300.0], "values of detect_s in that table")
    table_restarts_s: list[float] = key([60.0, 120.0, 300.0, 600.0], "values of restart_s in that table")
    output: str | None = key(None, "PNG file for bars of the lost time; null: only printed")


@dataclass
class Job:
    """What `recipes.submit` asks of Slurm."""

    recipe: str | None = key(
        None, "recipe to run; the other arguments are its own", choices=("pretrain", "evaluate", "convert")
    )
    chain: list[str] = key([], "instead: recipes as dependent jobs; RECIPE:KEY=VALUE reaches a later one")
    nodes: int | None = key(None, "nodes; null: as many as the layout asks for", low=1)
    gpus_per_node: int = key(8, "GPUs to ask for on each node; 0 on a cluster without", low=0)
    partition: str | None = key(None, "partition; null: Slurm's default")
    account: str | None = key(None, "account that pays; null: Slurm's default")
    time: str | None = key(None, "time limit as sbatch reads it, such as 2-00:00:00; null: the script's")
    options: str = key("", "further options of sbatch: 'submit.options=--exclude=n3 --qos=high'")
    mfu: float = key(0.4, "share of the peak that the printed bill assumes", above=0, high=1)
    dry_run: bool = key(False, "print command, bill and config of every job, and submit none")
    facts: bool = key(False, "print what slurm/launch.sh has to know, and submit none")


@dataclass
class Submit:
    """Keys of `recipes.submit`: a recipe, or a chain of them, to Slurm."""

    submit: Job = field(default_factory=Job)


def load(
    schema: type[T],
    config_name: str,
    argv: Sequence[str] | None = None,
    world_size: Callable[[T], int] | None = None,
) -> T:
    """Compose, check and return the config of one recipe: the only door from Hydra. Torch is not imported.

    `schema` is the recipe's dataclass, `config_name` its root file in `conf/`, `argv` the arguments (default: those
    of the process): Hydra overrides (`model=8b parallel.tp=2`), `--config-name`, `--config-dir`, `--help`, `--cfg`.
    `world_size` says for how many processes the layout is judged (default: those of torchrun, or one).
    Raises SystemExit: status 0 after `--help` and `--cfg`, 2 after printing all problems of the config at once.
    """
    from llama31 import command  # it needs this schema, so this module cannot import it first

    return command.load(schema, config_name, argv, world_size)


def to_yaml(run: Any) -> str:
    """A config as YAML, every key written out."""
    from llama31 import command

    return command.to_yaml(run)
