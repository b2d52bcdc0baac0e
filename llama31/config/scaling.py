"""What `recipes.scaling` is asked: a ladder of small runs, and what they say of a large one (report, section 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import MISSING, key
from llama31.config.planning import Hardware
from llama31.config.sections import Precision

REPORT_BUDGETS = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22]


@dataclass
class Ladder:
    """The small runs: budgets, models and rates are the report's, what it leaves open is ours."""

    folder: str = key("runs/ladder", "folder for configs and scripts, with the run folders in it")
    budgets: list[float] = key(REPORT_BUDGETS, "training FLOPs of a run, as plan/shapes.py counts them")
    smallest: float = key(
        40e6, "parameters of the smallest model, without embedding and head (ours: see vocab_size)", low=1
    )
    largest: float = key(16e9, "parameters of the largest one", low=1)
    sizes: int = key(16, "models from the smallest to the largest, at equal ratios", low=2)
    span: float = key(
        4.0, "a budget takes the models that reach its expected tokens over or times at most this factor", above=1
    )
    expected_exponent: float = key(
        0.537, "expected tokens of a budget: factor x FLOPs^exponent (Figure 3)", above=0, high=1
    )
    expected_factor: float = key(0.299, "the factor of the same (Figure 3)", above=0)
    sequence_length: int = key(8192, "tokens per sequence", low=1)
    vocab_size: int = key(
        128256, "rows of embedding and head, which outweigh a model of 40M: it is named without them", low=1
    )
    smallest_batch: int = key(262144, "tokens per step of budgets up to smallest_batch_flops", low=1)
    largest_batch: int = key(4194304, "tokens per step from largest_batch_flops; powers of two between", low=1)
    smallest_batch_flops: float = key(6e18, "FLOPs up to which a budget takes the smallest batch", above=0)
    largest_batch_flops: float = key(1e22, "FLOPs from which it takes the largest", above=0)
    smallest_model_lr: float = key(4e-4, "peak learning rate of the smallest model", above=0)
    largest_model_lr: float = key(
        2e-4, "peak learning rate of the largest model; between: by the logarithm of size", above=0
    )
    warmup_steps: int = key(2000, "steps of linear warm-up", low=0)
    final_share: float = key(0.1, "learning rate at the end of the cosine, as a share of the peak", low=0, high=1)
    gpus_per_node: int = key(8, "GPUs of a node", low=1)
    device: str = key("H100", "GPU of hardware.devices, for which the planner lays out and bills")
    stack: str = key("megatron", "software of hardware.stacks whose speed is expected")
    hours: float = key(24.0, "hours that a run may take: gives the nodes of its budget's array", above=0)
    dollars_per_gpu_hour: float | None = key(None, "price of a GPU-hour for the bill; null: the device's", low=0)
    arguments: str = key(
        "", "arguments of recipes.pretrain that every run is given: 'ladder.arguments=data=mine tokenizer=llama3'"
    )
    dry_run: bool = key(False, "print the bill and write nothing")


@dataclass
class Fit:
    """IsoFLOP curves and the power law through their minima."""

    input: str | None = key(None, "CSV file with the columns flops, parameters, tokens, loss, a line per run")
    runs: list[str] = key([], "folders of finished runs, whose records are read: '[runs/ladder/runs/a,...]'")
    count: str = key(
        "all", "parameters of a run folder: all, or layers (without embedding and head)", choices=("all", "layers")
    )
    same_budget: float = key(0.1, "runs whose FLOPs differ by at most this share are of one budget", above=0, high=0.5)
    without: list[float] = key([], "budgets to leave out")
    target_flops: float = key(3.8e25, "FLOPs of the large run (the report's)", above=0)
    flops_per_parameter_token: float | None = key(
        None, "FLOPs per parameter and token of the large run; null: as in the largest budget", above=0
    )
    tolerance: float = key(0.01, "nats above the minimum within which tokens may depart from it", above=0)
    huber: float = key(1e-3, "residual of log loss from which the parametric law counts it linearly", above=0)


@dataclass
class Forecasting:
    """From FLOPs to the likelihood of right answers, and from there to accuracy."""

    input: str | None = key(
        None,
        "CSV file with the columns flops, nll (of the right answer, normalised per character), accuracy, a line per "
        "model; without flops it counts for the accuracy alone, as Llama 2 does in the report",
    )
    most_flops: float = key(1e22, "models beyond are held out of both fits, and compared with them", above=0)
    target_flops: float = key(3.8e25, "FLOPs of the large run (the report's)", above=0)
    chance: float = key(0.25, "accuracy of guessing", low=0, high=0.99)
    ceiling: float = key(1.0, "accuracy of a model without doubts", above=0, high=1)


@dataclass
class Mixing:
    """Losses of small runs on mixtures, and the mixture that they propose."""

    input: str | None = key(
        None,
        "CSV file with a column share.SOURCE for each source and loss.TEXT for each held-out text, a line per run; "
        "with a column flops the law depends on them too",
    )
    runs: list[str] = key([], "folders of finished runs instead: shares from data.sources, losses by source")
    weights: dict[str, float] = key(
        {}, "weight of each held-out text in what is minimised; empty: equal weights", low=0
    )
    target_flops: float | None = key(None, "FLOPs of the large run; null: those of the largest small run", above=0)
    beyond: float = key(0.0, "how far a share may leave the range that was tried", low=0, high=1)


@dataclass
class Scaling:
    """Keys of `recipes.scaling`: small runs, and what they say of a large one (report, sections 3.1.2 and 3.2.1)."""

    task: str = key(
        MISSING,
        "ladder (configs and jobs of the small runs), fit (compute-optimal tokens), forecast (accuracy) or mix (data)",
        choices=("ladder", "fit", "forecast", "mix"),
    )
    replications: int = key(1000, "bootstrap replications of intervals", low=100)
    seed: int = key(1234, "seed of the bootstrap", low=0)
    output: str | None = key(None, "JSON file for all figures of fit, forecast or mix; null: only printed")
    picture: str | None = key(None, "PNG or SVG file for the picture of fit, forecast or mix; null: none")
    ladder: Ladder = field(default_factory=Ladder)
    fit: Fit = field(default_factory=Fit)
    forecast: Forecasting = field(default_factory=Forecasting)
    mix: Mixing = field(default_factory=Mixing)
    precision: Precision = field(default_factory=Precision)
    hardware: Hardware = field(default_factory=Hardware)
