"""Keys of post-training's own recipes: rejection sampling, the judge, and the rounds that drive all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.jobs import Job
from llama31.config.keys import MISSING, key
from llama31.config.sections import Cluster, Parallel, Tokenizer, TrainedPrecision


@dataclass
class Server:
    """Who answers. The report samples with PagedAttention: vLLM, behind HTTP and in an environment of its own."""

    urls: list[str] = key(
        [],
        "servers with OpenAI's API, such as http://node1:8000/v1; empty: our own decoder, or of a judge of synthesis "
        "the same servers",
    )
    model: str | None = key(None, "name of the model there; null: the only one that it lists, or its own choice")
    api: str = key(
        "completions",
        "completions: the prompt as token ids (or as text, where the server takes no ids); chat: messages, which the "
        "server puts into its own template, which may say more",
        choices=("completions", "chat"),
    )
    truncated: str = key(
        "refuse",
        "of a server that draws from a few likeliest tokens alone, whatever it is asked: refuse it, or accept its "
        "answers, which then say so",
        choices=("refuse", "accept"),
    )
    concurrency: int = key(16, "requests under way at each server", low=1)
    attempts: int = key(5, "times that a request is sent before it has failed", low=1)
    backoff_s: float = key(1.0, "pause after a failed request, doubled each time, at most a minute", low=0)
    timeout_s: float = key(600.0, "seconds until a request has failed, and that a server may be too busy", above=0)
    wait_s: float = key(0.0, "seconds to wait at the start for all servers; then those that are up do the work", low=0)
    key_variable: str | None = key(None, "environment variable with a key that is sent to the servers; null: none is")


@dataclass
class Sampling:
    """How answers are drawn. The report: 10 to 30 per prompt; its temperatures are those of multilingual data."""

    answers: int = key(10, "answers per prompt, K (report: 10 to 30)", low=1)
    temperature: float = key(1.0, "0: greedy, and K has to be 1; the report states none for English", low=0)
    temperature_to: float | None = key(
        None,
        "each prompt's temperature is drawn evenly between sampling.temperature and this (report, multilingual: 0.2 to "
        "1, and 0.6 for all in the last round); null: sampling.temperature for all",
        above=0,
    )
    top_p: float = key(1.0, "nucleus", above=0, high=1)
    max_new_tokens: int = key(512, "longest answer (report: a limit, so that memory is known beforehand)", low=1)
    seed: int = key(1234, "seed of all answers", low=0)
    batch: int = key(64, "answers that our own decoder draws at once", low=1)


@dataclass
class Filters:
    """Which answers are dropped before they are ranked (report, section 4.2.3). Numbers are ours."""

    finished: bool = key(True, "only answers that end by themselves, not at max_new_tokens")
    min_tokens: int = key(1, "shortest answer; in words where a server told no tokens, as with n", low=0)
    max_tokens: int | None = key(None, "longest answer; null: any that was drawn", low=1)
    duplicates: bool = key(True, "drop what repeats an answer to the same prompt")
    repeated_share: float = key(0.3, "share of an answer's runs of four words that stood in it before", low=0, high=1)
    emoji_per_word: float = key(0.05, "most emoji per word, beyond the first (report: excessive ones)", low=0)
    exclamations_per_sentence: float = key(0.5, "most exclamation marks per sentence, beyond the first", low=0)
    same_script: bool = key(
        True, "the answer is in the prompt's script, Latin, Thai ..., or in one that it holds or names"
    )
    language_model: str | None = key(
        None,
        "fastText model by which answers in another language than their prompt asks for are found, which no reward "
        "model ranks (report: checked before it); null: same_script alone",
    )
    format: bool = key(True, "drop answers that break a check which their prompt carries")
    apologies_share: float = key(
        0.1, "largest share of best answers that apologise; those with the lowest rewards go (report: balanced)",
        low=0, high=1,
    )  # fmt: skip
    keep_share: float = key(
        1.0, "share of the best answers that are kept, by reward (report: the top quartile is of high quality)",
        above=0, high=1,
    )  # fmt: skip


@dataclass
class Pairs:
    """Preferences out of what was drawn: the best answer to a prompt against its worst. Ours."""

    margin: float = key(0.5, "least difference of their rewards", low=0)
    strong: float = key(1.5, "difference from which the best is significantly better, and not just better", low=0)


@dataclass
class Sample:
    """Keys of `recipes.sample`: K answers per prompt, ranked by the reward model, the best kept."""

    folder: str = key(MISSING, "folder of what is drawn: candidates.jsonl, scores.jsonl, best.jsonl, pairs.jsonl")
    prompts: str = key(MISSING, "JSONL files of dialogs to go on with, folders or globs, comma-separated")
    limit: int | None = key(None, "prompts to answer, from the first; null: all", low=1)
    policy: str = key(MISSING, "model that answers: checkpoint, run folder (its newest) or Hugging Face folder")
    reward: str | None = key(None, "reward model: checkpoint or run folder; null: answers are drawn and not ranked")
    part: str = key(
        "all",
        "all, or one after the other, since servers and reward model may need the same memory: draw answers, rank them",
        choices=("all", "draw", "rank"),
    )
    score_tokens: int = key(
        8192, "longest prompt with answer that the reward model reads; longer ones are dropped", low=2
    )
    server: Server = field(default_factory=Server)
    sampling: Sampling = field(default_factory=Sampling)
    filters: Filters = field(default_factory=Filters)
    pairs: Pairs = field(default_factory=Pairs)
    parallel: Parallel = field(default_factory=Parallel)
    precision: TrainedPrecision = field(default_factory=TrainedPrecision)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass
class Score:
    """Keys of `recipes.score`: the rewards of answers that a file holds."""

    input: str = key(MISSING, "JSONL files of dialogs, preferences or steps, folders or globs, comma-separated")
    output: str = key(
        MISSING,
        "JSONL file to write: the records with `reward`, of preferences `rewards` by rank, of steps `step_scores`",
    )
    reward: str = key(MISSING, "reward model: checkpoint or run folder")
    steps: bool = key(
        False,
        "score dialogs step by step too, as records with `steps` are: the last answer is split into its steps "
        "(a model of recipes.reward objective=steps)",
    )
    least_step: float | None = key(
        None,
        "leave out records with a step that scores lower (report, section 4.3.3: incorrect intermediate steps), and "
        "those too long to be scored; null: all are written",
        low=0, high=1,
    )  # fmt: skip
    score_tokens: int = key(8192, "longest dialog that the reward model reads; longer ones have no reward", low=2)
    chunk: int = key(1024, "answers between two moves of the progress bar; they are packed together", low=1)
    parallel: Parallel = field(default_factory=Parallel)
    precision: TrainedPrecision = field(default_factory=TrainedPrecision)
    cluster: Cluster = field(default_factory=Cluster)


@dataclass
class Judge:
    """Keys of `recipes.judge`: what one round has gained, as numbers and one HTML page. No torch."""

    folder: str = key(MISSING, "folder to write judge.json and judge.html to")
    title: str = key("", "headline of the page; empty: the folder's name")
    answers: str = key(MISSING, "folder of recipes.sample with the model's answers to the judge's prompts, ranked")
    previous: str | None = key(None, "the same of the model before; null: there is none to win against")
    reward: str | None = key(
        None, "run folder of the reward model whose scores count; null: the last that scored there"
    )
    unanswered: str = key(
        "lose", "a prompt without an answer, or one that the reward model could not read", choices=("lose", "leave_out")
    )
    refusals: list[str] = key(
        ["ours"], "openings of refusals: ours (eight languages), regular expressions, file:PATH with one per line"
    )
    earlier: list[str] = key([], "judge.json of earlier rounds, oldest first, for the curves over rounds")
    runs: list[str] = key([], "run folders of this round whose held-out accuracy and loss are shown")
    examples: int = key(20, "prompts shown with both answers", low=0)
    candidate: str | None = key(None, "run folder of the model: `best` beside the folder leads to it, unless it loses")
    incumbent: str | None = key(None, "run folder of the model before: `best` leads there if the model loses")


@dataclass
class Variant:
    """One of several models that a stage trains, which are averaged."""

    set: list[str] = key([], "overrides of this variant alone, such as schedule.peak_lr=5e-6")


@dataclass
class RoundRecipe:
    """One stage of a round: how its recipe is called."""

    config_name: str | None = key(None, "root file in conf/ or --config-dir; null: the recipe's own")
    set: list[str] = key([], "overrides; {round} is the number of the round, 01 to 99")
    variants: dict[str, Variant] = key(
        {}, "several models, averaged afterwards: post_train.sft.variants.NAME.set=[...]"
    )
    processes: int = key(1, "processes under torchrun on this machine", low=1)


@dataclass
class RoundSynthesis:
    """Data that a chat model writes in every round: `recipes.synthesize`, whose servers stand in `set`."""

    task: str = key(MISSING, "what is made, as recipes.synthesize calls it")
    config_name: str | None = key(None, "root file in conf/ or --config-dir; null: the recipe's own")
    set: list[str] = key([], "overrides, input and server.urls among them; {round} is the number of the round")
    dialogs: bool = key(True, "SFT learns from its dialogs")
    preferences: bool = key(False, "DPO learns from its preferences too")


@dataclass
class RoundFilter:
    """Which dialogs of a round SFT learns from: `recipes.filter_data` over all of them."""

    enabled: bool = key(False, "filter the sampled, the given and the synthesised dialogs before SFT")
    config_name: str | None = key(None, "root file in conf/ or --config-dir; null: the recipe's own")
    set: list[str] = key([], "overrides, judge.urls among them where a judge is asked; {round} is the round's number")


@dataclass
class PostTrain:
    """Keys of `recipes.post_train`: rounds of reward model, sampling, SFT, DPO, averages and the judge."""

    name: str = key(MISSING, "name of the rounds")
    folder: str = key("runs/${name}", "folder of all rounds; every artefact stands in round-NN/STAGE")
    rounds: int = key(6, "rounds (report: six)", low=1, high=99)
    pretrained: str = key(MISSING, "pre-trained checkpoint or run folder: reward models and SFT begin with it")
    policy: str | None = key(None, "model that answers in the first round; null: the pre-trained one")
    sft_from: str = key(
        "pretrained", "what SFT begins with: the pre-trained model (report), or the best so far",
        choices=("pretrained", "best"),
    )  # fmt: skip
    preferences: str = key(
        MISSING, "JSONL of preferences of a round, {round} its number; reward models learn from all so far, DPO "
        "from the newest (report)"
    )  # fmt: skip
    dialogs: str = key("", "further dialogs for SFT, beside the sampled ones; {round} is the number of the round")
    prompts: str = key(MISSING, "JSONL of prompts to sample for; {round} is the number of the round")
    judge_prompts: str = key(MISSING, "JSONL of held-out prompts for the judge")
    pairs: bool = key(True, "DPO learns from the sampled pairs too")
    config_dir: str | None = key(None, "--config-dir of every stage")
    reward: RoundRecipe = field(default_factory=RoundRecipe)
    sample: RoundRecipe = field(default_factory=RoundRecipe)
    synthesize: dict[str, RoundSynthesis] = key(
        {}, "further data of each round, by names of your own: synthesize.NAME.task=code synthesize.NAME.set=[...]"
    )
    filter: RoundFilter = field(default_factory=RoundFilter)
    sft: RoundRecipe = field(default_factory=RoundRecipe)
    dpo: RoundRecipe = field(default_factory=RoundRecipe)
    judge: RoundRecipe = field(default_factory=RoundRecipe)
    only: list[str] = key([], "stages to run, such as round-01/sft; empty: all that are not finished")
    submit: bool = key(False, "submit the stages to Slurm as dependent jobs instead of running them here")
    job: Job = field(default_factory=Job)
    dry_run: bool = key(False, "print every command of every round, and run none")
