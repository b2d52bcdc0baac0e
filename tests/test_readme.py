"""The commands of the README and of docs/ work as they are written there: files are made, commands are run in order."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.runs import metrics
from tests import forkserver, pages, processes

pytestmark = [pytest.mark.torch, pytest.mark.parallel]

META = config.Model("meta", layers=2, hidden_size=32, ffn_hidden_size=48, heads=4, kv_heads=2, vocab_size=80)


def write_given(folder: Path) -> None:
    """What the reader brings: the YAML files as shown, texts in words of which some are frequent, and weights."""
    pages.write_files(folder)
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(random.choice(syllables, random.integers(1, 5))) for _ in range(800)]
    texts = [
        " ".join(words[int(800 * random.random() ** 3)] for _ in range(random.integers(20, 200))) for _ in range(300)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    write_records(folder, random, words)
    write_meta(folder / "meta")


def write_records(folder: Path, random: np.random.Generator, words: list[str]) -> None:
    """Dialogs, and preferences for answers that end with one word over answers that end with another."""

    def said() -> str:
        return " ".join(random.choice(words, random.integers(2, 9)))

    dialogs = [
        {"messages": [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]}
        for _ in range(150)
    ]
    preferences = [
        {"prompt": said(), "chosen": f"{said()} ba", "rejected": f"{said()} du", "strength": "better"}
        for _ in range(150)
    ]
    for name, records in (("dialogs", dialogs), ("preferences", preferences)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_meta(folder: Path) -> None:
    """Weights as Meta releases them, in one file, without their tokenizer."""
    h, ffn, kv = META.hidden_size, META.ffn_hidden_size, META.kv_heads * META.head_dim
    layer = {
        "attention.wq": (h, h), "attention.wk": (kv, h), "attention.wv": (kv, h), "attention.wo": (h, h),
        "feed_forward.w1": (ffn, h), "feed_forward.w3": (ffn, h), "feed_forward.w2": (h, ffn),
        "attention_norm": (h,), "ffn_norm": (h,),
    }  # fmt: skip
    shapes = {"tok_embeddings": (META.vocab_size, h), "norm": (h,), "output": (META.vocab_size, h)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(META.layers) for name, shape in layer.items()}
    folder.mkdir()
    weights = {f"{name}.weight": torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    torch.save(weights, folder / "consolidated.00.pth")
    params = {"dim": h, "n_layers": META.layers, "n_heads": META.heads, "n_kv_heads": META.kv_heads, "norm_eps": 1e-5}
    record = params | {"vocab_size": META.vocab_size, "rope_theta": 500000.0, "use_scaled_rope": True}
    (folder / "params.json").write_text(json.dumps(record))


def run(script: str, folder: Path) -> str:
    """What the commands printed; fails with it where one fails. Their Python has imported already what it needs."""
    # torchrun's fixed port may be taken by another run on this machine.
    environment = {**forkserver.environment(), "PET_STANDALONE": "1"}
    done = processes.run(["bash", "-euc", script], cwd=folder, env=environment, merged=True)
    assert done.returncode == 0, f"{script}exited with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which every block of every page was run, in order, and what each printed."""
    folder = tmp_path_factory.mktemp("tasks")
    write_given(folder)
    return folder, {script: run(script, folder) for page in pages.ORDER for script in pages.blocks(page, "sh")}


def losses(run_folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(run_folder) if line["kind"] == "train"}


def test_help_and_config(done: tuple[Path, dict[str, str]]) -> None:
    printed = next(iter(done[1].values()))
    assert "usage: python -m recipes.pretrain" in printed and "keys (type, default):" in printed
    assert "folder: runs/demo\n" in printed and "  tp: 2\n" in printed


def test_own_text_and_size(done: tuple[Path, dict[str, str]]) -> None:
    folder, _ = done
    assert (folder / "data/mine/tokenizer/tokenizer.json").exists()
    assert {"train.bin", "train.idx", "heldout.bin", "packed.json"} <= {
        x.name for x in (folder / "data/mine/mine").iterdir()
    }
    small = folder / "runs/small"
    for name in ("config.yaml", "attempts/0000/metrics.jsonl", "loss.png", "tokenizer", "checkpoints"):
        assert (small / name).exists(), name
    assert sorted(losses(small)) == list(range(1, 9))
    assert losses(small)[1] == pytest.approx(math.log(1024), abs=0.2) and losses(small)[8] < losses(small)[1] - 0.2


@pytest.mark.parametrize("name", ["split", "moved"])
def test_layouts_agree_and_a_run_moves_from_one_to_another(name: str, done: tuple[Path, dict[str, str]]) -> None:
    folder, _ = done
    whole, result = losses(folder / "runs/small"), losses(folder / "runs" / name)
    assert result.keys() == whole.keys()
    assert list(result.values()) == pytest.approx(list(whole.values()), rel=1e-5)


def test_resumed(done: tuple[Path, dict[str, str]]) -> None:
    record = [attempt.info for attempt in metrics.attempts(done[0] / "runs/moved")]
    assert [(info["from_step"], info["world_size"]) for info in record] == [(0, 2), (4, 2)]


def test_evaluated(done: tuple[Path, dict[str, str]]) -> None:
    result = json.loads((done[0] / "small.json").read_text())
    assert 0 < result["total"]["loss"] < math.log(1024) - 0.2 and result["sources"].keys() == {"mine"}
    assert result["continuations"][0]["prompt"] == "Once upon a time" and result["continuations"][0]["continuation"]


def test_exported_and_imported(done: tuple[Path, dict[str, str]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = done
    model = AutoModelForCausalLM.from_pretrained(folder / "hf/small")
    words = AutoTokenizer.from_pretrained(folder / "hf/small")
    tokens = words("once more", return_tensors="pt").input_ids
    assert tokens[0, 0] == words.bos_token_id and model(tokens).logits.shape == (1, tokens.shape[1], 1024)
    trained, imported = (
        shards.Reader(listing.resolve(folder / "runs" / name) / "weights") for name in ("small", "imported")
    )
    assert trained.names().keys() == imported.names().keys()
    for name in trained.names():
        assert torch.equal(trained.read(name).bfloat16(), imported.read(name)), name


def test_a_model_of_hugging_face_is_trained_on_two_processes_and_goes_back(done: tuple[Path, dict[str, str]]) -> None:
    """Import, SFT with the weights split by tensor parallelism, export: equal to one process from the same folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = done
    sft = "-m recipes.sft --config-dir my --config-name chat init_from=runs/imported stop_after_steps=2"
    sft += " data.sources.mine.input=dialogs.jsonl"
    to_hf = "python -m recipes.convert direction=to_hf dtype=fp32"
    run(
        f"python {sft} name=chat-1\n"
        f"torchrun --standalone --nproc-per-node 2 {sft} name=chat-2 parallel.tp=2\n"
        f"{to_hf} checkpoint=runs/chat-1 hf=hf/chat-1\n{to_hf} checkpoint=runs/chat-2 hf=hf/chat-2\n",
        folder,
    )
    one, two = losses(folder / "runs/chat-1"), losses(folder / "runs/chat-2")
    assert sorted(one) == [1, 2] and list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    before, serial, split = (
        AutoModelForCausalLM.from_pretrained(folder / "hf" / name, dtype=torch.float32).state_dict()
        for name in ("small", "chat-1", "chat-2")
    )
    for name, trained in serial.items():
        torch.testing.assert_close(split[name], trained, rtol=1e-5, atol=1e-6)
        assert name.endswith("norm.weight") or not torch.equal(trained, before[name]), f"{name} was trained"
    assert AutoTokenizer.from_pretrained(folder / "hf/chat-2").chat_template


def test_continued_from_weights_alone(done: tuple[Path, dict[str, str]]) -> None:
    folder, _ = done
    continued, whole = losses(folder / "runs/continued"), losses(folder / "runs/small")
    assert sorted(continued) == [1, 2], "a new run counts its own steps"
    assert continued[1] < whole[1] - 0.2, "and begins with what was learnt"


def test_post_training(done: tuple[Path, dict[str, str]]) -> None:
    folder, printed = done
    assert losses(folder / "runs/sft")[8] < losses(folder / "runs/sft")[1]
    assert losses(folder / "runs/reward")[8] < losses(folder / "runs/reward")[1]
    assert (folder / "runs/reward/calibration.png").exists()
    first = next(line for line in metrics.read(folder / "runs/dpo") if line["kind"] == "train")
    assert first["loss"] - first["nll"] == pytest.approx(math.log(2), abs=1e-5)
    assert any("reference: 150 examples in" in text for text in printed.values())


def test_stage_of_long_context_ends_with_its_gates(done: tuple[Path, dict[str, str]]) -> None:
    long = done[0] / "runs/long"
    record = json.loads((long / "gates.json").read_text())
    before = json.loads((done[0] / "small.json").read_text())["total"]
    assert record["baseline"]["short"] == before
    assert [one["step"] for one in record["examinations"]] == [2] and record["examinations"][0]["shut"] == []
    assert json.loads((long / "outcome.json").read_text())["outcome"] == "finished"
    meta = publish.read_meta(listing.resolve(long))
    assert (meta.step, meta.model["rope_factor"]) == (2, 8.0)  # of 8 steps; pre-training had no scaling
    lines = [line for line in metrics.read(long) if line["kind"] == "train"]
    assert all(line["length_shares"] == {"0": 1.0} and 20 < line["document_tokens"] < 2000 for line in lines)


def test_annealed_to_0_and_averaged(done: tuple[Path, dict[str, str]]) -> None:
    folder = done[0] / "runs"
    rates = [line["lr"] for line in metrics.read(folder / "annealed") if line["kind"] == "train"]
    assert rates == pytest.approx([1e-3 * (8 - step) / 8 for step in range(8)])
    kept = [listing.resolve(folder / f"annealed/checkpoints/step-{step:08d}") for step in (2, 4, 6, 8)]
    readers = [shards.Reader(one / "weights") for one in kept]
    average = shards.Reader(listing.resolve(folder / "annealed-average") / "weights")
    for name in average.names():
        mean = sum(reader.read(name).double() for reader in readers) / 4
        assert torch.allclose(average.read(name).double(), mean, rtol=1e-6, atol=1e-9), name


def test_chains(done: tuple[Path, dict[str, str]]) -> None:
    printed = {script.split("chain=")[1].split()[0]: text for script, text in done[1].items() if "chain=" in script}
    (total,) = re.findall(r"^# total of 10 jobs: ([\d,]+) GPU-h", printed["405b_long_context"], re.MULTILINE)
    assert 1.9e6 < int(total.replace(",", "")) < 2.1e6
    assert len(re.findall("^sbatch ", printed["405b_long_context"], re.MULTILINE)) == 10
    for said in ("name=first --config", "checkpoint=runs/first\n", "name=second seed=2\n", "hf=hf/second "):
        assert said.replace(" --config", "") in printed["small"], printed["small"]


def test_sampling_and_the_plan_of_rounds(done: tuple[Path, dict[str, str]]) -> None:
    folder, printed = done
    for name in ("candidates", "scores"):
        assert len((folder / f"runs/sampled/{name}.jsonl").read_text().splitlines()) == 8 * 4
    assert any("\n# round-02/judge\npython -m recipes.judge" in text for text in printed.values())


def test_metas_files(done: tuple[Path, dict[str, str]]) -> None:
    meta = publish.read_meta(listing.resolve(done[0] / "runs/meta"))
    assert meta.shape() == META
