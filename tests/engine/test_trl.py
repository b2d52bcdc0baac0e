"""Losses and gradients of post-training against TRL's, FP32, one process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llama31 import config
from llama31.dialogs import rows
from llama31.engine import preference
from llama31.engine.objectives import MicroBatch, Objective, next_token
from llama31.engine.pipeline import Engine, Forward
from llama31.model import llama
from llama31.parallel import mesh
from llama31.parallel.mesh import Grid
from llama31.tokens.chat import BODY
from tests.dialogs import pieces
from tests.engine.test_plain_trainer import named, transformers_llama
from tests.model.test_model import fill

pytest.importorskip("trl")
pytestmark = pytest.mark.torch

FP32, ONE = config.Precision(params="fp32"), config.Parallel()
MODEL = config.Model(
    name="t", layers=2, hidden_size=64, ffn_hidden_size=160, heads=4, kv_heads=2, vocab_size=320, rope_theta=500000.0
)
REWARD = replace(MODEL, head="reward")
Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    yield mesh.create(ONE)
    mesh.close()


@pytest.fixture(scope="module")
def words() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "word": 3}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def policy() -> Any:
    return transformers_llama(MODEL)


@pytest.fixture(scope="module")
def reference_policy(policy: Any) -> Any:
    """Another model than the policy: with equal ones the log-ratios would be nothing to compare."""
    result = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return result


# --- ours ---


def ours(
    weights: dict[str, Tensor],
    shape: config.Model,
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    grid: Grid,
) -> tuple[float, Gradients, dict[str, float]]:
    chunks = llama.build(shape, FP32, ONE, grid)
    fill(chunks, shape, grid, weights)
    engine = Engine(chunks, shape, config.Optimizer(), FP32, ONE, grid)
    result = engine.accumulate(micro_batches, objective)
    gradients = engine.reducer.gradients  # type: ignore[attr-defined]
    return result.loss, {s.name: gradients[s.parameter].clone() for s in engine.shards}, result.measures


def batch(
    dealt: list[list[rows.Piece]], grid: Grid, compares: bool, reference: np.ndarray | None = None, length: int = 160
) -> MicroBatch:
    packed = rows.pack(dealt, length, compares)
    if reference is not None:
        packed = replace(packed, reference=reference)
    return MicroBatch.from_packed(packed, grid.device)


def log_probabilities(hf: Any, micro_batch: MicroBatch, grid: Grid) -> np.ndarray:
    chunks = llama.build(MODEL, FP32, ONE, grid)
    fill(chunks, MODEL, grid, named(hf, MODEL))
    (result,) = Forward(chunks, grid).collect([micro_batch], preference.log_probabilities)
    return result.numpy()


# --- theirs ---


def settings(kind: str, folder: Path, **changes: Any) -> Any:
    import trl

    common = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False, "max_length": None}
    common |= {"gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no"}
    return getattr(trl, f"{kind}Config")(**common | changes)


def theirs(trainer: Any, inputs: dict[str, Any]) -> tuple[float, Any]:
    """The loss, and a model that holds the gradients in place of its weights."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    held = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for parameter, source in zip(held.parameters(), trainer.model.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    return loss.item(), held


def assert_equal(mine: tuple[float, Gradients, Any], loss: float, gradients: Gradients) -> None:
    assert mine[0] == pytest.approx(loss, rel=1e-5)
    assert mine[1].keys() == gradients.keys()
    for name, gradient in gradients.items():
        bound = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(mine[1][name], gradient.detach(), rtol=0, atol=bound + 1e-9, msg=name)


# --- supervised ---


@pytest.mark.parametrize("packed", [False, True])
def test_sft(packed: bool, policy: Any, words: Any, grid: Grid, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    given = pieces.dialogs()
    data = [{"input_ids": t.tolist(), "labels": np.where(m, t, -100).tolist()} for t, m in given]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            copy.deepcopy(policy),
            settings("SFT", tmp_path, padding_free=packed),
            train_dataset=Dataset.from_list(data),
            processing_class=words,
        )
    inputs = trainer.data_collator(data)
    if packed:
        assert inputs["input_ids"].shape[0] == 1, "it packs"
    loss, held = theirs(trainer, dict(inputs))
    dealt = pieces.dealt(pieces.supervised_pieces(), 3 if packed else 1)
    micro_batches = [batch([row], grid, compares=False) for row in dealt]
    assert_equal(ours(named(policy, MODEL), MODEL, micro_batches, next_token, grid), loss, named(held, MODEL))


def test_packed_equals_unpacked(policy: Any, grid: Grid) -> None:
    weights, given = named(policy, MODEL), pieces.supervised_pieces()
    packed = [batch(pieces.dealt(given, 3), grid, False)]
    alone = [batch([[piece]], grid, False, length=len(piece.tokens)) for piece in given]
    one = ours(weights, MODEL, packed, next_token, grid)
    # rows of their own length each, one after the other: a batch has one length
    each = [ours(weights, MODEL, [single], next_token, grid) for single in alone]
    counts = [int(single.units()) for single in alone]
    loss = sum(result[0] * count for result, count in zip(each, counts)) / sum(counts)
    summed = {
        name: torch.stack([result[1][name] * count for result, count in zip(each, counts)]).sum(0) / sum(counts)
        for name in one[1]
    }
    assert_equal(one, loss, summed)


# --- preferences ---


def dpo_trainer(policy: Any, reference: Any, words: Any, folder: Path, **changes: Any) -> Any:
    import trl
    from datasets import Dataset

    record = [{"prompt": "word", "chosen": "word word", "rejected": "word"}]
    return trl.DPOTrainer(
        copy.deepcopy(policy),
        copy.deepcopy(reference),
        settings("DPO", folder, beta=0.1, **changes),
        train_dataset=Dataset.from_list(record),
        processing_class=words,
    )


def dpo_inputs(trainer: Any, masked: bool) -> dict[str, Any]:
    """As TRL collates them; `masked` zeroes the mask of headers and terminations."""
    result = pieces.preferences()
    examples = [
        {
            "prompt_ids": prompt.tolist(),
            "chosen_ids": answers[0].tokens.tolist(),
            "rejected_ids": answers[1].tokens.tolist(),
        }
        for prompt, answers in result
    ]
    inputs = trainer.data_collator(examples)
    if masked:
        every = [(prompt, answers[which]) for which in (0, 1) for prompt, answers in result]
        for row, (prompt, one) in enumerate(every):
            part = inputs["completion_mask"][row, len(prompt) : len(prompt) + len(one.tokens)]
            part *= torch.from_numpy((one.parts == BODY).astype(np.int64))
    return inputs


def our_dpo(
    policy: Any, reference: Any, grid: Grid, objective: preference.DpoObjective, nll: float, masked: bool
) -> tuple[float, Gradients, dict[str, float]]:
    dealt = pieces.dealt(pieces.dpo_pieces(nll, masked), 2)
    known = log_probabilities(reference, batch(dealt, grid, True), grid)
    return ours(named(policy, MODEL), MODEL, [batch(dealt, grid, True, known)], objective, grid)


CASES: dict[str, tuple[list[str], list[float], bool]] = {
    "dpo": (["sigmoid"], [1.0], False),
    "dpo-masked": (["sigmoid"], [1.0], True),
    "dpo-nll": (["sigmoid", "sft"], [1.0, 0.2], False),
    "dpo-length-normalised": (["sigmoid_norm"], [1.0], False),
    "dpo-length-normalised-masked": (["sigmoid_norm"], [1.0], True),
}


@pytest.mark.parametrize("name", CASES)
def test_dpo(name: str, policy: Any, reference_policy: Any, words: Any, grid: Grid, tmp_path: Path) -> None:
    kinds, factors, masked = CASES[name]
    trainer = dpo_trainer(policy, reference_policy, words, tmp_path, loss_type=kinds, loss_weights=factors)
    loss, held = theirs(trainer, dpo_inputs(trainer, masked))
    objective = preference.DpoObjective(beta=0.1, length_normalised="sigmoid_norm" in kinds)
    mine = our_dpo(policy, reference_policy, grid, objective, factors[1] if len(factors) > 1 else 0.0, masked)
    assert_equal(mine, loss, named(held, MODEL))
    assert abs(loss - np.log(2)) > 1e-4, "with a reference of its own the loss says something"


def test_masked_dpo_with_the_likelihood_of_everything(
    policy: Any, reference_policy: Any, words: Any, grid: Grid, tmp_path: Path
) -> None:
    """TRL has one mask for both terms: they are computed apart there, and summed."""
    both = [
        dpo_trainer(policy, reference_policy, words, tmp_path, loss_type=[kind], loss_weights=[factor])
        for kind, factor in (("sigmoid", 1.0), ("sft", 0.2))
    ]
    (term, held), (likelihood, other) = (
        theirs(trainer, dpo_inputs(trainer, masked)) for trainer, masked in zip(both, (True, False))
    )
    first, second = named(held, MODEL), named(other, MODEL)
    mine = our_dpo(policy, reference_policy, grid, preference.DpoObjective(), 0.2, masked=True)
    assert_equal(mine, term + likelihood, {key: first[key] + second[key] for key in first})
    assert mine[2]["nll"] == pytest.approx(likelihood, rel=1e-5)


def test_first_loss_is_ln_2_and_format_has_no_gradient_in_the_term(policy: Any, grid: Grid) -> None:
    loss, gradients, measures = our_dpo(policy, policy, grid, preference.DpoObjective(), 0.0, masked=True)
    assert loss == pytest.approx(np.log(2), abs=1e-6) and measures["margin"] == pytest.approx(0, abs=1e-6)
    record = rows.pack([pieces.dpo_pieces()], 320, True)
    assert not np.isin(record.labels[record.of_token >= 0], [300, 301, 302, 303, 304]).any()
    assert gradients["output_layer.weight"].abs().max() > 0


def test_masked_tokens_carry_no_gradient(policy: Any, grid: Grid) -> None:
    """By token: nothing but the body for the term, the whole chosen answer too for the likelihood."""
    for nll in (0.0, 0.2):
        dealt = pieces.dealt(pieces.dpo_pieces(nll), 2)
        made = batch(dealt, grid, True)
        losses = torch.rand(made.tokens.shape, requires_grad=True)
        loss = preference.DpoObjective()(lambda *_, losses=losses, **__: losses, made, grid)[1](losses)[0]
        (gradient,) = torch.autograd.grad(loss, losses)
        assert made.compared is not None
        counted = made.compared.of_token >= 0
        assert torch.equal(gradient != 0, counted | (made.weights > 0))
        assert bool((made.weights > 0).any()) == (nll > 0)


def test_a_tie_is_half_right(grid: Grid) -> None:
    cases = (
        (preference.DpoObjective(), pieces.dpo_pieces()),
        (preference.RewardObjective(), pieces.reward_pieces("tree")),
    )
    for objective, given in cases:
        made = batch(pieces.dealt(given, 2), grid, True)
        zeros = torch.zeros(made.tokens.shape)
        record = objective(lambda *_, zeros=zeros, **__: zeros, made, grid)[1](zeros)[2]
        assert made.compared is not None and record[1] == len(made.compared.pairs) / 2, "accuracy, over pairs"


# --- rewards ---


@pytest.fixture(scope="module")
def judge(policy: Any) -> Any:
    from transformers import LlamaForSequenceClassification

    settings = copy.deepcopy(policy.config)
    settings.num_labels, settings.pad_token_id = 1, 0
    result = LlamaForSequenceClassification(settings).float()
    result.model.load_state_dict(policy.model.state_dict())
    return result


def named_judge(hf: Any) -> dict[str, Tensor]:
    return named(hf, replace(MODEL, tied_embeddings=True)) | {"reward_head.weight": hf.score.weight[0]}


def test_reward(judge: Any, words: Any, grid: Grid, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset

    result = pieces.preferences()
    data = [
        {
            f"{name}_ids": np.concatenate([prompt, one.tokens]).tolist()
            for name, one in zip(("chosen", "rejected"), both)
        }
        for prompt, both in result
    ]
    trainer = trl.RewardTrainer(
        copy.deepcopy(judge),
        settings("Reward", tmp_path, disable_dropout=True),
        train_dataset=Dataset.from_list(data),
        processing_class=words,
    )
    loss, held = theirs(trainer, dict(trainer.data_collator(data)))
    for layout in ("separate", "tree"):
        micro_batch = batch(pieces.dealt(pieces.reward_pieces(layout), 2), grid, True)
        mine = ours(named_judge(judge), REWARD, [micro_batch], preference.RewardObjective(), grid)
        assert_equal(mine, loss, named_judge(held))


@pytest.mark.parametrize("answers", [2, 3])
def test_one_row_equals_separate_rows_where_answers_do_not_see_each_other(answers: int, judge: Any, grid: Grid) -> None:
    result = {
        layout: ours(
            named_judge(judge),
            REWARD,
            [batch(pieces.dealt(pieces.reward_pieces(layout, answers), 2), grid, True, length=200)],
            preference.RewardObjective(),
            grid,
        )
        for layout in rows.LAYOUTS
    }
    assert_equal(result["tree"], result["separate"][0], result["separate"][1])
    difference = abs(result["plain"][0] - result["separate"][0])
    print(f"plain concatenation of {answers} answers: loss {result['plain'][0]:.5f}, apart {result['separate'][0]:.5f}")
    assert difference > 1e-3, "the report's approximation is one"
