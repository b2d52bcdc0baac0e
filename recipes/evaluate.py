"""Perplexity of a checkpoint on packed text, and continuations of prompts.

Example: python -m recipes.evaluate checkpoint=runs/demo data=demo 'prompts=["Once upon a time"]'
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.mesh import Grid
    from llama31.model import Llama
    from llama31.tokenizer import Tokenizer


def main(run: config.Evaluate) -> dict[str, Any]:
    """Evaluate as `run` says, print and write the result (rank 0) and return it."""
    from llama31 import checkpoint, evaluate, mesh, model, state, tokenizer
    from llama31.data import batches
    from llama31.engine import Forward

    folder = checkpoint.resolve(run.checkpoint)
    meta = checkpoint.read_meta(folder)
    shape, words = meta.shape(), tokenizer.load(evaluate.tokenizer_settings(run.tokenizer, folder, meta))
    parallel = replace(run.parallel, sequence_parallel=False)  # decoding cannot use it
    evaluate.check_layout(shape, parallel)
    heldout = None
    if run.data.sources:
        length = evaluate.sequence_length(run.sequence_length, meta.schedule, shape)
        heldout = batches.Heldout(run.data, length, run.tokens, run.split)
        batches.check_vocabulary(heldout, shape)
        batches.check_tokenizer(heldout, words.fingerprint)
    grid = mesh.create(parallel, run.cluster.timeout_s)
    chunks = model.build(shape, run.precision, parallel, grid)
    state.load_weights(folder, chunks, shape, grid)
    result: dict[str, Any] = {"checkpoint": str(folder)}
    if heldout:
        losses = evaluate.heldout_losses(Forward(chunks, grid), heldout, grid, parallel.micro_batch)
        result |= evaluate.summary(losses)
    if run.prompts:
        result["continuations"] = continuations(run, chunks, grid, words)
    if grid.rank == 0:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        print(text)
        if run.output:
            write(Path(run.output), text + "\n")
    mesh.close()
    return result


def write(path: Path, text: str) -> None:
    """Write a file whole, or to a device. Raises ValueError (key `output`) where that fails."""
    device = path.exists() and not path.is_file()
    beside = path if device else path.with_name(f".{path.name}.writing")
    try:
        beside.write_text(text, encoding="utf-8")
        if not device:
            beside.replace(path)
    except OSError as error:
        if not device:
            beside.unlink(missing_ok=True)
        raise ValueError(f"output={path}: cannot be written ({error}); the result stands above") from error


def continuations(run: config.Evaluate, chunks: list[Llama], grid: Grid, words: Tokenizer) -> list[dict[str, str]]:
    """Each prompt of `run` and how the model goes on, up to the end of the text or turn."""
    from llama31.generate import generate

    prompts, stops = [[words.bos_id, *words.encode(prompt)] for prompt in run.prompts], {words.eos_id, words.eot_id}
    new = generate(
        chunks, grid, prompts, run.max_new_tokens, stops, run.temperature, run.top_p, run.seed, words.vocab_size
    )
    texts = [words.decode([token for token in tokens if token not in stops]) for tokens in new]
    return [{"prompt": prompt, "continuation": text} for prompt, text in zip(run.prompts, texts, strict=True)]


if __name__ == "__main__":
    start(main, config.Evaluate, "evaluate")
