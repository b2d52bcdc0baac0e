"""Keys of `recipes.synthesize`, data that models write and programs check (report, section 4.3), and of
`recipes.filter_data`, which dialogs are kept (section 4.2.3). Where the report states no number, it is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.capabilities.long_context import LongCodeSynthesis, LongQuestionsSynthesis, LongSummariesSynthesis
from llama31.config.capabilities.reasoning import (
    MathematicsSynthesis,
    QuestionsSynthesis,
    ReasoningTranslation,
    TemplatesSynthesis,
)
from llama31.config.capabilities.tools import (
    FunctionCallsSynthesis,
    FunctionDialogsSynthesis,
    ToolFilesSynthesis,
    ToolMultiSynthesis,
    ToolServices,
    ToolSingleSynthesis,
)
from llama31.config.keys import MISSING, key
from llama31.config.sampling import Server

SYNTHESES: tuple[str, ...] = ("factuality", "steerability", "safety", "guard")
SYNTHESES += ("long_questions", "long_summaries", "long_code")
SYNTHESES += ("tool_single", "tool_multi", "tool_files", "function_calls", "function_dialogs")
SYNTHESES += ("code", "translate_code", "backtranslate", "review_code")
SYNTHESES += ("questions", "mathematics", "templates", "translate_reasoning")
CODE_LANGUAGES = ("python", "javascript", "typescript", "c", "cpp", "java", "rust", "php", "sql", "bash")
PROGRAM_LANGUAGES = tuple(name for name in CODE_LANGUAGES if name != "sql")  # that read standard input
BACKTRANSLATIONS = ("explain", "document", "debug")


@dataclass
class SynthesisSampling:
    """How answers are drawn where a task says nothing else. The report states neither temperature nor length."""

    temperature: float = key(1.0, "0: greedy", low=0)
    top_p: float = key(1.0, "nucleus", above=0, high=1)
    max_new_tokens: int = key(2048, "longest answer; what does not end by then is asked for once more", low=1)
    seed: int = key(1234, "seed of all answers", low=0)


@dataclass
class SynthesisPrograms:
    """What a program that a model wrote may take in the sandbox, where all of them run. The bounds are ours."""

    wall_s: float = key(20.0, "seconds of the clock", above=0)
    cpu_s: float = key(15.0, "seconds of the processor, compilers counted", above=0)
    memory_mib: int = key(1024, "memory in MiB", low=1)
    processes: int = key(64, "processes and threads", low=1)
    output_bytes: int = key(2**20, "bytes of output", low=1)
    disk_mib: int = key(64, "files in MiB", low=1)
    readable: list[str] = key([], "folders beside /usr that they may read; tools in the bin of each are found")
    bubblewrap: str | None = key(None, "path of bwrap; null: the one in PATH")


@dataclass
class CodeSynthesis:
    """task=code: solutions that pass tests, mended by what running them has said. The report states no numbers."""

    languages: list[str] = key(
        list(CODE_LANGUAGES), "languages to solve problems in; one without a tool chain here is skipped and counted",
        choices=CODE_LANGUAGES,
    )  # fmt: skip
    snippet_lines: int = key(15, "lines of a snippet that a problem is made from, at most", low=1)
    least_tests: int = key(3, "tests that have to pass, at least", low=1)
    repairs: int = key(3, "times that a solution or its tests are mended", low=0)
    lint: bool = key(True, "whether linters that are found (ruff, shellcheck) have a say")
    dialog: str = key(
        "repairs",
        "repairs: with the turns that mended it, as in the report; final: the problem and the last solution alone",
        choices=("repairs", "final"),
    )
    learn_faulty: bool = key(False, "whether faulty answers of these turns are learned, or context (weight 0)")
    with_judge: bool = key(False, "whether a judge's two points are needed as well (review_code)")


@dataclass
class TranslateCodeSynthesis:
    """task=translate_code: a program in a rarer language, which says the same on the same inputs."""

    targets: list[str] = key(
        ["php", "rust", "typescript", "bash", "c", "cpp", "java"],
        "languages to translate to",
        choices=PROGRAM_LANGUAGES,
    )  # fmt: skip
    as_is: bool = key(False, "whether records are programs that read standard input already, or a model makes them")
    snippet_lines: int = key(60, "lines of a snippet that a program is made from, at most", low=1)
    inputs: int = key(6, "inputs on which both are run, at most", low=2)
    least_inputs: int = key(3, "inputs on which the original has to run", low=2)
    wait_s: int = key(5, "seconds for a program on one input", low=1)
    repairs: int = key(3, "times that a translation is mended", low=0)
    dialog: str = key(
        "repairs", "repairs: with the turns that mended it; final: the last translation alone",
        choices=("repairs", "final"),
    )  # fmt: skip


@dataclass
class BacktranslateSynthesis:
    """task=backtranslate: explaining, documenting, mending code, held against the code itself."""

    kinds: list[str] = key(list(BACKTRANSLATIONS), "what is made, one of them for each item", choices=BACKTRANSLATIONS)
    snippet_lines: int = key(80, "lines of a snippet, at most", low=1)
    least_lines: int = key(5, "lines of a snippet that say something, at least", low=1)
    candidates: int = key(4, "answers of which the best is kept", low=1)
    least_score: int = key(4, "what the judge has to give it, of 1 to 5", low=1, high=5)


@dataclass
class ReviewCodeSynthesis:
    """task=review_code: a judge's points for correctness and style; both are needed."""

    revise: str = key(
        "hardest", "answers below 2 of 2 that are revised: to problems that the judge calls hard, all, or none",
        choices=("hardest", "all", "none"),
    )  # fmt: skip
    revisions: int = key(3, "times that an answer is revised until it has both points", low=0)


@dataclass
class SynthesisJobs:
    """What is asked of Slurm: an array of shards, and the job that gathers them."""

    at_once: int | None = key(
        None, "elements of the array that run at a time; null: as many as there is room for", low=1
    )
    cpus: int = key(8, "cores of each, on which checks run", low=1)
    partition: str | None = key(None, "partition; null: Slurm's default")
    account: str | None = key(None, "account that pays; null: Slurm's default")
    time: str | None = key(None, "time limit of an element as sbatch reads it; null: that of the script in slurm/")
    options: str = key("", "further options of sbatch: 'job.options=--exclude=n3 --qos=high'")
    gathering: str = key("", "those of the job that gathers alone: 'job.gathering=--gpus=1' for its embeddings")


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
    reward: Server = field(default_factory=Server)
    sampling: SynthesisSampling = field(default_factory=SynthesisSampling)
    factuality: FactualitySynthesis = field(default_factory=FactualitySynthesis)
    steerability: SteerabilitySynthesis = field(default_factory=SteerabilitySynthesis)
    safety: SafetySynthesis = field(default_factory=SafetySynthesis)
    guard: GuardSynthesis = field(default_factory=GuardSynthesis)
    long_questions: LongQuestionsSynthesis = field(default_factory=LongQuestionsSynthesis)
    long_summaries: LongSummariesSynthesis = field(default_factory=LongSummariesSynthesis)
    long_code: LongCodeSynthesis = field(default_factory=LongCodeSynthesis)
    questions: QuestionsSynthesis = field(default_factory=QuestionsSynthesis)
    mathematics: MathematicsSynthesis = field(default_factory=MathematicsSynthesis)
    templates: TemplatesSynthesis = field(default_factory=TemplatesSynthesis)
    translate_reasoning: ReasoningTranslation = field(default_factory=ReasoningTranslation)
    tool_single: ToolSingleSynthesis = field(default_factory=ToolSingleSynthesis)
    tool_multi: ToolMultiSynthesis = field(default_factory=ToolMultiSynthesis)
    tool_files: ToolFilesSynthesis = field(default_factory=ToolFilesSynthesis)
    function_calls: FunctionCallsSynthesis = field(default_factory=FunctionCallsSynthesis)
    function_dialogs: FunctionDialogsSynthesis = field(default_factory=FunctionDialogsSynthesis)
    samples: int = key(5, "records of each kind, and dropped items of each reason, shown on the page", low=0, high=100)
    programs: SynthesisPrograms = field(default_factory=SynthesisPrograms)
    services: ToolServices = field(default_factory=ToolServices)
    code: CodeSynthesis = field(default_factory=CodeSynthesis)
    translate_code: TranslateCodeSynthesis = field(default_factory=TranslateCodeSynthesis)
    backtranslate: BacktranslateSynthesis = field(default_factory=BacktranslateSynthesis)
    review_code: ReviewCodeSynthesis = field(default_factory=ReviewCodeSynthesis)
    submit: bool = key(False, "submit the shards to Slurm as an array, and after it the gathering")
    job: SynthesisJobs = field(default_factory=SynthesisJobs)
    dry_run: bool = key(False, "print what is done, and the commands of Slurm, and run nothing")


# Coarse and fine, as the report names "mathematical reasoning" and "geometry and trigonometry"; the others are ours.
TOPICS = {
    "mathematical reasoning": [
        "arithmetic and word problems", "algebra", "geometry and trigonometry", "calculus and analysis",
        "probability and statistics", "logic and puzzles", "higher mathematics",
    ],
    "code": [
        "writing programs", "debugging", "explaining code", "data and databases", "web development",
        "systems and tools", "algorithms",
    ],
    "science and technology": ["physics", "chemistry", "biology", "medicine and health", "engineering", "computing"],
    "society and humanities": ["history", "law and politics", "economics and business", "philosophy and religion"],
    "language": ["translation", "grammar and vocabulary", "summaries", "rewriting and editing"],
    "writing": ["stories and poems", "letters and messages", "advertising and marketing", "speeches and scripts"],
    "everyday life": ["advice and relationships", "food and home", "travel", "work and careers", "sports and games"],
    "conversation": ["small talk", "role play", "questions about the assistant"],
}  # fmt: skip


@dataclass
class JudgeSampling(SynthesisSampling):
    """How a judge's answers are drawn: near its likeliest one, and so that another draw may parse where one did not."""

    temperature: float = key(0.3, "0: greedy, so that what does not parse never will", low=0)
    max_new_tokens: int = key(512, "longest answer; what does not end by then is asked for once more", low=1)


@dataclass
class RuleCleaning:
    """Dialogs with an answer that has too many emoji or exclamation marks (report)."""

    enabled: bool = key(True, "drop them")
    emoji_per_word: float = key(0.05, "most emoji per word of an answer, beyond the first", low=0)
    exclamations_per_sentence: float = key(0.5, "most exclamation marks per sentence, beyond the first", low=0)


@dataclass
class BenchmarkSet:
    """Prompts that a benchmark asks."""

    path: str = key(MISSING, "records of the set: JSON lines or Parquet, folders or globs, comma-separated")
    prompt: str = key("{question}", "a prompt's text; {FIELD} is a field of the record, dots lead into objects")
    threshold: float = key(
        0.5, "T_D: share of a prompt's words within n-grams of a dialog from which the dialog is dropped (report: its "
        "own for each set, not stated)", above=0, high=1,
    )  # fmt: skip


@dataclass
class Decontamination:
    """Dialogs that hold what a benchmark asks (report, sections 4.2.3 and 5.1.4)."""

    enabled: bool = key(True, "drop them")
    exact: bool = key(True, "drop dialogs in which a user says a benchmark's prompt and nothing else (report)")
    ngram: int = key(8, "words of a run that both have (report: 8 tokens)", low=2, high=64)
    sets: dict[str, BenchmarkSet] = key({}, "benchmarks by name: decontamination.sets.NAME.path=FILE")


@dataclass
class TopicLabels:
    """What dialogs are about, in coarse and fine classes (report: by a fine-tuned 8B model)."""

    enabled: bool = key(True, "label them")
    model: str | None = key(
        None, "fastText model or folder of an encoder whose classes are COARSE or COARSE/FINE; null: the judge is asked"
    )
    classes: dict[str, list[str]] = key(TOPICS, "of the judge: coarse topics, and the fine ones of each")
    only: list[str] = key([], "coarse topics that are kept; empty: all")


@dataclass
class IntentionTags:
    """Difficulty as the number of intentions of a dialog's user (report: more are more complex; Lu et al. 2023)."""

    enabled: bool = key(True, "ask the judge for them")


@dataclass
class DifficultyGrade:
    """Difficulty of a dialog as the judge grades it: 1 to 3 (report: three points)."""

    enabled: bool = key(True, "ask the judge for it")


@dataclass
class RewardQuality:
    """Dialogs that the reward model holds for best."""

    enabled: bool = key(True, "keep the best by reward")
    reward_key: str = key("reward", "field with the reward, of recipes.score, or in the provenance, of recipes.sample")
    share: float = key(0.25, "share that is best (report: the top quartile)", above=0, high=1)


@dataclass
class JudgedQuality:
    """Dialogs to which the judge gives every point: three of general ones, two of code (report)."""

    enabled: bool = key(True, "keep those that have all points")


@dataclass
class QualitySelection:
    """Kept is what is best by reward or by judge: their union (report: it recalls most); with neither, everything."""

    reward: RewardQuality = field(default_factory=RewardQuality)
    judge: JudgedQuality = field(default_factory=JudgedQuality)


@dataclass
class SemanticDeduplication:
    """Dialogs that say nearly the same as a better and harder one of their cluster (report, section 4.2.3)."""

    enabled: bool = key(True, "drop them")
    encoder: str | None = key(None, "folder of a RoBERTa-class encoder of Hugging Face's (report: RoBERTa)")
    threshold: float = key(
        0.95, "cosine to one that is kept from which a dialog is dropped; it depends on the encoder", above=0, high=1.01
    )
    clusters: int | None = key(None, "clusters of k-means; null: one for each thousand dialogs", low=1)
    iterations: int = key(20, "of k-means, at most", low=1)
    max_tokens: int = key(512, "of a window of the encoder; its own limit where that is lower", low=8)
    batch_tokens: int = key(16_384, "tokens of a batch, padding included", low=8)
    threads: int = key(1, "of the encoder, where there is no GPU", low=1)
    seed: int = key(1234, "of the first centres", low=0)


@dataclass
class ApologyBalance:
    """Dialogs in which an assistant says sorry, which models do too often (report: their share is balanced)."""

    enabled: bool = key(True, "drop the worst of them beyond the share")
    share: float = key(0.1, "largest share of what is kept", low=0, high=1)


@dataclass
class FilterData:
    """Keys of `recipes.filter_data`: dialogs, and which of them are worth learning from."""

    name: str = key(MISSING, "name of what is kept")
    folder: str = key("filtered/${name}", "folder of all files; the same command goes on where it stopped")
    input: str = key(MISSING, "dialogs: JSON lines or Parquet, folders or globs, comma-separated")
    added_key: str = key("quality", "field that is added to every record")
    limit: int | None = key(None, "records to read, from the first; null: all", low=1)
    shards: int = key(1, "shards of the questions, each an element of an array on Slurm", low=1, high=100_000)
    shard: int | None = key(None, "ask about this shard alone; null: all", low=0)
    part: str = key(
        "all",
        "all, make (the answers of the judge), or gather (select by what was answered)",
        choices=("all", "make", "gather"),
    )
    prompts: str | None = key(None, "folder of own prompts, quality/NAME.txt, in the place of those of conf/prompts")
    longest_characters: int = key(
        40_000, "of a dialog that the judge is shown; of a longer one the middle is left out, said so and counted",
        low=1000,
    )  # fmt: skip
    items_at_once: int | None = key(None, "dialogs at work; null: four for each request that servers take", low=1)
    judge: Server = field(default_factory=Server)
    sampling: JudgeSampling = field(default_factory=JudgeSampling)
    rules: RuleCleaning = field(default_factory=RuleCleaning)
    decontamination: Decontamination = field(default_factory=Decontamination)
    topic: TopicLabels = field(default_factory=TopicLabels)
    intentions: IntentionTags = field(default_factory=IntentionTags)
    difficulty: DifficultyGrade = field(default_factory=DifficultyGrade)
    quality: QualitySelection = field(default_factory=QualitySelection)
    deduplication: SemanticDeduplication = field(default_factory=SemanticDeduplication)
    apologies: ApologyBalance = field(default_factory=ApologyBalance)
    samples: int = key(5, "dialogs of each reason that the page shows", low=0, high=100)
    submit: bool = key(False, "submit the shards to Slurm as an array, and after it the selection")
    job: SynthesisJobs = field(default_factory=SynthesisJobs)
    dry_run: bool = key(False, "print the commands of Slurm, and run nothing")
