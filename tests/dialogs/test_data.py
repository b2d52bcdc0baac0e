"""Records to rows: what is refused and how it is told, what is left out, what stands in which row."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.data.mixture import Skip
from llama31.dialogs import columns, feed, passes, preferences, rows, store
from llama31.judging import calibration
from llama31.tokens import chat
from llama31.tokens.chat import BODY, END, HEADER
from tests.dialogs.conftest import SCHEDULE, Bytes, Written, dialog, preference

SETTINGS = {"tokenizer": Bytes.fingerprint, "vocab_size": Bytes.vocab_size}


def dialogs(path: Path, form: chat.Format, targets: str = "all", heldout: float = 0.0) -> store.Store:
    def encode(record: dict[str, Any]) -> store.Example | str:
        encoded = form.encode(chat.read(columns.dialog(record)))
        learned = encoded.targets(targets)
        return store.Example([(encoded.tokens, learned.astype(np.int8))]) if learned.any() else "without a target"

    settings = {**SETTINGS, "targets": targets}
    return store.read(store.prepare(path.parent / "x", "a", str(path), settings, 1, heldout, encode))


def preferred(path: Path, form: chat.Format, heldout: float = 0.0, strength: str | None = None) -> store.Store:
    def encode(record: dict[str, Any]) -> store.Example | str:
        return preferences.encode(record, form, 0.95, strength)

    return store.read(store.prepare(path.parent / "x", "a", str(path), SETTINGS, 1, heldout, encode))


def fed(result: store.Store, collator: feed.Collator, epochs: float = 1.0, **schedule: Any) -> feed.DialogFeed:
    return feed.DialogFeed(
        {"a": result}, {"a": epochs}, collator, dataclasses.replace(SCHEDULE, **schedule), seed=3, prefetch=0
    )


# --- what is refused ---

GOOD = dialog("Hi", "Hello")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "line 2: Expecting property name"),
        ("[1]", "line 2: no JSON object"),
        ({}, 'line 2: messages: a dialog is {"messages"'),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 2: messages[0]: give an object whose role is one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "line 2: messages[0].content: give a text"),
        ({"messages": [{"role": "user", "tool_calls": [{"name": "f"}]}]}, "messages[0].tool_calls: only an assistant"),
        ({**GOOD, "tools": "f"}, "line 2: tools: give a list of JSON objects"),
        ({**GOOD, "builtin_tools": ["google"]}, "line 2: builtin_tools: google unknown"),
    ],
)
def test_a_record_that_is_no_dialog_is_told_with_file_line_and_key(
    record: Any, said: str, form: chat.Format, write: Written
) -> None:
    path = write("bad.jsonl", GOOD, record)
    with pytest.raises(ValueError) as caught:
        dialogs(path, form)
    assert str(caught.value).startswith(f"data.sources.a: {path}, line 2: ") and said in str(caught.value)
    assert not [*(path.parent / "x").iterdir()], "no draft is left behind"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strength": "slightly"}, "strength: 'slightly'; give one of significantly_better, better"),
        (
            {"strength": None},
            "strength: None; give one of significantly_better, better, slightly_better, marginally_bet",
        ),
        ({"strength": None}, "or data.sources.NAME.strength for records that state none"),
        ({"chosen": None}, "chosen: missing"),
        ({"rejected": {"role": "user", "content": "x"}}, "rejected: an answer begins and ends with an assistant's"),
        ({"edited": [{"role": "assistant", "content": 1}]}, "edited: messages[0].content: give a text"),
        ({"prompt": None}, "messages: a dialog is"),
        ({"messages": GOOD["messages"]}, "messages: the last one is an assistant's"),
    ],
)
def test_a_record_that_is_no_preference(changes: dict[str, Any], said: str, form: chat.Format, write: Written) -> None:
    path = write("bad.jsonl", {**preference("a", "b", "c"), **changes})
    with pytest.raises(ValueError) as caught:
        preferred(path, form)
    assert "bad.jsonl, line 1: " in str(caught.value) and said in str(caught.value)


def test_no_such_file(tmp_path: Path, form: chat.Format) -> None:
    with pytest.raises(ValueError, match="data.sources.a.input=.*: no such file"):
        dialogs(tmp_path / "none.jsonl", form)


# --- what is stored ---


def test_encoded_once_and_again_where_anything_changed(form: chat.Format, write: Written) -> None:
    path = write("d.jsonl", GOOD, "", dialog("only a question"))
    first = dialogs(path, form)
    assert first.header["examples"] == 1 and first.header["left_out"] == {"without a target": 1}, "a question"
    (folder,) = (path.parent / "x").iterdir()
    (folder / "tokens.bin").touch()
    assert dialogs(path, form).fingerprint == first.fingerprint and len([*(path.parent / "x").iterdir()]) == 1
    write("d.jsonl", GOOD, dialog("Hi", "Hello!"))
    assert dialogs(path, form).fingerprint != first.fingerprint
    (folder / "tokens.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read .* remove it, and it is made again"):
        store.read(folder)


@pytest.mark.parametrize("left", ["nothing", "complete", "incomplete", "other"])
def test_who_encodes_the_same_beside_another_keeps_what_that_one_reads(
    left: str, form: chat.Format, write: Written
) -> None:
    path, first = write("d.jsonl", GOOD, dialog("q", "a")), []

    def prepare(encode: Any) -> Path:
        return store.prepare(path.parent / "x", "a", str(path), SETTINGS, 1, 0.0, encode)

    def plain(record: dict[str, Any]) -> store.Example:
        encoded = form.encode(chat.read(record))
        return store.Example([(encoded.tokens, encoded.targets().astype(np.int8))])

    def meanwhile(record: dict[str, Any]) -> store.Example:
        if left != "nothing" and not first:
            first.append(prepare(plain))
            if left == "incomplete":
                (first[0] / "told.json").unlink()
            if left == "other":
                recorded = json.loads((first[0] / "told.json").read_text())
                (first[0] / "told.json").write_text(json.dumps(recorded | {"fingerprint": "0"}))
            first.append((first[0] / "tokens.bin").stat().st_ino)
        return plain(record)

    if left == "other":
        with pytest.raises(ValueError, match="data.sources.a: .* holds other ids .* remove it"):
            prepare(meanwhile)
    else:
        assert store.read(prepare(meanwhile)).header["examples"] == 2
    (folder,) = (path.parent / "x").iterdir()
    assert not first or ((folder / "tokens.bin").stat().st_ino == first[1]) == (left != "incomplete")


def test_targets_are_what_assistants_say(form: chat.Format, write: Written) -> None:
    path = write("d.jsonl", dialog("q", "one", "q", "two"))
    for which, said in (("all", [b"one", b"two"]), ("last", [b"two"])):
        tokens, targets = dialogs(path, form, which).sequence(0)
        assert tokens[targets == 1].tolist() == [token for text in said for token in (*text, Bytes.eot_id)]


def test_held_out_by_the_record_alone(form: chat.Format, write: Written) -> None:
    records = [dialog("q", f"answer {i}") for i in range(300)]
    result = dialogs(write("d.jsonl", *records), form, heldout=0.2)
    again = dialogs(write("e.jsonl", *reversed(records), *records[:50]), form, heldout=0.2)
    assert 30 < result.heldout.sum() < 90
    assert again.heldout[:300][::-1].tolist() == result.heldout.tolist()
    assert again.heldout[300:].tolist() == result.heldout[:50].tolist()


def test_pairs_are_ranked_and_near_equal_answers_are_none(form: chat.Format, write: Written) -> None:
    alike = "The same words in the same order, all of them, up to the very last one: "
    path = write(
        "p.jsonl",
        preference("q", "good", "bad", "significantly_better", edited="best"),
        preference("q", alike + "a", alike + "b"),
        preference("q", alike + "a", "no", edited=alike + "b"),
    )
    result = preferred(path, form)
    assert result.header["examples"] == 2 and result.header["left_out"] == {preferences.ALIKE: 1}
    edited = preferences.EDITED
    assert result.pairs.tolist() == [
        [0, 0, 1, edited], [0, 0, 2, edited], [0, 1, 2, 0], [1, 0, 2, 1 + edited], [1, 1, 2, 1],
    ]  # fmt: skip
    answers = [bytes(ids[parts == BODY].astype(np.uint8)) for ids, parts in result.example(0)[1:]]
    assert answers == [b"best", b"good", b"bad"]
    assert preferences.kind_name(edited) == "edited" and preferences.kind_name(1) == "better"


def test_a_source_may_state_the_strength_of_its_records(form: chat.Format, write: Written) -> None:
    silent = {key: text for key, text in preference("q", "good", "bad").items() if key != "strength"}
    path = write("p.jsonl", silent, preference("q", "good", "bad", "better"))
    assert preferred(path, form, strength="marginally_better").pairs[:, 3].tolist() == [3, 1]


def test_whole_dialogs_share_their_prompt(form: chat.Format, write: Written) -> None:
    turns = dialog("q", "a", "r")["messages"]
    chosen, rejected, edited = ([*turns, *dialog("", text)["messages"][1:]] for text in ("good", "bad", "best"))
    whole = {"chosen": chosen, "rejected": rejected, "strength": "better", "edited": edited}
    given = {"messages": turns, "chosen": "good", "rejected": "bad", "edited": "best", "strength": "better"}
    result = preferred(write("p.jsonl", given, whole, {**whole, "prompt": "r "}, {**whole, "prompt": turns}), form)
    first = [ids.tolist() for ids, _ in result.example(0)]
    for other in (1, 2, 3):
        assert [ids.tolist() for ids, _ in result.example(other)] == first
    again = preferred(write("q.jsonl", {**whole, "edited": None, "rejected": chosen}, given), form)
    assert again.header["left_out"] == {preferences.ALIKE: 1}


def test_whole_dialogs_that_are_none_of_one_prompt(form: chat.Format, write: Written) -> None:
    one, two = dialog("q", "a")["messages"], dialog("r", "b")["messages"]
    for changes, said in (
        ({"chosen": one, "rejected": two}, "chosen, rejected: dialogs of different prompts"),
        ({"chosen": one, "rejected": one[:1] + two[1:], "prompt": "r"}, "prompt: not what chosen and rejected begin"),
        ({"chosen": one, "rejected": "b", "prompt": "q"}, "chosen: an answer begins and ends with an assistant's"),
    ):
        record = {"strength": "better", "prompt": None, **changes}
        with pytest.raises(ValueError, match=said):
            preferred(write("bad.jsonl", record), form)


def test_empty_answers_are_no_answers(form: chat.Format, write: Written) -> None:
    blank, call = {"role": "assistant", "content": " "}, {"function": {"name": "f", "arguments": {}}}
    path = write(
        "p.jsonl",
        preference("q", "good", "bad", edited=""),
        preference("q", "good", "bad", edited=blank),
        preference("q", "good", "bad", edited={"role": "assistant", "content": [{"type": "text", "text": " "}]}),
        preference("q", "good", "\n"),
        preference("q", "", "bad", edited="best"),
        {**preference("q", "", "bad"), "chosen": [{"role": "assistant", "tool_calls": [call]}, blank]},
        {**preference("q", "", "bad"), "chosen": {"role": "assistant", "tool_calls": [call]}},
    )
    result = preferred(path, form)
    assert result.pairs[:, 1:].tolist() == [[0, 1, 1]] * 4, "no edited answer, and a call is one"
    assert result.header["left_out"] == {preferences.EMPTY: 3}
    made = fed(result, feed.Preferred(), sequence_length=512, batch_tokens=512)
    assert f"left out: 3 {preferences.EMPTY}, 0 longer than a row" in made.summary()


def test_an_edit_into_the_rejected_answer_contradicts_the_ranks(form: chat.Format, write: Written) -> None:
    alike = "The same words in the same order, all of them, up to the very last one: "
    path = write("p.jsonl", preference("q", "good", alike + "a", edited=alike + "b"), preference("q", "good", "bad"))
    result = preferred(path, form)
    assert result.header["left_out"] == {preferences.CONTRADICTORY: 1} and result.header["examples"] == 1


@pytest.mark.parametrize(
    ("right", "wrong"), [("42", "41"), ("-3.5", "3.5"), ("(B)", "(C)"), (r"\boxed{x}", r"\boxed{y}"), ("Yes", "no")]
)
def test_a_long_answer_with_another_result_is_another_answer(
    right: str, wrong: str, form: chat.Format, write: Written
) -> None:
    steps = "First we add both sides, then we divide by two and see what is left over. " * 8 + "So it is "
    path = write(
        "p.jsonl", preference("q", f"{steps}{right}.", f"{steps}{wrong}."), preference("q", steps + "x", steps + "y")
    )
    result = preferred(path, form)
    assert preferences.agreement(result.example(0)[1][0], result.example(0)[2][0]) > 0.95, "by its words it is the same"
    assert result.header["examples"] == 1 and result.header["left_out"] == {preferences.ALIKE: 1}


# --- rows ---


def test_dpo_masks_the_format_in_the_term_and_keeps_it_in_the_likelihood(form: chat.Format, write: Written) -> None:
    result = preferred(write("p.jsonl", preference("q", "good", "bad")), form)
    made = fed(result, feed.Preferred(nll=0.5)).rows(0, np.array([0]))
    body = {number: bytes(made.labels[made.of_token == number].astype(np.uint8)) for number in (0, 1)}
    assert body == {0: b"good", 1: b"bad"}
    header, end = form.encode([], bos=False).tokens.size, form.encode(chat.read(dialog("q", "good"))).parts
    counted = int(((end == HEADER) | (end == BODY) | (end == END)).sum())
    assert header == 0 and (made.weights > 0).sum() == counted, "header, body and termination"
    pairs = len(made.pairs)
    assert made.weights.sum() == pytest.approx(0.5 * pairs), "half of the mean over tokens, for each pair"


@pytest.mark.parametrize("mean", ["tokens", "dialogs"])
def test_the_likelihood_is_a_mean_over_what_the_assistant_said(mean: str, form: chat.Format, write: Written) -> None:
    turn = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "ipython", "content": "what the tool said, which is not learned"},
        {"role": "assistant", "content": "so"},
    ]
    records = [preference("q", turn, "bad"), preference("r", "good", "bad")]  # type: ignore[arg-type]
    made = fed(
        preferred(write("p.jsonl", *records), form),
        feed.Preferred(nll=0.5, nll_mean=mean),
        sequence_length=512,
        batch_tokens=512,
    ).rows(0, np.array([0]))
    assert len(made.pairs) == 2 and made.weights.sum() == pytest.approx(0.5 * 2)
    learned = [made.weights[0, begin:end].sum() for row, begin, end, *_ in made.documents]
    assert mean == "tokens" or sorted(learned) == pytest.approx([0, 0, 0, 0.5, 0.5])


@pytest.mark.parametrize("layout", rows.LAYOUTS)
def test_reward_rows(layout: str, form: chat.Format, write: Written) -> None:
    result = preferred(write("p.jsonl", preference("q", "good", "bad", edited="best")), form)
    collator = feed.Rewarded(layout)
    length = int(collator.lengths(result)[0])
    made = fed(result, collator, sequence_length=length, batch_tokens=length).rows(0, np.array([0]))
    assert made.responses == 3 and made.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    ends = [int(np.nonzero(made.of_token[0] == number)[0][0]) for number in range(3)]
    assert made.tokens[0, ends].tolist() == [Bytes.eot_id] * 3
    before = [bytes(made.tokens[0, end - 3 : end].astype(np.uint8)) for end in ends]
    assert before == [b"est", b"ood", b"bad"]
    documents = {"separate": 3, "tree": 4, "plain": 1}[layout]
    assert len(made.documents) == documents and made.documents[-1, 2] == length, "the length is exact"
    assert made.restarts == (layout == "tree")


def test_only_wanted_strengths_are_learned(form: chat.Format, write: Written) -> None:
    kinds = ("significantly_better", "better", "slightly_better", "marginally_better")
    result = preferred(write("p.jsonl", *(preference("q", "good", "bad", kind) for kind in kinds)), form)
    for collator in (feed.Rewarded(), feed.Preferred()):
        assert (collator.lengths(result) > 0).tolist() == [True, True, False, False]
    assert (feed.Rewarded(strengths=kinds[2:]).lengths(result) > 0).tolist() == [False, False, True, True]


# --- passes ---


@pytest.mark.parametrize("epochs", [1.0, 2.0, 0.25, 1.5])
def test_a_pass_visits_a_source_as_often_as_its_epochs_say(epochs: float) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 200)
    made = passes.PassPlan({"a": lengths}, {"a": epochs}, 64, seed=1)
    visits: list[np.ndarray] = [np.zeros(200, int), np.zeros(200, int)]
    number = 0
    while (result := made.row(number))[0] < 2:
        assert lengths[result[1]].sum() <= 64
        np.add.at(visits[result[0]], result[1], 1)
        number += 1
    for seen in visits:
        assert seen.sum() == round(200 * epochs) and seen.max() - seen.min() <= 1
    assert epochs == int(epochs) or (visits[0] != visits[1]).any(), "another draw in each pass"


def test_rows_are_full_and_nothing_is_cut() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 2000)
    packed = passes.best_fit(lengths, 512)
    assert sorted(np.concatenate(packed)) == list(range(2000))
    assert max(lengths[row].sum() for row in packed) <= 512 and passes.fill(packed, lengths, 512) > 0.97


def test_rows_are_a_function_of_the_step_and_skips_leave_steps_out(form: chat.Format, write: Written) -> None:
    result = dialogs(write("d.jsonl", *(dialog("q", "x" * (3 + i % 20)) for i in range(40))), form)
    one, two = fed(result, feed.Supervised()), fed(result, feed.Supervised())
    whole = [one.rows(step, np.arange(4)) for step in range(12)]
    two.follow([Skip(3, 5)])
    for step in (11, 4, 0, 3):
        wanted = whole[step + 2].tokens if 3 <= step < 10 else whole[step].tokens if step < 3 else None
        if wanted is not None:
            assert np.array_equal(two.rows(step, np.arange(4)).tokens, wanted)
    part = one.rows(5, np.array([2, 0]))
    assert np.array_equal(part.tokens, whole[5].tokens[[2, 0]])


def started(made: feed.DialogFeed) -> Any:
    """Where a run goes on that read `made`."""

    class Meta:
        extra = json.loads(json.dumps(made.extra()))
        decisions: list[Any] = []  # noqa: RUF012

    class Start:
        resumed = Meta

    return Start


def test_another_order_is_refused_on_resume(form: chat.Format, write: Written) -> None:
    result = dialogs(write("d.jsonl", *(dialog("q", "a") for _ in range(9))), form)
    start = started(fed(result, feed.Supervised()))
    fed(result, feed.Supervised()).begin(start)
    with pytest.raises(ValueError, match="data.sources.a.epochs=2.0: the checkpoint read its data with 1.0; give"):
        fed(result, feed.Supervised(), epochs=2.0).begin(start)
    with pytest.raises(ValueError, match="schedule.sequence_length=128: "):
        fed(result, feed.Supervised(), sequence_length=128).begin(start)


def test_sources_that_come_or_go_are_refused_on_resume(form: chat.Format, write: Written) -> None:
    result = dialogs(write("d.jsonl", *(dialog("q", "a") for _ in range(9))), form)
    one, two = (
        feed.DialogFeed(dict.fromkeys(names, result), dict.fromkeys(names, 1.0), feed.Supervised(), SCHEDULE, 3, 0)
        for names in ("a", "ab")
    )
    with pytest.raises(ValueError, match="data.sources.b.epochs=1.0: the checkpoint read its data without it; "):
        two.begin(started(one))
    with pytest.raises(ValueError, match="data.sources.b.epochs is not given: .* read its data with 1.0; .*init_from="):
        one.begin(started(two))
    other = started(one)
    other.resumed.extra = {"weights": {"a": 1.0}}
    with pytest.raises(ValueError, match="resume: the checkpoint was not trained on dialogs or preferences; .*init_fr"):
        one.begin(other)


def test_another_objective_is_refused_on_resume(form: chat.Format, write: Written) -> None:
    result = preferred(write("p.jsonl", preference("q", "good", "bad")), form)

    def of(**changes: Any) -> feed.DialogFeed:
        run = dataclasses.replace(config.Dpo("x"), **changes)
        collator = feed.Preferred(run.nll, run.nll_mean, run.masked)
        made = fed(result, collator)
        made.objective = {**collator.loss_keys(), "beta": run.beta, "length_normalised": run.length_normalised}
        return made

    start = started(of())
    of().begin(start)
    for name, value in {"beta": 0.3, "nll": 0.0, "nll_mean": "dialogs", "length_normalised": True}.items():
        with pytest.raises(ValueError, match=f"{name}={value}: the checkpoint was trained with .*; give .*init_from="):
            of(**{name: value}).begin(start)
    assert config.Dpo("x").beta != 0.3 and "masked" in start.resumed.extra["objective"]


def test_too_long_for_a_row(form: chat.Format, write: Written) -> None:
    path = write("d.jsonl", dialog("q", "x" * 90), dialog("q", "short"))
    made = fed(dialogs(path, form), feed.Supervised())
    assert made.plan.too_long == 1 and "1 longer than a row" in made.summary()
    with pytest.raises(ValueError, match="no example fits into a row of schedule.sequence_length=16"):
        fed(dialogs(path, form), feed.Supervised(), sequence_length=16)
    with pytest.raises(ValueError, match="data.sources: no example to learn from in a; give"):
        fed(dialogs(write("none.jsonl"), form), feed.Supervised())
    with pytest.raises(ValueError, match="model.vocab_size=100: the tokenizer has 262 ids"):
        made.check(config.Model("m", 1, 8, 8, 1, 1, vocab_size=100), Bytes())


# --- calibration ---


def test_a_calibrated_model_has_no_error_and_an_oversure_one_has() -> None:
    random = np.random.default_rng(0)
    sure = random.random(20_000) * 4
    right = random.random(20_000) < 1 / (1 + np.exp(-sure))
    margins = np.where(right, sure, -sure)
    kinds = np.where(np.arange(20_000) % 2, 1, preferences.EDITED)
    result = calibration.table(margins, kinds)
    assert result.keys() == {"better", "edited", "all"} and result["better"]["pairs"] == 10_000
    assert result["all"]["calibration_error"] < 0.01 and result["all"]["accuracy"] == pytest.approx(right.mean())
    assert calibration.figures(5 * margins)["calibration_error"] > 0.1
    assert result["all"]["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    assert calibration.table(margins[:0], kinds[:0]) == {}


def test_rewards_that_are_no_numbers_are_counted_and_left_out() -> None:
    margins, kinds = np.array([1.0, np.nan, -1.0, np.inf, np.nan, 2.0]), np.array([0, 0, 0, 1, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = calibration.table(margins, kinds)
        assert calibration.table(margins[3:5], kinds[3:5]) == {}
    counts = {name: (one["pairs"], one["not_finite"]) for name, one in result.items()}
    assert counts == {"significantly_better": (2, 1), "slightly_better": (1, 0), "all": (3, 3)}
    assert result["all"]["accuracy"] == pytest.approx(2 / 3) and np.isfinite(result["all"]["loss"])
    assert "3 more have no finite reward" in calibration.text(result)


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        (
            np.zeros(0),
            "no held-out pair fits into a row; begin a run with data.heldout_fraction above 0.01, or with more",
        ),
        (np.array([np.nan, np.nan]), "none of 2 held-out pairs has a finite reward; see the loss of the run"),
    ],
)
def test_what_cannot_be_calibrated_is_said(margins: np.ndarray, said: str) -> None:
    assert said in calibration.missing(margins, 0.01)
