"""What is asked of Slurm: one job, or a chain of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import key


@dataclass
class Job:
    """What `recipes.submit` asks of Slurm."""

    recipe: str | None = key(
        None,
        "recipe to run, the other arguments being its own; or give chain=NAME",
        choices=(
            *("pretrain", "long_context", "anneal", "probe", "average"),
            *("sft", "reward", "dpo", "sample", "score", "judge", "evaluate", "convert"),
        ),
    )
    nodes: int | None = key(None, "nodes; null: as many as the layout asks for", low=1)
    gpus_per_node: int = key(8, "GPUs to ask for on each node; 0 on a cluster without", low=0)
    partition: str | None = key(None, "partition; null: Slurm's default")
    account: str | None = key(None, "account that pays; null: Slurm's default")
    time: str | None = key(None, "time limit as sbatch reads it, such as 2-00:00:00; null: the script's")
    options: str = key("", "further options of sbatch: 'submit.options=--exclude=n3 --qos=high'")
    mfu: float | None = key(
        None,
        "share of the peak that the printed bill assumes; null: what the planner expects of cluster.device, and 0.4 "
        "where it does not know",
        above=0,
        high=1,
    )
    dry_run: bool = key(False, "print every job with its bill, the total and the commands, and submit none")
    configs: bool | None = key(None, "print the config of every job too; null: of a single recipe in a dry run")
    facts: bool = key(False, "print what slurm/launch.sh has to know, and submit none")


@dataclass
class Common:
    """Overrides that several stages of a chain share."""

    recipes: list[str] = key([], "recipes whose stages they reach; empty: every stage")
    overrides: list[str] = key([], "KEY=VALUE and GROUP=CHOICE, before the stage's own")


@dataclass
class ChainStage:
    """One job of a chain."""

    recipe: str = key("", "recipe of the job")
    label: str | None = key(None, "its name within the chain; null: that of its recipe, which comes once then")
    config_name: str | None = key(None, "root file in conf/ or --config-dir; null: the recipe's own")
    overrides: list[str] = key([], "KEY=VALUE and GROUP=CHOICE, as the recipe's own command takes them")
    after: list[str] | None = key(None, "labels of earlier stages that have to succeed first; null: the one before")


@dataclass
class Chain:
    """A chain of jobs, each of which begins when those before it have succeeded. {NAME} in it is a variable."""

    variables: dict[str, str] = key({}, "values of variables that the command line, NAME=VALUE, may leave out")
    common: list[Common] = key([], "overrides that several stages share")
    stages: list[ChainStage] = key([], "the jobs in their order: {recipe, label, config_name, overrides, after}")


@dataclass
class Submit:
    """Keys of `recipes.submit`: a recipe (recipe=NAME), or a chain of them (chain=NAME), to Slurm."""

    submit: Job = field(default_factory=Job)
    chain: Chain = field(default_factory=Chain)
