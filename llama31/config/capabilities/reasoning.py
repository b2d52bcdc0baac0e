"""Keys of mathematics and of languages beside English in `recipes.synthesize` (report, sections 4.3.2 and 4.3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import key


@dataclass
class QuestionsSynthesis:
    """Questions from mathematical text (report, section 4.3.3). Numbers are ours."""

    per_text: int = key(2, "questions of each text", low=1)
    characters: int = key(6000, "characters of a text that are shown", low=1)


@dataclass
class StepSearch:
    """A tree of steps for hard questions (report, section 4.3.3: MCTS with a step-wise reward). Numbers are ours."""

    below: float = key(0.2, "share of right solutions below which a question is hard; 0: nothing is searched", low=0)
    scorer: str = key(
        "policy",
        "whose score of a step guides it: policy (the model itself), judge (judge.urls, which writes its score), "
        "reward (reward.urls: a step-wise reward model, as in the report), rollouts (the share of continuations that "
        "come to the known answer)",
        choices=("policy", "judge", "reward", "rollouts"),
    )
    simulations: int = key(12, "nodes that are expanded", low=1)
    width: int = key(3, "next steps drawn at each", low=1)
    depth: int = key(12, "longest branch, in steps", low=1)
    exploration: float = key(0.7, "weight of what was seldom visited (UCT's constant; scores are 0 to 1)", low=0)
    rollouts: int = key(4, "continuations of each step; of search.scorer=rollouts", low=1)


@dataclass
class PythonSolutions:
    """Python between the text of a solution, run in the sandbox within the bounds of `programs`. Numbers are ours."""

    enabled: bool = key(False, "solutions with Python, in the place of steps")
    turns: int = key(5, "messages of a solution at most", low=1)


@dataclass
class MathematicsSynthesis:
    """Solutions that are right by their answers (report, section 4.3.3). Records have question and answer, or text.

    Numbers are ours, where the text does not say otherwise.
    """

    answers: int = key(8, "solutions drawn of each question", low=1)
    keep: int = key(2, "right solutions kept of each question", low=1)
    majority: float = key(
        0.5, "share of the solutions that has to agree where no answer is given, two at least", above=0, high=1
    )
    verifications: int = key(1, "times that the model judges its own solution, correct each time; 0: none", low=0)
    least_step: float | None = key(
        None,
        "least score of each step of a right solution, by the step-wise reward model behind reward.urls (report: "
        "incorrect intermediate steps are filtered out); null: it is not asked",
        low=0, high=1,
    )  # fmt: skip
    labelled: int = key(0, "solutions of each question, wrong ones first, whose steps are labelled; 0: none", low=0)
    rollouts: int = key(8, "continuations of each step of a labelled solution (Math-Shepherd: 8)", low=1)
    corrections: int = key(1, "wrong solutions of each question that the model is asked to mend", low=0)
    search: StepSearch = field(default_factory=StepSearch)
    python: PythonSolutions = field(default_factory=PythonSolutions)


@dataclass
class TemplatesSynthesis:
    """Parallel text and tasks as dialogs (report, section 4.3.2)."""

    folder: str | None = key(None, "folder of templates, *.txt; null: conf/dialog_templates")
    each: int = key(1, "templates of each record, of those whose fields it has", low=1)
    language_model: str | None = key(
        None, "fastText model by which the fields that a record's `languages` names are judged; null: script alone"
    )
    score_key: str | None = key(None, "key of a record's score that was made elsewhere, as Blaser 2.0's; null: none")
    least_score: float = key(0.0, "least score that is kept")


@dataclass
class ReasoningTranslation:
    """Questions and solutions translated by the model (report, section 4.3.2). Numbers are ours."""

    languages: list[str] = key(
        ["de", "fr", "it", "pt", "hi", "es", "th"], "languages by their codes (report: these)",
        choices=("de", "fr", "it", "pt", "hi", "es", "th"),
    )  # fmt: skip
    each: int = key(1, "languages of each record, drawn by chance", low=1)
    revisions: int = key(1, "times that a translation with other numbers is asked for again", low=0)
    language_model: str | None = key(None, "fastText model that tells languages apart; null: script alone")
