"""Whole runs in one process: every recipe that trains, resuming, and conversion of what was trained."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama31 import config
from llama31.checkpoint import listing, publish, shards
from llama31.command import entry, inputs
from llama31.convert import checkpoints, pretrained
from llama31.model import llama, precision
from llama31.parallel import mesh
from llama31.runs import metrics
from tests.dialogs.conftest import dialog, preference
from tests.parallel.training import fit

Facts = dict[str, Any]

# Heads of width 128, four query heads to a KV head.
MODEL = {"layers": 2, "hidden_size": 512, "ffn_hidden_size": 512, "heads": 4, "kv_heads": 1, "vocab_size": 560}
BATCH, LENGTH = 1024, 256
PROBED = "arms/with-b-seed-1"  # the sixth: five seeds of the default data come before
NOISE = 1e-4  # relative difference of losses of two runs that may differ at all


# --- every recipe that trains, for one step ---


def write_records(folder: Path) -> None:
    """Dialogs and preferences, a hundred of each."""
    random = np.random.default_rng(0)

    def said() -> str:
        return " ".join(f"word{n}" for n in random.integers(0, 60, random.integers(3, 12)))

    dialogs = [dialog(said(), said()) for _ in range(100)]
    preferences = [preference(said(), f"{said()} word1", f"{said()} word2") for _ in range(100)]
    for name, records in (("dialogs", dialogs), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


class Recipes:
    """Recipes called as their commands call them, on a device, each in a run folder of its own below `room`."""

    def __init__(self, room: Path, data: Path, device: torch.device) -> None:
        self.room, self.data, self.gpu = room, data, device.type == "cuda"
        write_records(room)

    def run(self, recipe: str, schema: type, *given: str, config_name: str | None = None) -> None:
        run = entry.load(schema, config_name or recipe, list(given))
        inputs.check(run)
        importlib.import_module(f"recipes.{recipe}").main(run)

    def words(self, *given: str) -> list[str]:
        words = ["tokenizer=demo", f"tokenizer.path={self.data}/tokenizer", "tokenizer.vocab_size=560"]
        chosen = [one for one in given if one.startswith("precision=")] or [
            "precision=bf16" if self.gpu else "precision=fp32"
        ]
        return [*words, *chosen, *(one for one in given if not one.startswith("precision="))]

    def train(
        self, recipe: str, schema: type, name: str, *given: str, config_name: str | None = None, record: str = "."
    ) -> Facts:
        """One step; the loss and norm that were recorded."""
        shape = ["model=tiny", *(f"model.{key}={value}" for key, value in MODEL.items())]
        steps = {
            "total_tokens": BATCH,
            "batch_tokens": BATCH,
            "sequence_length": LENGTH,
            "peak_lr": 1e-4,
            "warmup_tokens": 0,
        }
        common = ["parallel.micro_batch=2", "log.progress=false", f"name={name}", f"folder={self.room}/{name}"]
        more = [*(f"schedule.{key}={value}" for key, value in steps.items()), *common, "validation.tokens=256"]
        self.run(recipe, schema, *shape, *more, *self.words(*given), config_name=config_name)
        return self.recorded(self.room / name / record)

    def recorded(self, folder: Path) -> Facts:
        (line,) = [line for line in metrics.read(folder) if line["kind"] == "train"]
        saved = listing.resolve(str(folder))
        assert publish.read_meta(saved).step == 1
        result = [line["loss"], line["grad_norm"]]
        checks = [
            ("not finite, or no gradient", 0.0 if all(map(math.isfinite, result)) and result[1] > 0 else 1.0, 0.0)
        ]
        facts: Facts = {"losses": [line["loss"]], "norms": [line["grad_norm"]], "checks": checks}
        if "nll" in line:
            facts["nll"] = line["nll"]
        if self.gpu:
            checks.append(("on a GPU no memory was recorded", float(not line["memory_bytes"]), 0.0))
        return facts

    def text(self) -> list[str]:
        return ["data=own", f"data.folder={self.data}", "data.sources.a.weight=2", "data.sources.b.weight=1"]

    def pretrain(self, name: str, *given: str) -> Facts:
        facts = self.train("pretrain", config.Pretrain, name, *self.text(), *given)
        facts["checks"].append(("loss - ln(vocabulary)", abs(facts["losses"][0] - math.log(560)), 0.5))
        return facts

    def evaluate(self) -> Facts:
        """Held-out losses for the gates, and prompts that are continued: decoding with a cache."""
        output = self.room / "before.json"
        given = [f"checkpoint={self.room}/pretrain", 'prompts=["word1 word2"]', "max_new_tokens=4", f"output={output}"]
        self.run("evaluate", config.Evaluate, *given, *self.words(*self.text(), "tokens=256", "sequence_length=128"))
        assert json.loads(output.read_text())
        return {}

    def long_context(self) -> Facts:
        """A stage whose rows are twice as long; gates may be shut after one step, and are asked."""
        gates = {
            "every_tokens": BATCH,
            "short_length": 128,
            "needle.kind": "none",
            "baseline": self.room / "before.json",
        }
        given = [f"init_from={self.room}/pretrain", "schedule.sequence_length=512", *self.text()]
        given += [f"gates.{key}={value}" for key, value in gates.items()]
        try:
            return self.train("pretrain", config.Pretrain, "long", *given, config_name="long_context")
        except config.RunError as error:
            if "gates are shut" not in str(error):
                raise
            mesh.close()
        return self.recorded(self.room / "long")

    def anneal(self) -> Facts:
        given = [f"init_from={self.room}/long", *self.text()]
        return self.train("pretrain", config.Pretrain, "annealed", *given, config_name="anneal")

    def aligned(self, recipe: str, schema: type) -> Facts:
        records = "dialogs" if recipe == "sft" else "preferences"
        data = [f"data.folder={self.room}/{records}", f"data.sources.mine.input={self.room}/{records}.jsonl"]
        given = [*data, "data.heldout_fraction=0.1", f"init_from={self.room}/annealed", "schedule.final_lr=0"]
        given += ["deterministic=true"] * (recipe != "sft")  # none of what they compute with is refused by it
        facts = self.train(recipe, schema, recipe, *given)
        if recipe != "sft":  # DPO adds the likelihood of better answers; a reward model is drawn at random
            added, bound = (facts["nll"], 2e-2 if self.gpu else 1e-4) if recipe == "dpo" else (0.0, 0.3)
            facts["checks"].append(("loss - ln 2", abs(facts["losses"][0] - added - math.log(2)), bound))
        return facts

    def probe(self) -> Facts:
        """The first annealing with a candidate."""
        given = [*self.text(), f"init_from={self.room}/pretrain", "model.rope_factor=0"]
        return self.train("probe", config.Probe, "worth", *given, "candidates=[b]", "arm=5", record=PROBED)


# --- resume ---


def run_of(room: Path, data: Path, name: str, numbers: config.Precision, deterministic: bool) -> config.Pretrain:
    """Four steps of two rows of one document; in BF16, which is a GPU's, longer than kernels' tiles."""
    length = 1024 if numbers.params == "bf16" else 128
    return config.Pretrain(
        name=name,
        folder=str(room / name),
        deterministic=deterministic,
        model=config.Model(name="resumed", **MODEL),  # type: ignore[arg-type]
        precision=numbers,
        schedule=config.Schedule(
            total_tokens=8 * length,
            batch_tokens=2 * length,
            sequence_length=length,
            peak_lr=2e-4,
            warmup_tokens=2 * length,
        ),
        data=config.Data(
            folder=str(data), sources={"a": config.Source(weight=2.0), "b": config.Source()}, document_mask=False
        ),
        tokenizer=config.Tokenizer(kind="bpe", path=str(data / "tokenizer")),
        validation=config.Validation(tokens=256),
        preflight=config.Preflight(enabled=False),
        log=config.Log(progress=False),
    )


def finished(run: config.Pretrain) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and norms of a run's steps, and all that its last checkpoint holds."""
    saved = fit(run)
    assert saved is not None
    lines = [line for line in metrics.read(run.folder) if line["kind"] == "train"]
    result = {
        f"{part}/{name}": shards.Reader(saved / part).read(name)
        for part in ("weights", "optimizer")
        for name in shards.Reader(saved / part).names()
    }
    return [line[key] for line in lines for key in ("loss", "grad_norm")], result


def difference(one: Any, other: Any) -> tuple[float, float]:
    """Largest relative difference of losses and norms, and the share of tensors that are not bit-equal."""
    assert len(one[0]) == len(other[0]) and one[1].keys() == other[1].keys()
    curves = max(abs(a - b) / abs(a) for a, b in zip(one[0], other[0]))
    return curves, sum(not torch.equal(one[1][name], other[1][name]) for name in one[1]) / len(one[1])


def resumed(room: Path, data: Path, numbers: config.Precision, deterministic: bool) -> Facts:
    """A run, the same again, and one that stops after two steps and goes on."""
    name = f"resume-{numbers.params}-{numbers.fp8}-{numbers.fp8_emulate}-{deterministic}"
    made = partial(run_of, room, data, numbers=numbers, deterministic=deterministic)
    whole, again = (finished(made(f"{name}-{which}")) for which in ("whole", "again"))
    stopped = made(f"{name}-stopped")
    fit(replace(stopped, stop_after_steps=2))
    gone_on = finished(stopped)
    noise, resume = difference(whole, again), difference(whole, gone_on)
    facts: Facts = {"two equal runs differ by": noise[0], "tensors that differ": noise[1], "resumed by": resume[0]}
    if deterministic:
        checks = [("two equal runs", noise[0], 0.0), ("tensors of two equal runs", noise[1], 0.0)]
        checks += [("resumed", resume[0], 0.0), ("tensors of the resumed run", resume[1], 0.0)]
    else:
        checks = [("resumed", resume[0], 4 * noise[0] + NOISE)]
    return {**facts, "losses": whole[0][::2], "norms": whole[0][1::2], "checks": checks}


# --- conversion ---


def converted(room: Path, data: Path, device: torch.device) -> Facts:
    """The trained model as a Hugging Face folder: transformers computes its losses, and the way back is bit-equal."""
    from transformers import LlamaForCausalLM

    folder = room / "hf"
    checkpoints.run(config.Convert("to_hf", str(folder), str(room / "pretrain"), dtype="fp32"))
    result, grid = pretrained.find(str(folder)), mesh.create(config.Parallel())
    own = pretrained.find(str(room / "pretrain"))
    live, back = (
        llama.build(one.shape, config.Precision(params="fp32"), config.Parallel(), grid) for one in (own, result)
    )
    own.load(live, grid)
    result.load(back, grid)
    pairs = zip(live[0].state_dict().items(), back[0].state_dict().items(), strict=True)
    unequal = [name for (name, one), (_, other) in pairs if torch.is_tensor(one) and not torch.equal(one, other)]
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, 560, (2, 129)))
    x, labels = (part.to(device).contiguous() for part in (tokens[:, :-1], tokens[:, 1:]))
    documents = torch.tensor([(0, 0, 128), (1, 0, 128)], dtype=torch.int32)
    with torch.no_grad():
        ours = live[0](x, None, documents, labels=labels).cpu()
        logits = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens[:, :-1]).logits
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    off = (ours.flatten() - theirs).abs().max().item()
    bound = 2e-2 if device.type == "cuda" else 1e-4  # TF32
    return {
        "checks": [("tensors changed on the way", float(len(unequal)), 0.0), ("losses off transformers'", off, bound)]
    }


def cases(
    device: torch.device, extras: tuple[str, ...], room: Path, data: Path
) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """In this order: what later ones begin with is what the first has trained."""
    recipes, gpu = Recipes(room, data, device), device.type == "cuda"
    yield "recipe pretrain", lambda: recipes.pretrain("pretrain")
    fp8 = gpu and precision.have_transformer_engine()
    if gpu:
        yield "recipe pretrain fp32", lambda: recipes.pretrain("pretrain-fp32", "precision=fp32")
    if fp8:
        yield "recipe pretrain fp8", lambda: recipes.pretrain("pretrain-fp8", "precision=fp8_tensorwise")
    yield "recipe evaluate", recipes.evaluate
    yield "recipe long_context", recipes.long_context
    yield "recipe anneal", recipes.anneal
    yield "recipe sft", lambda: recipes.aligned("sft", config.Sft)
    yield "recipe reward", lambda: recipes.aligned("reward", config.Reward)
    yield "recipe dpo", lambda: recipes.aligned("dpo", config.Dpo)
    yield "recipe probe", recipes.probe
    yield "conversion", lambda: converted(room, data, device)
    numbers = config.Precision(params="bf16" if gpu else "fp32")
    yield "resume deterministic", lambda: resumed(room, data, numbers, deterministic=True)
    twin = replace(numbers, fp8="delayed", fp8_emulate=True)  # its scales are state
    yield "resume twin deterministic", lambda: resumed(room, data, twin, deterministic=True)
    if not extras and not gpu:
        return  # on a CPU it is the same
    yield "resume", lambda: resumed(room, data, numbers, deterministic=False)
    if fp8:
        for recipe in ("tensorwise", "delayed"):
            numbers_of = config.Precision(fp8=recipe)
            yield f"resume fp8 {recipe}", lambda n=numbers_of: resumed(room, data, n, deterministic=True)
