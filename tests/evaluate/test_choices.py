"""Multiple choice against plain transformers, and against lm-evaluation-harness on the exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama31 import config
from llama31.config import Task
from llama31.convert import hf, pretrained
from llama31.convert.checkpoints import hf_shapes, split_qkv, table
from llama31.engine.pipeline import Forward
from llama31.evaluate import choices, tasks
from llama31.evaluate.choices import Judged
from llama31.evaluate.tasks import TaskExample
from llama31.model import llama
from llama31.parallel import mesh
from llama31.tokens import tokenizers
from llama31.tokens.tokenizers import Tokenizer
from tests.conftest import Command
from tests.model.test_model import FP32, ONE

pytestmark = pytest.mark.torch

SHAPE = config.Model(
    "choices", layers=2, hidden_size=32, ffn_hidden_size=48, heads=4, kv_heads=2, vocab_size=640, max_positions=48,
    init_std=0.2,
)  # fmt: skip


def lines() -> Iterator[dict[str, Any]]:
    """Questions of many lengths: without a context, ending in a space, cut from the left, choices of one token."""
    random = np.random.default_rng(3)
    syllables = [a + b for a in "bdklmrst" for b in "aeiou"]
    for number in range(40):
        words = ["".join(random.choice(syllables, 2)) for _ in range(int(random.integers(0, 24)))]
        options = [" ".join(random.choice(syllables, int(random.integers(1, 5)))) for _ in range(4)]
        query = " ".join(words) + (" " if number % 7 == 0 else "")
        yield {"query": query, "choices": [*options[:3], options[3] + " Wörter…"], "gold": int(random.integers(4))}


def export(folder: Path) -> Path:
    """A Hugging Face folder of random weights, with a tokenizer trained on the questions."""
    text = [line["query"] + " ".join(line["choices"]) for line in lines()]
    words = tokenizers.train_bpe(text, 600, folder)
    grid = mesh.create(ONE)
    chunks = llama.build(SHAPE, FP32, ONE, grid, seed=5)
    weights = {shard.name: shard.parameter.detach() for shard in llama.shards(chunks, SHAPE, grid)}
    writer = hf.SafetensorsWriter(folder, hf_shapes(SHAPE), torch.float32, 5_000_000)
    for name, parts in table(SHAPE).items():
        fused = weights[name]
        split = split_qkv(fused, SHAPE.heads, SHAPE.kv_heads) if len(parts) == 3 else fused.chunk(len(parts))
        for part, tensor in zip(parts, split, strict=True):
            writer.write(part, tensor)
    writer.finish()
    mesh.close()
    ids = {"bos_token_id": words.bos_id, "eos_token_id": words.eos_id}
    hf.write_json(folder / "config.json", hf.config_json(SHAPE, torch.float32, ids))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export, and beside it the task as JSONL."""
    top = tmp_path_factory.mktemp("choices")
    (top / "hf").mkdir()
    (top / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()), encoding="utf-8")
    return export(top / "hf")


@pytest.fixture
def loaded(folder: Path) -> Iterator[tuple[Forward, Tokenizer]]:
    """The exported folder in our model, and its tokenizer."""
    result, grid = pretrained.find(str(folder)), mesh.create(ONE)
    chunks = llama.build(result.shape, FP32, ONE, grid)
    result.load(chunks, grid)
    yield Forward(chunks, grid), tokenizers.load(result.tokenizer(config.Tokenizer("huggingface", "")))
    mesh.close()


def judged(loaded: tuple[Forward, Tokenizer], task: Task, micro_batch: int = 4) -> list[Judged]:
    forward, words = loaded
    return choices.judge(forward, choices.prepare("t", task, words, SHAPE.max_positions), micro_batch)


@pytest.mark.parametrize("fewshot", [0, 2])
def test_loglikelihoods_equal_those_of_transformers(
    folder: Path, loaded: tuple[Forward, Tokenizer], fewshot: int
) -> None:
    from transformers import AutoModelForCausalLM

    task = Task(str(folder.parent / "task.jsonl"), fewshot=fewshot, limit=12)
    result, words = judged(loaded, task), loaded[1]
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    cut, greedy = 0, 0
    for one, prompt in zip(result, tasks.prompts([one.example for one in result], task), strict=True):
        for sum_, is_greedy, continuation in zip(one.loglikelihoods, one.greedy, prompt.continuations, strict=True):
            before, after = choices.encode_pair(words, prompt.context, continuation)
            whole = (before + after)[-SHAPE.max_positions - 1 :]
            cut += len(before + after) > len(whole)
            with torch.no_grad():
                logp = reference(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)[-len(after) :]
            assert sum_ == pytest.approx(logp[torch.arange(len(after)), after].sum().item(), abs=1e-4)
            assert is_greedy == (logp.argmax(-1).tolist() == after)
            greedy += is_greedy
    assert cut > 3 and len(result) == 12  # some prompts are longer than the context


TASK = """
task: shotsSHOTS
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
num_fewshot: SHOTS
fewshot_split: test
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""
# What the command lm_eval calls, without its index of all published tasks, which takes longer than the rest together.
HARNESS = """
import json, sys
import lm_eval, lm_eval.tasks

folder, tasks, output = sys.argv[1:]
manager = lm_eval.tasks.TaskManager(include_path=tasks, include_defaults=False)
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": folder, "dtype": "float32"}, tasks=["shots0", "shots2"], batch_size=8,
    device="cpu", task_manager=manager, log_samples=True, bootstrap_iters=0,
)
told = {}
for name, samples in found["samples"].items():
    answers = {one["doc_id"]: [float(response[0]) for response in one["filtered_resps"]] for one in samples}
    told[name] = {"scores": found["results"][name], "loglikelihoods": [answers[i] for i in sorted(answers)]}
json.dump(told, open(output, "w"))
"""


@pytest.mark.parallel
def test_scores_equal_those_of_the_harness(
    folder: Path, loaded: tuple[Forward, Tokenizer], tmp_path: Path, command: Command
) -> None:
    file = folder.parent / "task.jsonl"
    for shots in ("0", "2"):
        (tmp_path / f"{shots}.yaml").write_text(TASK.replace("FILE", str(file)).replace("SHOTS", shots))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command("-c", HARNESS, folder, tmp_path, tmp_path / "told.json", env=offline, check=True)
    record = json.loads((tmp_path / "told.json").read_text())
    rights = set()
    for shots in (0, 2):
        theirs = record[f"shots{shots}"]
        result = judged(loaded, Task(str(file), fewshot=shots))
        ours = choices.summary(result, details=True)
        for measure in ("acc", "acc_norm", "acc_bytes"):
            assert ours[measure]["score"] == pytest.approx(theirs["scores"][f"{measure},none"], abs=1e-9), measure
        expected = np.array(theirs["loglikelihoods"])
        assert np.array([one.loglikelihoods for one in result]) == pytest.approx(expected, abs=1e-3)
        assert [line["gold"] for line in ours["examples"]] == [line["gold"] for line in lines()]
        rights |= {tuple(one.right().values()) for one in result}
    assert len(rights) > 3  # the measures disagree on some


def test_three_measures_of_planted_loglikelihoods() -> None:
    example = TaskExample("q", ("a", "bb", "öö"), 1, 1)
    by_character = Judged(example, (-2.0, -3.0, -3.5), (False,) * 3)  # -2, -1.5, -1.75; by byte the third has -0.875
    assert by_character.right() == {"acc": False, "acc_norm": True, "acc_bytes": False}
    assert Judged(example, (-2.0, -1.0, -1.0), (False,) * 3).right()["acc"]  # the first of equals
    result = choices.summary([by_character] * 25 + [Judged(example, (-1.0, -9.0, -9.0), (True,) * 3)] * 75)
    assert result["acc_norm"] == {"score": 0.25, "ci95": pytest.approx(1.96 * (0.25 * 0.75 / 100) ** 0.5), "count": 100}


def test_pairs_are_cut_like_the_harness_cuts_them(loaded: tuple[Forward, Tokenizer]) -> None:
    words = loaded[1]
    before, after = choices.encode_pair(words, "bada  ", "ku")
    assert words.decode(before[1:]) == "bada" and words.decode(after) == "  ku"
    # one BOS, which is not scored: lm_eval's rolling perplexity begins with two where a tokenizer adds one
    assert choices.encode_pair(words, "", "ku") == ([words.bos_id], words.encode("ku"))
    assert words.bos_id not in choices.encode_pair(words, "", "<|begin_of_text|>ku")[1], "text never yields special ids"


def test_unusable_examples_are_named(loaded: tuple[Forward, Tokenizer], tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"query": "bada", "choices": ["x" * 200], "gold": 0}))
    with pytest.raises(ValueError, match=r"tasks.t: .*task.jsonl, line 1: .* more than the context of 48"):
        choices.prepare("t", Task(str(path)), loaded[1], 48)


def test_results_do_not_depend_on_the_batch(folder: Path, loaded: tuple[Forward, Tokenizer]) -> None:
    task = Task(str(folder.parent / "task.jsonl"), limit=9)
    alone, together = judged(loaded, task, 1), judged(loaded, replace(task), 7)
    for one, other in zip(alone, together, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-4)


def test_the_recipe_takes_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    from llama31.command import inputs
    from recipes import evaluate as recipe

    mesh.close()
    task = Task(str(folder.parent / "task.jsonl"), fewshot=1)
    run = config.Evaluate(str(folder), tasks={"mine": task}, prompts=["bada"], max_new_tokens=3)
    run.data, run.tokenizer = config.Data(folder=""), config.Tokenizer(kind="huggingface", path="")
    run.output = str(tmp_path / "found.json")
    inputs.check(run)
    result = recipe.main(run)
    assert json.loads((tmp_path / "found.json").read_text()) == result
    assert result["checkpoint"] == str(folder) and result["continuations"][0]["prompt"] == "bada"
    actual, grid = pretrained.find(str(folder)), mesh.create(ONE)
    chunks = llama.build(actual.shape, FP32, ONE, grid)
    actual.load(chunks, grid)
    words = tokenizers.load(actual.tokenizer(run.tokenizer))
    assert result["tasks"]["mine"] == choices.summary(judged((Forward(chunks, grid), words), task))
    mesh.close()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []  # nothing was converted beside it
