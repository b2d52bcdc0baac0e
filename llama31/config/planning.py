"""Keys of the planner: devices, what a software stack makes of them, and what is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import MISSING, MOST_TOKENS, key
from llama31.config.sections import Model, Parallel, Precision, Schedule


@dataclass
class Device:
    """One kind of GPU and the network that it stands in: data sheets and measured ceilings."""

    bf16_tflops: float = key(MISSING, "dense BF16 TFLOP/s of the data sheet", above=0)
    fp8_tflops: float = key(0.0, "dense FP8 TFLOP/s of the data sheet; 0: it has no FP8", low=0)
    fp32_tflops: float = key(0.0, "TFLOP/s of FP32 products; 0: not known, and no run in FP32 is predicted", low=0)
    power: float = key(1.0, "share of the products' rate that the power limit leaves, of a 700 W part's", above=0)
    copy_tb_s: float = key(MISSING, "TB/s that a copy reaches, reading and writing", above=0)
    memory_gib: float = key(MISSING, "GiB of memory", above=0)
    nvlink_gb_s: float = key(MISSING, "GB/s per direction that collectives reach inside a node", above=0)
    network_gb_s: float = key(MISSING, "GB/s per direction and GPU that collectives reach between nodes", above=0)
    per_node: int = key(8, "GPUs that NVLink connects", low=1)
    message_us: float = key(
        10.0, "microseconds to start a collective inside a node; NCCL's model has 8.4 and a hop", low=0
    )
    p2p_gb_s: float = key(0.0, "GB/s of a message from one rank to another; 0: as collectives reach", low=0)
    launches_ahead: bool = key(
        True, "kernels and messages run behind the host that launches them; false: a CPU, which does all of it in turn"
    )
    watts: float = key(0.0, "of a GPU with its share of the server under load; 0: energy is not told", low=0)
    dollars_per_hour: float = key(0.0, "price of a GPU and hour; 0: money is not told", low=0)
    stops_per_1000_node_days: float | None = key(
        None, "unexpected stops of nodes of per_node GPUs; null: the report's 3.79 with eight, as many per GPU", above=0
    )
    multiprocessors: int = key(
        132, "streaming multiprocessors: tiles of a product that run at once; 0: a CPU, which fills no waves", low=0
    )


@dataclass
class Stack:
    """What a software stack makes of a device. One number for all models, sizes and layouts."""

    products_bf16: float = key(MISSING, "share of the peak that large BF16 products reach in a step", above=0)
    products_fp8: float = key(MISSING, "share of the peak that large FP8 products reach in a step", above=0)
    products_fp32: float = key(
        0.0, "share of the FP32 rate that large FP32 products reach; 0: as BF16 products do", low=0
    )
    lead_bf16: float = key(MISSING, "terms of a BF16 product's sum that its start and end cost", low=0)
    lead_fp8: float = key(MISSING, "terms of an FP8 product's sum that its start and end cost", low=0)
    lead_fp32: float = key(0.0, "terms of an FP32 product's sum that its start and end cost", low=0)
    attention_forward: float = key(MISSING, "TFLOP/s of causal attention forward, of long rows", above=0)
    attention_backward: float = key(MISSING, "TFLOP/s of causal attention backward, of long rows", above=0)
    attention_half_forward: float = key(MISSING, "length at which it reaches half of that, forward", low=0)
    attention_half_backward: float = key(MISSING, "length at which it reaches half of that, backward", low=0)
    attention_peak: float = key(
        989.0, "TFLOP/s, by its data sheet, of the device that those rates were measured on", above=0
    )
    attention: float = key(1.0, "share of those rates that it keeps in a step", above=0)
    copy: float = key(MISSING, "share of the copy bandwidth that elementwise kernels reach", above=0)
    copy_eager: float = key(MISSING, "the same where nothing is fused", above=0)
    accumulate: float = key(1.0, "reads and writes of the gradient by the product that adds to it, of two", low=0)
    gradient_bytes: float = key(2.0, "bytes of a gradient as it is accumulated and sent", above=0)
    loss_bytes: float = key(16.0, "moved per logit: written, read for its softmax, gradient written and read", low=0)
    optimizer_bytes: float = key(
        30.0, "moved per parameter of a shard: gradient, master and moments read, all but the first written", above=0
    )
    quantise: float = key(1.0, "reads and writes of quantising, of one read and two FP8 copies", low=0)
    scatter: float = key(1.0, "seconds of a reduce-scatter, of those of an all-gather of as many bytes", above=0)
    tp_exposed: float = key(MISSING, "share of tensor-parallel messages that products do not cover", low=0)
    tp_exposed_async: float = key(MISSING, "the same where the run asked for overlap on top", low=0)
    cp_exposed: float = key(MISSING, "share of context-parallel messages that attention does not cover", low=0)
    merge_bytes: float = key(12.0, "moved per number of attention's output by each further step of CP's ring", low=0)
    p2p_exposed: float = key(MISSING, "share of interleaved stages' messages that nothing covers", low=0)
    p2p_exposed_whole: float = key(0.5, "the same where stages are whole: one way of two is waited for", low=0)
    dp_exposed: float = key(MISSING, "share of gradients and weights sent that nothing covers", low=0)
    host_us: float = key(MISSING, "microseconds in which the host launches one kernel", low=0)
    tp_kernels: float = key(0.15, "kernels of a layer that tensor parallelism adds, as a share of the others", low=0)
    cp_kernels: float = key(0.15, "the same of context parallelism", low=0)
    micro_batch_us: float = key(0.0, "microseconds of the host per micro-batch beside its layers", low=0)
    reduce_us: float = key(0.0, "the same to reduce gradients after each micro-batch (ZeRO-2)", low=0)
    reduce_times: float = key(1.0, "seconds of reducing gradients so, of those of its messages alone", low=0)
    gather_us: float = key(0.0, "the same per layer whose weights are gathered and let go of (ZeRO-3, FSDP)", low=0)
    gather_times: float = key(1.0, "seconds of gathering and reducing so, of those of its messages alone", low=0)
    jitter: float = key(MISSING, "share of the step that ranks wait for the slowest, per doubling of nodes", low=0)
    fixed_s: float = key(0.05, "seconds of a step that nothing scales: data, norms of gradients, logging", low=0)


@dataclass
class Prior:
    """What is known of a number before runs are looked at: fits start there and pay for leaving it."""

    stack: str = key(MISSING, "stack that it belongs to, or device (its power)")
    value: float = key(MISSING, "expected", above=0)
    spread: float = key(MISSING, "standard deviation of its logarithm", above=0)


@dataclass
class Hardware:
    """Physical constants: devices, stacks, and the priors of what was fitted."""

    devices: dict[str, Device] = field(default_factory=dict, metadata={"help": "by name"})
    stacks: dict[str, Stack] = field(default_factory=dict, metadata={"help": "by name"})
    priors: dict[str, Prior] = field(default_factory=dict, metadata={"help": "by STACK_KEY"})


@dataclass
class Failures:
    """How often a run stops and what a stop costs. The report counts stops and states no time: the times are ours."""

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
    slow_per_1000_node_days: float = key(0.0, "nodes that turn slow; nobody has published a rate", low=0)
    slow_factor: float = key(1.5, "how much slower a step is with such a node (guard.slow_factor)", above=1)
    slow_detect_s: float = key(1200.0, "until it is taken out, after a checkpoint", low=0)
    repeat_share: float = key(
        0.0, "share of failures that follow from an earlier one: a bad node comes back", low=0, high=0.9
    )
    repeat_s: float = key(1800.0, "mean time until such a one", above=0)
    shared_share: float = key(
        0.0, "share of failures of a node that take shared_nodes at once: a switch, power", low=0, high=1
    )
    shared_nodes: int = key(2, "nodes that share it; the report's racks hold two under one switch", low=2)


@dataclass
class Phase:
    """A part of a run on one layout: of its schedule, the tokens from `parallel.from_tokens` to `until_tokens`."""

    schedule: Schedule = field(default_factory=Schedule)
    parallel: Parallel = field(default_factory=Parallel)
    until_tokens: int | None = key(None, "tokens seen when another layout takes over; null: the end", low=1)
    tflops: float | None = key(None, "TFLOP/s per GPU published of its last batch; null: none", above=0)


@dataclass
class TotalPublished:
    """What was published of a whole run, to stand beside what is predicted."""

    device: str = key("H100", "GPU that it ran on: beside another one nothing is compared")
    flops: float | None = key(None, "FLOPs of all training; null: not told", above=0)
    gpu_hours: float | None = key(None, "GPU-hours of all training; null: not told", above=0)
    effective: float | None = key(None, "share of the time that trained; null: not told", above=0, high=1)


@dataclass
class Limits:
    """What layouts and the run may be at most, or have to be. Empty lists and null ask for nothing."""

    tp: list[int] = key([], "sizes of tensor parallelism to choose from")
    cp: list[int] = key([], "sizes of context parallelism to choose from")
    pp: list[int] = key([], "numbers of pipeline stages to choose from")
    vpp: list[int] = key([], "chunks per stage to choose from")
    dp: list[int] = key([], "numbers of replicas to choose from")
    zero: list[int] = key([], "ZeRO stages to choose from, of 1 and 3")
    micro_batch: list[int] = key([], "rows of a micro-batch to choose from")
    recompute: list[str] = key(
        [],
        "what may be computed again, joined by +",
        choices=("none", "norms", "swiglu", "norms+swiglu", "mlp", "full"),
    )
    days: float | None = key(None, "most days of the run, failures and all", above=0)
    gpu_hours: float | None = key(None, "most GPU-hours of the run, failures and all", above=0)
    dollars: float | None = key(None, "most that the run may cost, failures and all", above=0)


@dataclass
class Plan:
    """Keys of `recipes.plan`: what a layout will cost, from its config alone, and how far that holds."""

    model: Model = field(default_factory=Model)
    precision: Precision = field(default_factory=Precision)
    device: str = key("H100", "GPU of hardware.devices")
    stack: str = key("megatron", "software of hardware.stacks whose speed is expected")
    gpus: int = key(8, "GPUs to lay the model out on", low=1)
    sequence_length: int = key(8192, "tokens per row", low=1)
    batch_tokens: int = key(4_194_304, "tokens per optimizer step", low=1, high=MOST_TOKENS)
    total_tokens: int = key(15_600_000_000_000, "tokens of the whole run", low=1, high=MOST_TOKENS)
    memory_gb: float | None = key(
        None, "10^9 bytes for tensors; null: what the device has, less 4.9 for what lives outside", above=0
    )
    limits: Limits = field(default_factory=Limits)
    best: int = key(10, "layouts to print, the fastest first", low=1)
    write: str | None = key(None, "YAML file for the fastest layout, as in conf/parallel; null: only printed")
    picture: str | None = key(
        None, "PNG or SVG file: a step of the fastest layout, its memory, and more and fewer GPUs; null: none"
    )
    validate: str | None = key(None, "instead: CSV file of published runs to predict, row by row")
    phases: dict[str, Phase] = field(
        default_factory=dict, metadata={"help": "instead: parts of a whole run in their order, by name, as one table"}
    )
    published: TotalPublished = field(default_factory=TotalPublished)
    output: str | None = key(None, "JSON file for those rows, their errors and the averages; null: only printed")
    leave_out: bool = key(True, "fit again without each family of models and say how far off that one is then")
    failures: Failures = field(default_factory=Failures)
    models: dict[str, Model] = field(default_factory=dict, metadata={"help": "shapes that rows may name, by name"})
    hardware: Hardware = field(default_factory=Hardware)
