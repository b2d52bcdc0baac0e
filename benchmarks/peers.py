"""The trainers that the benchmark compares, each doing the same optimizer steps on the same batches.

`python -m benchmarks.peers '{"work": ..., "case": ...}'` measures one in a process of its own and prints lines of JSON;
`recipes.benchmark` starts it. Ours is measured through the engine that training uses. The peers are what one would
write with transformers alone: its Trainer, and a plain loop. "bf16" and "mixed" hold unequal state: "bf16" keeps
weights, gradients and moments in BF16, "mixed" keeps them in FP32 and computes in BF16 under autocast. Ours with BF16
is "mixed": FP32 masters, moments and accumulation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama31 import config

TRAINERS = ("ours", "trainer", "loop")
ATTENTIONS = ("own", "eager", "sdpa")
PRECISIONS = ("fp32", "bf16", "mixed")
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """What is measured: a trainer, its attention (ours has its own) and its number formats."""

    trainer: str
    attention: str
    precision: str

    @classmethod
    def parse(cls, name: str) -> Case:
        """From `trainer-attention-precision`; raises ValueError naming the choices."""
        parts = tuple(name.split("-"))
        choices = (TRAINERS, ATTENTIONS, PRECISIONS)
        if len(parts) != 3 or any(part not in allowed for part, allowed in zip(parts, choices)):
            raise ValueError(f"cases={name!r} is not TRAINER-ATTENTION-PRECISION out of {choices}")
        case = cls(*parts)
        if (case.trainer == "ours") != (case.attention == "own") or (
            case.trainer == "ours" and case.precision == "bf16"
        ):
            raise ValueError(
                f"cases={name!r} does not exist: ours is ours-own-fp32 or ours-own-mixed, peers are eager or sdpa"
            )
        return case

    def __str__(self) -> str:
        return f"{self.trainer}-{self.attention}-{self.precision}"


@dataclass(frozen=True)
class Work:
    """The steps to be done: `rows` sequences per step in micro-batches of `micro_batch`."""

    model: config.Model
    sequence_length: int
    rows: int
    micro_batch: int
    steps: int
    warmup_steps: int
    seed: int = 0

    def batches(self) -> Iterator[np.ndarray]:
        """One int64 array [rows, sequence_length + 1] per step."""
        generator = np.random.default_rng(self.seed)
        for _ in range(self.warmup_steps + self.steps):
            yield generator.integers(0, self.model.vocab_size, (self.rows, self.sequence_length + 1))


# A trainer calls `mark` after each of its steps; the time before the last warm-up step is not counted.
Mark = Callable[[], None]
Runner = Callable[[Work, Case, Mark], dict[str, float]]


def measure(work: Work, case: Case) -> dict[str, Any]:
    """Run a case in this process: tokens, CPU seconds and wall seconds of the measured steps, and what the trainer
    adds.

    After the imports it prints `ready`, from where the parent counts anonymous memory.
    """
    runner = {"ours": ours, "trainer": transformers_trainer, "loop": plain_loop}[case.trainer]
    _import_for(case)
    print(json.dumps({"ready": anonymous_bytes("self")}), flush=True)
    marks: list[tuple[float, float]] = []
    extra = runner(work, case, lambda: marks.append((time.process_time(), time.perf_counter())))
    assert len(marks) == work.warmup_steps + work.steps, "a trainer did other steps than asked"
    (cpu_0, wall_0), (cpu_1, wall_1) = marks[work.warmup_steps - 1], marks[-1]
    tokens = work.steps * work.rows * work.sequence_length
    return {"tokens": tokens, "cpu_s": cpu_1 - cpu_0, "wall_s": wall_1 - wall_0, **extra}


def anonymous_bytes(pid: int | str) -> int:
    """Anonymous resident memory of a process: what it allocated, without the files that it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def _import_for(case: Case) -> None:
    """Everything that the case imports, so that memory is counted from there."""
    import torch

    torch.set_num_threads(1)
    import deepspeed  # noqa: F401 - ours needs it, and Trainer imports it late wherever it is installed

    if case.trainer == "ours":
        from llama31.parallel import mesh  # noqa: F401
    else:
        from transformers import LlamaForCausalLM, Trainer  # noqa: F401


# --- the peers ---


def llama_config(m: config.Model, attention: str) -> Any:
    """transformers' config of the same shape; `attention` by its name there."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=m.vocab_size,
        hidden_size=m.hidden_size,
        intermediate_size=m.ffn_hidden_size,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads,
        max_position_embeddings=m.max_positions,
        rms_norm_eps=m.norm_eps,
        tie_word_embeddings=m.tied_embeddings,
        use_cache=False,
        attn_implementation=attention,
    )


def llama(m: config.Model, seed: int, case: Case) -> Any:
    """transformers' Llama of the same shape, in the number format that holds its state."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(m, case.attention))
    return model.to(torch.bfloat16 if case.precision == "bf16" else torch.float32)


def plain_loop(work: Work, case: Case, mark: Mark) -> dict[str, float]:
    """The loop that one writes by hand: micro-batches, clipping, fused AdamW."""
    import torch

    model = llama(work.model, work.seed, case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    micro_batches = work.rows // work.micro_batch
    loss = torch.tensor(0.0)
    for batch in work.batches():
        for rows in torch.from_numpy(batch[:, :-1]).split(work.micro_batch):
            autocast = torch.autocast("cpu", torch.bfloat16) if case.precision == "mixed" else contextlib.nullcontext()
            with autocast:
                loss = model(input_ids=rows, labels=rows).loss / micro_batches
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mark()
    return {"loss": float(loss) * micro_batches}


def transformers_trainer(work: Work, case: Case, mark: Mark) -> dict[str, float]:
    """transformers' Trainer with its defaults, apart from what would write files or wait."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            mark()

    rows = [row[:-1] for batch in work.batches() for row in batch]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.micro_batch,
            gradient_accumulation_steps=work.rows // work.micro_batch,
            max_steps=work.warmup_steps + work.steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=case.precision == "mixed",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(llama(work.model, work.seed, case), arguments, train_dataset=dataset, callbacks=[Marks()])
        return {"loss": float(trainer.train().training_loss)}


# --- ours ---


def ours(work: Work, case: Case, mark: Mark) -> dict[str, float]:
    """The engine that `recipes.pretrain` drives, one process, rows of one document each."""
    import torch

    from llama31.engine.objectives import MicroBatch
    from llama31.engine.pipeline import Engine
    from llama31.model import llama
    from llama31.parallel import cpu, mesh

    cpu.install(count_time=True)
    parallel = config.Parallel(micro_batch=work.micro_batch)
    numbers = config.Precision(params="fp32" if case.precision == "fp32" else "bf16")
    grid = mesh.create(parallel)
    chunks = llama.build(work.model, numbers, parallel, grid, seed=work.seed)
    engine = Engine(chunks, work.model, config.Optimizer(), numbers, parallel, grid)
    loss, began = 0.0, (0.0, 0.0)
    ones = np.ones((work.micro_batch, work.sequence_length), np.float32)
    for step, batch in enumerate(work.batches()):
        if step == work.warmup_steps:
            began = (time.perf_counter(), cpu.spent_s)
        parts = np.split(batch, work.rows // work.micro_batch)
        rows = [MicroBatch.from_numpy(x[:, :-1], x[:, 1:], ones, 0 * x[:, 1:], torch.device("cpu")) for x in parts]
        result = engine.accumulate(rows)
        engine.apply(LEARNING_RATE)
        loss = result.loss
        mark()
    share = (cpu.spent_s - began[1]) / (time.perf_counter() - began[0])
    mesh.close()
    return {"loss": loss, "shim_share": share}


def main() -> None:
    """Measure the case that the first argument describes as JSON."""
    asked = json.loads(sys.argv[1])
    work = Work(**{**asked["work"], "model": config.Model(**asked["work"]["model"])})
    print(json.dumps(measure(work, Case.parse(asked["case"]))), flush=True)


def request(work: Work, case: Case) -> str:
    """The argument for `main`."""
    return json.dumps({"work": dataclasses.asdict(work), "case": str(case)})


if __name__ == "__main__":
    main()
