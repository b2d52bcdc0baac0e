"""What is asked of a model: multiple choice, needles in a haystack, and the gates that they open during training."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama31.config.keys import MISSING, key


@dataclass
class Task:
    """One multiple-choice task of `recipes.evaluate`: a local JSONL file and what its fields are called."""

    path: str = key(MISSING, "JSONL file, one example per line")
    context: str = key("{query}", "text before the choices; {FIELD} is a field of the example, dots lead into objects")
    choices: str = key("choices", "field with the list of choices")
    gold: str = key("gold", "field with the right choice: its index from 0, its label or its text")
    labels: str = key("", "field with the labels that gold names, such as A to D; empty: there are none")
    delimiter: str = key(" ", "text between context and choice")
    description: str = key("", "text before everything else")
    fewshot: int = key(0, "solved examples before each question: the first others of the same file", low=0)
    between: str = key("\n\n", "text after each solved example")
    limit: int | None = key(None, "examples to evaluate, from the first; null: all", low=1)


@dataclass
class Needle:
    """Needle in a haystack for `recipes.evaluate`: facts hidden in a long context, and asked for at its end."""

    kind: str = key(
        "none",
        "none, text (sentences in a haystack of text) or tokens (keys and values as token ids, for tiny models)",
        choices=("none", "text", "tokens"),
    )
    haystack: str = key("", "for text: a text file, or the name of a source of `data`; empty: its first source")
    lengths: list[int] = key(
        [], "contexts in tokens, question and answer included; empty: ten steps to that of the rows"
    )
    depths: list[float] = key(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        "where the first needle asked for stands: 0 at the beginning, 1 right before the question",
    )
    inserted: int = key(
        1,
        "needles in each haystack (the report's multi-needle: 4; for tokens give several, one gives itself away)",
        low=1,
    )
    asked: int = key(1, "needles of those asked for in one question (the report's multi-needle: 2)", low=1)
    trials: int = key(1, "haystacks per length and depth", low=1)
    answer_tokens: int = key(48, "for text: tokens of each length kept for the answer", low=8)
    decode: bool = key(True, "decode the answer; false: judge it token by token in one pass, as training's gate does")
    seed: int = key(1234, "seed of needles and haystacks", low=0)


@dataclass
class Gates:
    """When a stage of long context ends (report, 3.4.2): short-context scores are back, and every needle is found.

    The report names no tests and no numbers: those here are ours.
    """

    every_tokens: int | None = key(
        None, "tokens between examinations, the first after so many; null: none, the run ends with its tokens", low=1
    )
    tasks: dict[str, Task] = key({}, "short-context multiple-choice tasks keyed by name: gates.tasks.NAME.path=FILE")
    measure: str = key("acc_norm", "score of a task", choices=("acc", "acc_norm", "acc_bytes"))
    short_length: int | None = key(None, "tokens per row of a held-out loss that has to recover too; null: none", low=1)
    short_tokens: int = key(131072, "held-out tokens per source of that loss", low=1)
    needle: Needle = field(default_factory=Needle)
    recall: float = key(1.0, "share of the needles that have to be found, at every length", above=0, high=1)
    baseline: str | None = key(
        None, "gates.json of the run before the extension; null: this run's scores before its first step"
    )
