"""Every layout computes what one process computes, and one process what plain torch computes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama31 import config
from llama31.plan import memory, passes, shapes
from tests.parallel import live, proposed
from tests.parallel.cases import CASES, LEARNING_RATES, LENGTH, OPTIMIZER, ROWS, Case, batches, model
from tests.parallel.launch import forked
from tests.parallel.live import LIVE
from tests.parallel.overlap import LAYOUTS, Event

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

# Relative bounds. FP32 differs by the order of sums alone; BF16 rounds each partial sum of a split product.
BOUNDS = {"fp32": {"losses": 1e-5, "norms": 1e-5, "evaluated": 1e-5}}
BOUNDS["bf16"] = {"losses": 1e-3, "norms": 6e-2, "evaluated": 2e-3}

Result = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What every case computed; one set of processes per world size serves all its cases."""
    folder = tmp_path_factory.mktemp("parity")
    forked(sorted({case.processes for case in CASES}), "tests.parallel.worker", str(folder))
    result: dict[str, Result] = {}
    for output in folder.iterdir():
        result |= json.loads(output.read_text())
    return result


@pytest.mark.parametrize("case", [case for case in CASES if case.name != case.reference], ids=lambda case: case.name)
def test_layout_equals_one_process(case: Case, results: dict[str, Result]) -> None:
    assert "error" not in results[case.name], results[case.name]["error"]
    for what, bound in BOUNDS[case.params].items():
        assert results[case.name][what] == pytest.approx(results[case.reference][what], rel=bound), what


def test_a_layout_that_was_left_leaves_no_threads(results: dict[str, Result]) -> None:
    """Of ZeRO-1: gloo has some fifty for a data-parallel group, which wake up all the time; others keep six."""
    left = {case.name: results[case.name]["left"][0] for case in CASES if case.layout.get("zero", 1) == 1}
    assert max(left["dp2"], left["cp2"], left["dp2-one-bucket"]) < 20, left


@pytest.mark.parametrize("name", ["pp2-vpp2", "pp2-vpp2-group4", "pp2-uneven"])
def test_bytes_that_overlap_keeps(name: str, results: dict[str, Result]) -> None:
    """On the first stage all outputs whose backward pass has not come; without overlap one is whole at a time."""
    case = next(case for case in CASES if case.name == f"{name}-overlap")
    one = LENGTH * memory.sent_bytes(case.model(), case.parallel(), "fp32")
    count = passes.in_flight(case.parallel(), ROWS)
    (outputs, everything), (freed, before) = results[case.name]["alive"], results[name]["alive"]
    assert outputs == count * one
    assert one <= freed < 1.1 * one  # an element each is left
    added = LENGTH * memory.overlap_bytes(case.model(), case.parallel(), ROWS, "fp32")
    assert added - 2.1 * one <= everything - before <= added


@pytest.mark.parametrize("name", LIVE)
def test_predicted_bytes_are_those_that_live(name: str, results: dict[str, Result]) -> None:
    """Most bytes of a step on each rank, counted tensor by tensor; DeepSpeed's bucket alone would hide all else."""
    assert "error" not in results[name], results[name]["error"]
    layout = config.Parallel(**LIVE[name])
    replicas = 2 // layout.tp // layout.cp // layout.pp
    work = memory.Workload(live.LENGTH, live.ROWS // replicas // layout.micro_batch, replicas, on_gpu=False)
    predicted = memory.predict(live.SHAPE, layout, config.Precision(params="fp32"), work)
    bucket = 4 * memory.DEEPSPEED_BUCKET * (layout.zero > 1)
    for rank, peak in enumerate(results[name]["peaks"]):
        stage = predicted[rank * layout.pp // 2]
        assert stage.allocated - bucket == pytest.approx(peak - bucket, rel=0.03), (rank, stage)


def test_every_layout_that_the_planner_proposes_runs_and_computes_the_same(results: dict[str, Result]) -> None:
    layouts = proposed.layouts()
    assert len(layouts) > 15 and all(len({vars(one)[key] for one in layouts.values()}) > 1 for key in ("cp", "zero"))
    one = results[proposed.REFERENCE]
    for name in layouts:
        assert "error" not in results[name], results[name]["error"]
        assert results[name] == pytest.approx(one, rel=1e-5), name


def test_clipping_took_part(results: dict[str, Result]) -> None:
    assert max(results["one"]["norms"]) > OPTIMIZER.clip_norm


@pytest.mark.parametrize("name", ["one", "one-tied", "one-kv4"])
def test_one_process_equals_plain_torch(name: str, results: dict[str, Result]) -> None:
    from llama31.model import llama
    from llama31.parallel import mesh
    from tests import plain_trainer

    case = next(case for case in CASES if case.name == name)
    parallel, shape = case.parallel(), model(case.tied, case.kv_heads)
    grid = mesh.create(parallel)
    chunks = llama.build(shape, config.Precision(params="fp32"), parallel, grid, seed=3)
    weights = {shard.name: shard.parameter.detach().clone() for shard in llama.shards(chunks, shape, grid)}
    losses, norms = plain_trainer.train(weights, shape, batches(), LEARNING_RATES, OPTIMIZER)
    assert results[name]["losses"] == pytest.approx(losses, rel=1e-5)
    assert results[name]["norms"] == pytest.approx(norms, rel=1e-5)


def test_bf16_follows_fp32(results: dict[str, Result]) -> None:
    assert results["one-bf16"]["losses"] == pytest.approx(results["one"]["losses"], rel=5e-3)
    assert results["one-bf16"]["losses"] != results["one"]["losses"]


# --- what ZeRO-1 sends, and when ---


def step_of(rank: dict[str, Any], number: int) -> list[Event]:
    """A rank's events of one step."""
    begins = [i for i, event in enumerate(rank["events"]) if event in (["step"], ["end"])]
    return rank["events"][begins[number] : begins[number + 1]]


def before_verdict(rank: dict[str, Any]) -> list[Event]:
    events = step_of(rank, 1)
    return events[: events.index(["verdict"])]


@pytest.mark.parametrize("name", LAYOUTS)
def test_buckets_follow_the_backward_pass(name: str, results: dict[str, Result]) -> None:
    """The last micro-batch completes matrices in the order in which they stand in buckets."""
    for rank in results[name]:
        order = [parameter for names, _ in rank["buckets"] for parameter in names if "norm" not in parameter]
        seen = [event[1] for event in before_verdict(rank) if event[0] == "gradient" and "norm" not in event[1]]
        last = list(dict.fromkeys(reversed(seen)))[::-1]  # each parameter's last
        if "tied" in name:  # its bucket waits for the other end
            order, last = ([p for p in each if "embeddings" not in p] for each in (order, last))
        assert last == order and len(order) > 3, rank["place"]
        assert len(seen) == rank["micro_batches"] * len(set(seen))


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_travel_while_the_backward_pass_goes_on(name: str, results: dict[str, Result]) -> None:
    """Each bucket goes with its last gradient, not behind the step: only vectors and a tied end wait for the rest."""
    for rank in results[name]:
        events, early = before_verdict(rank), 0
        sent = [i for i, event in enumerate(events) if event[0] == "reduce"]
        assert len(sent) == len(rank["buckets"]), rank["place"]
        for at, (names, _) in zip(sent, rank["buckets"], strict=True):
            of_bucket = [i for i, event in enumerate(events) if event[0] == "gradient" and event[1] in names]
            if "norm" in names[0] or ("tied" in name and "embeddings" in names[0]):
                continue
            follows = next(i for i in range(at, len(events)) if events[i][0] != "reduce")  # vectors may go along
            assert of_bucket[-1] == follows, (rank["place"], names)
            early += any(event[0] == "gradient" for event in events[at + 2 :])
        assert early >= len(rank["buckets"]) - 3, rank["place"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_updated_before_the_verdict_and_weights_come_as_they_are_read(
    name: str, results: dict[str, Result]
) -> None:
    for rank in results[name]:
        events = step_of(rank, 0)
        verdict = events.index(["verdict"])
        assert not any(event[0] in ("update", "gather") for event in events[:verdict]), rank["place"]
        after = [event[0] for event in events[verdict + 1 :]]
        assert after == ["update", "gather"] * len(rank["buckets"])  # each is on its way before the next is updated
        updated = [event[1] for event in events[verdict + 1 :: 2] if event[0] == "update"]
        following = step_of(rank, 1)
        waited = [event[2] for event in following if event[:2] == ["wait", "gathered"] and event[3]]
        assert sorted(waited) == sorted(updated)  # everyone waited for, once
        assert [n for n in waited if "norm" not in rank["buckets"][n][0][0]] == [
            n for n in updated if "norm" not in rank["buckets"][n][0][0]
        ]
        for number, (names, _) in enumerate(rank["buckets"]):  # and before the first of its weights is read
            first = next(i for i, event in enumerate(following) if event[0] == "read" and event[1] in names)
            assert ["wait", "gathered", number, True] in following[:first], (rank["place"], names)
        assert not any(
            event[0] == "reduce" for event in following[: following.index(["wait", "gathered", waited[-1], True])]
        )


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_of_a_step_are_those_of_theory(name: str, results: dict[str, Result]) -> None:
    """Four for each parameter and step, not for each micro-batch, and the weights once; padding is all that is more."""
    replicas = LAYOUTS[name]["parallel"]["dp"]
    for rank in results[name]:
        sizes = [elements for _, elements in rank["buckets"]]
        events, width = step_of(rank, 0), 2 if LAYOUTS[name]["params"] == "bf16" else 4
        assert [event[1] for event in events if event[0] == "reduce"] == [4 * size for size in sizes]
        assert sorted(event[1] for event in events if event[0] == "gather") == sorted(width * size for size in sizes)
    whole = model(tied="tied" in name)
    stages = {rank["place"][0]: sum(size for _, size in rank["buckets"]) for rank in results[name]}
    count = shapes.parameters(whole) + ("tied" in name) * whole.vocab_size * whole.hidden_size
    padding = sum(stages.values()) - count
    assert 0 <= padding < 2 * replicas * sum(len(rank["buckets"]) for rank in results[name])


@pytest.mark.parametrize("name", LAYOUTS)
def test_replicas_end_with_the_same_weights(name: str, results: dict[str, Result]) -> None:
    of_stage: dict[int, list[float]] = {}
    for rank in results[name]:
        assert of_stage.setdefault(rank["place"][0], rank["weights"]) == rank["weights"]
