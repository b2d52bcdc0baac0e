"""The sections that configs are made of: model, layout, schedule, data and so on."""

from __future__ import annotations

from dataclasses import dataclass

from llama31.config.keys import MISSING, MOST_TOKENS, key

STRENGTHS = ("significantly_better", "better", "slightly_better", "marginally_better")  # report, section 4.2.1


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
    head: str = key("tokens", "what stands on top: logits of the next token, or a scalar", choices=("tokens", "reward"))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass
class RewardModel(Model):
    """A model of the same shapes with a scalar on top."""

    head: str = key("reward", "what stands on top: a scalar", choices=("tokens", "reward"))


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
    bucket_bytes: int = key(
        200_000_000,
        "FP32 gradients that zero=1 sends in one message, in whole matrices, as soon as they are there",
        low=1,
    )
    recompute: list[str] = key(
        [],
        "parts of each layer computed again in the backward pass instead of kept: full is all of it",
        choices=("norms", "swiglu", "mlp", "full"),
        former={
            "none": "give parallel.recompute=[]",
            "selective": "attention keeps nothing that could be computed again: give [], or norms, swiglu or mlp",
        },
    )
    overlap_p2p: bool = key(
        False, "stages send and receive while they compute (vpp > 1), and keep what they sent until its backward pass"
    )
    tp_overlap: bool = key(
        False, "linear layers send and receive over tp while they compute: Transformer Engine's userbuffers, untested"
    )


@dataclass
class Precision:
    """Number formats. Gradients are accumulated and reduced in FP32 whatever stands here (report, 3.3.2)."""

    params: str = key("bf16", "parameters and activations", choices=("bf16", "fp32"))
    fp8: str = key(
        "none",
        "FP8 recipe",
        choices=("none", "delayed", "tensorwise", "blockwise", "mxfp8"),
    )
    fp8_linears: str = key(
        "all",
        "linear layers that compute in FP8: all four of a layer, or mlp alone (what the report leaves to FP8 when it "
        "serves, section 6.2; which trains as well and faster is not measured yet)",
        choices=("all", "mlp"),
    )
    fp8_first_layers_bf16: int = key(0, "first layers that stay in BF16 (the report's serving: 1)", low=0)
    fp8_last_layers_bf16: int = key(0, "last layers that stay in BF16 (the report's serving: 1)", low=0)
    fp8_emulate: bool = key(
        False, "round to FP8 and multiply in FP32: on any device, slowly, to judge a recipe on a small model"
    )


@dataclass
class TrainedPrecision(Precision):
    """Number formats of a command that runs weights which are there."""

    params: str = key(
        "auto",
        "parameters and activations; auto: as the weights were trained, or a Hugging Face folder's dtype",
        choices=("auto", "bf16", "fp32"),
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
    ema_decay: float | None = key(
        None, "keep an exponential moving average of the masters with this decay; null: none", low=0, high=0.9999999
    )
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
class Mix:
    """A change of the mixture at a number of tokens seen. Whole, like a step of the ramp: who is not named is out."""

    from_tokens: int = key(MISSING, "tokens seen when these weights begin to hold", low=0, high=MOST_TOKENS)
    weights: dict[str, float] = key({}, "weight of each source from here on; one left out is not drawn", low=0)
    length_weights: list[float] = key([], "weights of data.length_buckets from here on; empty: as they were")


@dataclass
class Bucket:
    """Documents by length, and how often they are drawn."""

    min_tokens: int = key(MISSING, "shortest document of this bucket; the next bucket's ends it", low=0)
    weight: float = key(1.0, "readings of each document, relative to the other buckets; 0: left out", low=0)


@dataclass
class Data:
    """Sources, packing and mixture."""

    folder: str = key(MISSING, "folder of the packed sources")
    sources: dict[str, Source] = key({}, "sources keyed by name: data.sources.NAME.weight=2")
    # Here and not in the schedule: it speaks of sources, and a schedule is shared by runs on other data.
    mixture: list[Mix] = key([], "later weights, a list replaced as a whole: [{from_tokens: 1e12, weights: {NAME: 2}}]")
    packing: str = key(
        "stream",
        "stream: rows are cut from the text end to end; whole: rows are filled with whole documents",
        choices=("stream", "whole"),
    )
    length_buckets: list[Bucket] = key(
        [], "readings by length of document, for packing=whole: [{min_tokens: 0}, {min_tokens: 8192, weight: 5}]"
    )
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
class Records:
    """One source of dialogs or preferences."""

    input: str = key("", "JSONL files, folders or globs, comma-separated")
    epochs: float = key(
        1.0, "how often a pass over the data visits it; the part below 1 is another draw in each pass", low=0
    )


@dataclass
class Ranked(Records):
    """One source of preferences."""

    strength: str | None = key(
        None, "strength of records that state none, as in public sets; null: each states its own", choices=STRENGTHS
    )


@dataclass
class Dialogs:
    """Sources of supervised finetuning (report, section 4.1.3)."""

    folder: str = key(MISSING, "folder of the encoded sources, which all processes read")
    sources: dict[str, Records] = key({}, "sources keyed by name: data.sources.NAME.epochs=2")
    targets: str = key("all", "what is learned: every message of assistants, or the last", choices=("all", "last"))
    heldout_fraction: float = key(0.01, "share of the records held out", low=0, high=0.5)
    seed: int = key(1234, "seed of what is held out and of the order of the rows", low=0, high=2**63 - 1)
    prefetch: int = key(2, "batches prepared ahead of the step by a thread; 0: none", low=0)


@dataclass
class Preferences:
    """Sources of ranked answers (report, sections 4.1.2, 4.1.4 and 4.2.1)."""

    folder: str = key(MISSING, "folder of the encoded sources, which all processes read")
    sources: dict[str, Ranked] = key({}, "sources keyed by name: data.sources.NAME.epochs=2")
    strengths: list[str] = key(["significantly_better", "better"], "strengths of preference that are learned (report)")
    similarity: float = key(
        0.95,
        "share of common pairs of tokens from which two answers are near-equal, and no pair, unless they differ in "
        "numbers, options or verdicts (ours)",
        low=0,
    )
    heldout_fraction: float = key(0.01, "share of the records held out", low=0, high=0.5)
    seed: int = key(1234, "seed of what is held out and of the order of rows and answers", low=0, high=2**63 - 1)
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
    memory_gb: float | None = key(
        None,
        "memory of a device for tensors, in 10^9 bytes; a layout that needs more at any stage of the schedule is "
        "refused. null: not checked",
        above=0,
    )
    device: str | None = key(
        None, "what cluster.hardware calls its devices; null: neither bills nor runs predict speed and memory"
    )
    hardware: str = key("published", "constants of the planner: a name of conf/hardware, or .../hardware/NAME.yaml")
    stack: str = key("megatron", "the software's name there")
    timeout_s: int = key(1800, "seconds after which a collective that does not end fails", low=1)


@dataclass
class Checkpoint:
    """When to save, how, and what to keep."""

    every_tokens: int | None = key(
        None, "tokens between checkpoints; null: by mtbf_hours or every_minutes", low=1, high=MOST_TOKENS
    )
    mtbf_hours: float | None = key(
        None,
        "mean hours between failures of the whole job: gives the interval (Young/Daly) where every_tokens is null",
        above=0,
    )
    every_minutes: float | None = key(
        15.0, "minutes between checkpoints where every_tokens and mtbf_hours are null; null: only at the end", above=0
    )
    asynchronous: bool = key(True, "copy to host memory and write while training goes on")
    keep_last: int | None = key(2, "newest complete checkpoints kept; null: all", low=1)
    keep_every_tokens: int | None = key(
        None, "also keep the first checkpoint after every so many tokens; null: none", low=1, high=MOST_TOKENS
    )
    keep_best: int = key(0, "also keep so many with the lowest held-out loss", low=0)
    verify: bool = key(True, "compare the checksum of every file before a run goes on from a checkpoint")


@dataclass
class Guard:
    """What is watched during training, and what happens then. The report states none of it: all is ours."""

    on_nonfinite: str = key("skip", "loss or gradient norm is NaN or infinite", choices=("skip", "rollback", "stop"))
    on_loss_spike: str = key("continue", "loss far above its window", choices=("continue", "skip", "rollback", "stop"))
    on_norm_spike: str = key(
        "continue", "gradient norm far above its window", choices=("continue", "skip", "rollback", "stop")
    )
    window_steps: int = key(100, "steps that a spike is compared with; none is seen before a quarter of them", low=8)
    loss_zscore: float = key(8.0, "standard deviations above the window's mean that make a loss a spike", above=0)
    norm_zscore: float = key(12.0, "the same for the gradient norm", above=0)
    skip_before_steps: int = key(0, "steps before the event whose data a rollback leaves out too", low=0)
    skip_after_steps: int = key(7, "steps after the event whose data a rollback leaves out too", low=0)
    max_skips: int = key(3, "batches skipped in a row before the run stops", low=0)
    max_rollbacks: int = key(3, "rollbacks of one attempt before the run stops", low=0)
    hash_every_steps: int | None = key(
        500, "steps between comparisons of the parameters of data-parallel replicas; null: never", low=1
    )
    on_divergence: str = key("rollback", "replicas hold unequal parameters", choices=("continue", "rollback", "stop"))
    ranks_every_steps: int | None = key(50, "steps between comparisons of the ranks' times; null: never", low=1)
    slow_factor: float = key(1.5, "time of a rank relative to the median that makes it slow", above=1)
    on_slow_rank: str = key(
        "continue", "a rank's probe was slow in two comparisons running", choices=("continue", "exclude")
    )
    heartbeat_s: float | None = key(
        1200.0,
        "seconds without progress of a rank, after its first step, until stacks are dumped and the attempt dies; "
        "null: never",
        above=0,
    )


@dataclass
class Preflight:
    """What each node is asked before the first step. Numbers are ours; null: measured, not judged."""

    enabled: bool = key(True, "check the nodes before training")
    matmul_size: int | None = key(None, "order of the matrix product; null: 8192 on a GPU, 512 on a CPU", low=64)
    matmul_share: float | None = key(
        None,
        "slowest matrix product accepted, relative to the median of all ranks; null: 0.7 of GPUs, any of CPUs",
        low=0,
        high=1,
    )
    min_matmul_tflops: float | None = key(None, "slowest matrix product accepted, in TFLOPS", above=0)
    link_bytes: int = key(2**24, "bytes of the messages that links are measured with", low=1024)
    link_share: float | None = key(
        None,
        "slowest links accepted of a node, relative to the median of all nodes; null: 0.5 of GPUs, any of CPUs",
        low=0,
        high=1,
    )
    min_allreduce_gb_s: float | None = key(
        None, "slowest all-reduce of all ranks accepted, in GB/s as each rank moves them", above=0
    )
    min_free_bytes: int | None = key(
        None, "free disk needed at the run folder; null: two checkpoints of the model", low=0
    )
    scratch: str = key("/dev/shm", "folder of each node's own, for processes to share memory")
    min_scratch_bytes: int = key(2**24, "free bytes needed there", low=0)
    min_gpu_free_share: float = key(0.9, "share of a GPU's memory that nobody else may hold", low=0, high=1)
    max_clock_skew_s: float = key(5.0, "seconds by which a node's clock may differ from the median", above=0)


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
