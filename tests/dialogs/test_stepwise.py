"""Steps with labels as ids and rows: a reward is read of the dialog that ends with the step, whatever the layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.command import validate
from llama31.dialogs import rows, stepwise, store
from llama31.dialogs.feed import DialogFeed, Stepwise
from llama31.tokens import chat
from tests.dialogs.conftest import SCHEDULE, Bytes, Written

STEPS = ["Step 1: 3 + 4 = 7.", "7 + 5 = 12.", "So it is \\boxed{12}"]
RECORD = {"question": "What is 3 + 4 + 5?", "steps": STEPS, "labels": [1, 0.75, True], "answer": "12"}


class Merging(Bytes):
    """A full stop and the empty line behind it are one token, as in Llama 3's vocabulary."""

    def encode(self, text: str) -> list[int]:
        return [one for part in re.split(r"(\.\n\n)", text) for one in ([255] if part == ".\n\n" else part.encode())]


def encoded(folder: Path, path: Path, form: chat.Format) -> store.Store:
    def encode(record: dict[str, Any]) -> store.Example | str:
        return stepwise.encode(record, form)

    header = {"kind": store.STEPS, "vocab_size": 262, "tokenizer": "bytes"}
    return store.read(store.prepare(folder, "a", str(path), header, 1, 0.0, encode))


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("tokenizer", [Bytes(), Merging()], ids=["bytes", "merging"])
def test_each_step_is_read_of_its_own_dialog(
    layout: str, tokenizer: Bytes, write: Written, tmp_path: Path
) -> None:  # fmt: skip
    form = chat.Format(tokenizer)
    made = encoded(
        tmp_path / "encoded", write("steps.jsonl", RECORD, {**RECORD, "steps": STEPS[:1], "labels": [0]}), form
    )
    collator = Stepwise(layout)
    pieces = [collator.piece(made, number, "", 0.0) for number in range(2)]
    assert [len(piece.tokens) for piece in pieces] == collator.lengths(made).tolist()
    packed = rows.pack([pieces], 1000, compares=True)
    np.testing.assert_allclose(packed.targets, [1, 0.75, 1, 0])
    assert packed.responses == 4 and not len(packed.pairs)
    dialogs = [STEPS[:1], STEPS[:2], STEPS, STEPS[:1]]
    for number, steps in enumerate(dialogs):
        (end,) = np.nonzero(packed.of_token[0] == number)[0]
        (document,) = [one for one in packed.documents if one[1] <= end < one[2]]
        assert end == document[2] - 1, "a reward is read at the last token"
        seen = [*range(document[3], document[4]), *range(document[1], document[2])]
        messages = [{"role": "user", "content": RECORD["question"]}, stepwise.said(steps)]
        assert packed.tokens[0, seen].tolist() == form.encode(chat.read({"messages": messages})).tokens.tolist()
        assert packed.positions[0, seen].tolist() == list(range(len(seen)))
    if layout == "tree":  # <|eot_id|>, behind the full stop that is a token of its own where nothing follows it
        assert len(pieces[0].tokens) - pieces[0].documents[0, 1] == (2 if type(tokenizer) is Bytes else 4)


def test_labels_are_soft_or_hard(write: Written, tmp_path: Path, form: chat.Format) -> None:
    """Records with a step that says nothing are left out and counted; TRL's keys are read as well."""
    given = [
        {"prompt": "What is 3 + 4 + 5?", "completions": STEPS, "labels": [0.0, 0.125, 1.0]},
        {**RECORD, "steps": ["Step 1: ", *STEPS[1:]]},
    ]
    made = encoded(tmp_path / "encoded", write("steps.jsonl", *given), form)
    assert made.header["left_out"] == {stepwise.EMPTY: 1}
    for above, labels in ((None, [0, 0.125, 1]), (0.0, [0, 1, 1]), (0.5, [0, 0, 1])):
        feed = DialogFeed({"a": made}, {"a": 1.0}, Stepwise(hard_above=above), config.Schedule(
            **{**vars(SCHEDULE), "sequence_length": 256, "batch_tokens": 256}), 0, 0)  # fmt: skip
        assert feed.rows(0, np.array([0])).targets.tolist() == labels == feed.labels(np.array([0])).tolist()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"question": None}, "question: missing; give what the steps answer, as messages, prompt, question"),
        ({"steps": []}, "steps: give a list of texts, at least one"),
        ({"steps": "one"}, "steps: give a list of texts"),
        ({"labels": [1, 0]}, "labels: 2 labels for 3 steps; give one for each"),
        ({"labels": None}, "labels: missing; give one for each step"),
        ({"labels": [1, 0, -1]}, r"labels: -1; give numbers of 0 \(wrong\) to 1 \(right\)"),
        ({"labels": [1, 0, None]}, "labels: None; give numbers"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: the last one is an assistant's"),
    ],
)
def test_what_is_no_record_is_told(change: dict[str, Any], wrong: str, form: chat.Format) -> None:
    with pytest.raises(ValueError, match=wrong):
        stepwise.encode({**RECORD, **change}, form)


def test_keys_that_do_not_go_together() -> None:
    def wrong(**keys: Any) -> set[str]:
        shape = config.RewardModel(
            "t", layers=2, hidden_size=32, ffn_hidden_size=64, heads=4, kv_heads=2, vocab_size=560
        )
        run = config.Reward(name="r", init_from="x", model=shape, schedule=SCHEDULE, **keys)
        run.data.sources = {"a": config.Ranked("a.jsonl", strength="better")}
        with pytest.raises(config.ConfigError) as error:
            validate.validate(run, None)
        return {issue.key for issue in error.value.issues}

    names = {"hard_above", "layout", "data.sources.a.strength"}
    assert names & wrong(objective="steps", layout="plain", hard_above=0.0) == names - {"hard_above"}
    assert names & wrong(hard_above=0.0) == {"hard_above"}
