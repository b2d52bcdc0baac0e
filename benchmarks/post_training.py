"""Post-training against TRL on the same small model and the same records, each case in a process of its own.

`python -m benchmarks.post_training '{...}'` measures one case and prints lines of JSON; `tables` starts it. A case
reads all records once. Tokens are those of the records: padding is work, and no token. Ids are drawn at random;
lengths are log-normal, as of dialogs, up to a row of ours. TRL has its defaults, FP32 and SDPA, apart from what would
write files.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import LEARNING_RATE, Case, anonymous_bytes, llama
from benchmarks.timing import TimedRun, run_worker
from llama31 import config
from llama31.dialogs import passes, rows
from llama31.dialogs.rows import Response
from llama31.tokens.chat import BODY

CASES = {
    "sft-ours": "SFT, ours, packed",
    "sft-ours-alone": "SFT, ours, a dialog per row",
    "sft-trl-packed": "SFT, TRL, packed (bfd)",
    "sft-trl": "SFT, TRL, padded to the longest",
    "dpo-ours": "DPO, ours, reference kept",
    "dpo-trl": "DPO, TRL, reference as a second model",
    "dpo-trl-kept": "DPO, TRL, reference computed before",
}
OURS = {"sft": "sft-ours", "dpo": "dpo-ours"}
FIRST = 4  # ids below are format: padding, end, unknown
END = 1


@dataclasses.dataclass(frozen=True)
class AlignWork:
    """What every case does once: `records` dialogs, or half as many preferences; rows of ours hold `length` places."""

    model: config.Model
    length: int
    records: int
    rows: int  # of a step; where nothing is packed a step holds as many records as these rows would
    seed: int = 0

    def dialogs(self) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer) ids: a third of a dialog is its last answer, as in the report's Table 7."""
        random = np.random.default_rng(self.seed)
        sizes = np.exp(random.normal(np.log(self.length / 4), 0.7, self.records)).clip(12, self.length)
        drawn = [random.integers(FIRST, self.model.vocab_size, int(size)).tolist() for size in sizes]
        return [(ids[: len(ids) * 2 // 3], [*ids[len(ids) * 2 // 3 : -1], END]) for ids in drawn]

    def preferences(self) -> list[tuple[list[int], list[int], list[int]]]:
        """(prompt, chosen, rejected) ids: prompts a seventh of an answer, as in the report's Table 6."""
        random = np.random.default_rng(self.seed)

        def ids(median: float, most: int) -> list[int]:
            size = int(np.exp(random.normal(np.log(median), 0.6)).clip(4, most))
            return random.integers(FIRST, self.model.vocab_size, size).tolist()

        part = self.length // 2
        return [
            (ids(part / 20, part // 4), [*ids(part / 3, part // 2), END], [*ids(part / 3, part // 2), END])
            for _ in range(self.records // 2)
        ]

    def tokens(self, kind: str) -> int:
        """Tokens of the records that `kind` (sft or dpo) reads."""
        if kind == "sft":
            return sum(len(prompt) + len(answer) for prompt, answer in self.dialogs())
        return sum(2 * len(p) + len(chosen) + len(rejected) for p, chosen, rejected in self.preferences())

    def per_step(self, kind: str) -> int:
        """Records of a step where each has a row of its own."""
        if kind == "sft":
            sizes = [len(prompt) + len(answer) - 1 for prompt, answer in self.dialogs()]
        else:
            sizes = [2 * len(p) + len(chosen) + len(rejected) - 2 for p, chosen, rejected in self.preferences()]
        packed = len(passes.best_fit(np.array(sizes), self.length))
        return max(1, round(len(sizes) * self.rows / packed))


Mark = Callable[[], None]  # called where the measured training begins, and where it ends


# --- ours ---


def ours(work: AlignWork, case: str, mark: Mark) -> dict[str, float]:
    """The engine that the recipes drive, on rows as `dialogs/feed.py` packs them."""
    from llama31.engine import preference, scoring
    from llama31.engine.objectives import MicroBatch, next_token
    from llama31.engine.pipeline import Engine, Forward
    from llama31.model import llama
    from llama31.parallel import mesh

    numbers, parallel, compares = config.Precision(params="fp32"), config.Parallel(), case.startswith("dpo")
    grid, cost = mesh.create(parallel), {}
    pieces = _preferred(work) if compares else _supervised(work)
    sizes = np.array([len(piece.tokens) for piece in pieces])
    dealt = passes.best_fit(sizes, work.length)
    if case == "sft-ours-alone":
        dealt = [np.array([place]) for place in range(len(pieces))]

    def packed(row: Sequence[np.ndarray]) -> rows.PackedRows:
        return rows.pack([[pieces[i] for i in one] for one in row], work.length, compares)

    if compares:
        began = time.process_time()
        chunks = llama.build(work.model, numbers, parallel, grid, seed=work.seed)
        known = scoring.numbers(Forward(chunks, grid), dealt, packed, preference.log_probabilities, 1)
        for places, _, values in known:
            for i, pair in zip(np.concatenate([dealt[p] for p in places]), values.view(-1, 2).numpy(), strict=True):
                pieces[int(i)] = dataclasses.replace(pieces[int(i)], reference=pair)
        cost = {"reference_s": time.process_time() - began, "reference_bytes": 8.0 * len(pieces)}
        del chunks, known
    objective = preference.DpoObjective() if compares else next_token
    chunks = llama.build(work.model, numbers, parallel, grid, seed=work.seed)
    engine = Engine(chunks, work.model, config.Optimizer(), numbers, parallel, grid)
    step = work.per_step("sft") if case == "sft-ours-alone" else work.rows
    mark()
    for first in range(0, len(dealt), step):
        batch = [MicroBatch.from_packed(packed([row]), grid.device) for row in dealt[first : first + step]]
        engine.accumulate(batch, objective)
        engine.apply(LEARNING_RATE)
    mark()
    mesh.close()
    return {"fill": passes.fill(dealt, sizes, work.length), **cost}


def _supervised(work: AlignWork) -> list[rows.Piece]:
    return [
        rows.supervised(np.array([*prompt, *answer]), np.array([0] * len(prompt) + [1] * len(answer)))
        for prompt, answer in work.dialogs()
    ]


def _preferred(work: AlignWork) -> list[rows.Piece]:
    return [
        rows.dpo(np.array(prompt), _response(chosen), _response(rejected))
        for prompt, chosen, rejected in work.preferences()
    ]


def _response(ids: Sequence[int]) -> Response:
    return Response(np.array(ids), np.full(len(ids), BODY))


# --- TRL ---


def trl(work: AlignWork, case: str, mark: Mark) -> dict[str, float]:
    """TRL's trainer for one pass over the records."""
    from transformers import TrainerCallback

    class StepMarks(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            mark()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            mark()

    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trainer = (_trl_sft if case.startswith("sft") else _trl_dpo)(work, case, folder, [StepMarks()])
        cost = {"reference_s": time.process_time() - began} if case == "dpo-trl-kept" else {}
        trainer.train()
    return cost


def _settings(kind: str, folder: str, per_device: int, per_step: int, **changes: Any) -> Any:
    import trl as package

    return getattr(package, f"{kind}Config")(
        output_dir=folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=max(1, round(per_step / per_device)),
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        **changes,
    )


def _llama(work: AlignWork) -> Any:
    return llama(work.model, work.seed, Case("trainer", "sdpa", "fp32"))


def _words(work: AlignWork) -> Any:
    """A tokenizer whose texts are ids: "w17 w4"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unk>"]
    vocabulary = {names[i] if i < len(names) else f"w{i}": i for i in range(work.model.vocab_size)}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def _trl_sft(work: AlignWork, case: str, folder: str, callbacks: Sequence[Any]) -> Any:
    from datasets import Dataset
    from trl import SFTTrainer

    data = [
        {"input_ids": [*prompt, *answer], "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for prompt, answer in work.dialogs()
    ]
    packing = case.endswith("packed")
    device, step = (1, work.rows) if packing else (4, work.per_step("sft"))
    settings = _settings("SFT", folder, device, step, packing=packing, max_length=work.length)
    return SFTTrainer(
        _llama(work),
        settings,
        train_dataset=Dataset.from_list(data),
        processing_class=_words(work),
        callbacks=list(callbacks),
    )


def _trl_dpo(work: AlignWork, case: str, folder: str, callbacks: Sequence[Any]) -> Any:
    from datasets import Dataset
    from trl import DPOTrainer

    def text(ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    data = [
        {"prompt": text(prompt), "chosen": " " + text(chosen[:-1]), "rejected": " " + text(rejected[:-1])}
        for prompt, chosen, rejected in work.preferences()
    ]  # it ends answers itself
    kept = case.endswith("kept")
    settings = _settings(
        "DPO", folder, 2, work.per_step("dpo"), beta=0.1, max_length=None, precompute_ref_log_probs=kept
    )
    return DPOTrainer(
        _llama(work),
        None if kept else _llama(work),
        settings,
        train_dataset=Dataset.from_list(data),
        processing_class=_words(work),
        callbacks=list(callbacks),
    )


def measure(work: AlignWork, case: str) -> dict[str, Any]:
    """Run a case in this process."""
    import torch

    torch.set_num_threads(1)
    if "ours" in case:
        from llama31.parallel import mesh  # noqa: F401
    else:
        import deepspeed  # noqa: F401 - Trainer imports it late wherever it is installed
        from trl import DPOTrainer, SFTTrainer  # noqa: F401
    print(json.dumps({"ready": anonymous_bytes("self")}), flush=True)
    marks: list[tuple[float, float]] = []
    extra = (ours if "ours" in case else trl)(
        work, case, lambda: marks.append((time.process_time(), time.perf_counter()))
    )
    (cpu_0, wall_0), (cpu_1, wall_1) = marks
    return {"tokens": work.tokens(case[:3]), "cpu_s": cpu_1 - cpu_0, "wall_s": wall_1 - wall_0, **extra}


def main() -> None:
    """Measure the case that the first argument describes as JSON."""
    asked = json.loads(sys.argv[1])
    work = AlignWork(**{**asked["work"], "model": config.Model(**asked["work"]["model"])})
    print(json.dumps(measure(work, asked["case"])), flush=True)


# --- what starts it ---


def tables(run: config.Benchmark) -> list[str]:
    """Every case as often as asked, in turn."""
    work = AlignWork(run.model, run.sequence_length, run.align_records, run.rows)
    runs: dict[str, list[TimedRun]] = {name: [] for name in CASES}
    for repeat in range(run.repeats):
        for name in runs:
            asked = {"work": dataclasses.asdict(work), "case": name}
            done = run_worker(name, ["-m", "benchmarks.post_training", json.dumps(asked)], run.timeout_s)
            runs[name].append(done)
            speed = f"{done.tokens_per_cpu_s:,.0f} tokens per CPU-second, {done.peak_bytes / 1e6:,.0f} MB"
            print(f"{repeat + 1}/{run.repeats} {name}: {speed}", file=sys.stderr, flush=True)
    return [table(runs)]


def table(runs: Mapping[str, Sequence[TimedRun]]) -> str:
    """Medians per case, and the ratio of ours to each."""
    lines = [
        "| case | tokens per CPU-second: median (range) | ours / this | peak memory above imports, MB | "
        "reference, CPU-seconds |",
        "|---|---|---|---|---|",
    ]
    for name, done in runs.items():
        speeds = [run.tokens_per_cpu_s for run in done]
        middle = statistics.median(speeds)
        ours_own = runs[OURS[name[:3]]]
        ratio = statistics.median(run.tokens_per_cpu_s for run in ours_own) / middle
        peak = statistics.median(run.peak_bytes for run in done) / 1e6
        seconds = [run.extra["reference_s"] for run in done if "reference_s" in run.extra]
        seconds_cell = f"{statistics.median(seconds):.1f}" if seconds else ""
        share = "" if name in OURS.values() else f"{ratio:.2f}"
        spread = f"{middle:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        lines.append(f"| {CASES[name]} | {spread} | {share} | {peak:,.0f} | {seconds_cell} |")
    ours_dpo = runs["dpo-ours"]
    if ours_dpo and "reference_bytes" in ours_dpo[0].extra:
        kept = ours_dpo[0].extra["reference_bytes"]
        lines += ["", f"The kept reference takes {kept:,.0f} bytes; rows of ours are filled to"]
        lines[-1] += f" {runs['sft-ours'][0].extra['fill']:.0%} (SFT) and {ours_dpo[0].extra['fill']:.0%} (DPO)."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
