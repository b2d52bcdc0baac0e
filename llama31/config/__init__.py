"""Every key that a run may set.

The dataclasses in this folder are the schema: defaults and bounds live here alone, YAML under `conf/` states only what
differs, and `load` is the only door from Hydra to the rest of the code. Units stand in names: `_tokens`, `_s`,
`_bytes`. What keys must satisfy together is in `validate.py` and `layout.py`.

A new recipe is one dataclass in `recipes.py`, one `conf/<recipe>.yaml` and one file in `recipes/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama31.config.exams import Gates, Needle, Task
from llama31.config.keys import MISSING, MOST_TOKENS, ConfigError, Issue, RunError, key
from llama31.config.recipes import (
    Average,
    Benchmark,
    Convert,
    Dpo,
    Evaluate,
    Job,
    Pack,
    Pretrain,
    Probe,
    Report,
    Reward,
    Sft,
    Simulate,
    Submit,
    Training,
)
from llama31.config.sampling import (
    Filters,
    Judge,
    Pairs,
    PostTrain,
    Sample,
    Sampling,
    Score,
    Server,
    Stage,
    Variant,
)
from llama31.config.sections import (
    STRENGTHS,
    Bucket,
    Checkpoint,
    Cluster,
    Data,
    Dialogs,
    Guard,
    Log,
    Mix,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Preferences,
    Preflight,
    Profile,
    Ramp,
    Ranked,
    Records,
    RewardModel,
    Schedule,
    Source,
    Tokenizer,
    TrainedPrecision,
    Validation,
)

__all__ = [
    "MISSING",
    "MOST_TOKENS",
    "STRENGTHS",
    "Average",
    "Benchmark",
    "Bucket",
    "Checkpoint",
    "Cluster",
    "ConfigError",
    "Convert",
    "Data",
    "Dialogs",
    "Dpo",
    "Evaluate",
    "Filters",
    "Gates",
    "Guard",
    "Issue",
    "Job",
    "Judge",
    "Log",
    "Mix",
    "Model",
    "Needle",
    "Optimizer",
    "Pack",
    "Pairs",
    "Parallel",
    "PostTrain",
    "Precision",
    "Preferences",
    "Preflight",
    "Pretrain",
    "Probe",
    "Profile",
    "Ramp",
    "Ranked",
    "Records",
    "Report",
    "Reward",
    "RewardModel",
    "RunError",
    "Sample",
    "Sampling",
    "Schedule",
    "Score",
    "Server",
    "Sft",
    "Simulate",
    "Source",
    "Stage",
    "Submit",
    "Task",
    "Tokenizer",
    "TrainedPrecision",
    "Training",
    "Validation",
    "Variant",
    "given",
    "key",
    "load",
    "to_yaml",
]


def load[T](
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


def given(schema: type, config_name: str, argv: Sequence[str]) -> dict[str, Any]:
    """What YAML and arguments say, by dotted key, unchecked and without the schema's defaults.

    Null and what has to be given are left out. Empty where it cannot be composed: `load` says why.
    """
    from llama31 import command

    return command.given(schema, config_name, argv)


def to_yaml(run: Any) -> str:
    """A config as YAML, every key written out."""
    from llama31 import command

    return command.to_yaml(run)
