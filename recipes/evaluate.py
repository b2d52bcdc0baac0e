"""Perplexity, multiple choice, the needle in a haystack, and continuations of prompts.

Example: python -m recipes.evaluate checkpoint=runs/demo data=demo tasks.mine.path=mine.jsonl 'prompts=["Once"]'
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config
from llama31.evaluate import scorecard
from llama31.runs import files
from recipes import start

if TYPE_CHECKING:
    from llama31.convert.pretrained import Pretrained
    from llama31.engine.pipeline import Forward
    from llama31.model.llama import Llama
    from llama31.parallel.mesh import Grid
    from llama31.tokens.tokenizers import Tokenizer


def main(run: config.Evaluate) -> dict[str, Any]:
    """Evaluate as `run` says, print tables, write the result (rank 0) and return it."""
    from llama31.convert import pretrained
    from llama31.data import batches
    from llama31.evaluate import choices, needle, perplexity
    from llama31.judging import divergence
    from llama31.parallel import mesh
    from llama31.tokens import tokenizers

    weights = pretrained.find(run.checkpoint)
    shape, tokenizer = weights.shape, tokenizers.load(weights.tokenizer(run.tokenizer))
    parallel = replace(run.parallel, sequence_parallel=False)  # decoding cannot use it
    perplexity.check_layout(shape, parallel)
    perplexity.check_vocabulary(tokenizer.vocab_size, shape)
    length = perplexity.sequence_length(run.sequence_length, weights.meta.schedule, shape)
    longest = run.sequence_length or shape.max_positions
    heldout, hidden = None, []
    if run.data.sources:
        heldout = batches.HeldoutText(run.data, length, run.tokens, run.split)
        batches.check_vocabulary(heldout, shape)
        batches.check_tokenizer(heldout, tokenizer.fingerprint)
    asked = {name: choices.prepare(name, task, tokenizer, longest) for name, task in run.tasks.items()}
    if run.needle.kind != "none":
        hidden = needle.prompts_of(run.needle, run.data, run.split, tokenizer, length, longest)
    other = None if run.against is None else pretrained.find(run.against)
    if other is not None:
        divergence.check(other.shape, shape, length)
    grid = mesh.create(parallel, run.cluster.timeout_s)
    forward = load(run, weights, parallel, grid)
    result: dict[str, Any] = {"checkpoint": str(weights.folder)}
    if heldout:
        result |= perplexity.perplexity(perplexity.token_losses(forward, heldout, parallel.micro_batch))
    if heldout and other is not None:
        compared = divergence.compare(forward, load(run, other, parallel, grid), heldout, parallel.micro_batch)
        result["against"] = {"checkpoint": str(other.folder), **compared}
    if asked:
        judged = {name: choices.judge(forward, task, parallel.micro_batch) for name, task in asked.items()}
        result["tasks"] = {name: choices.summary(judged_task, run.details) for name, judged_task in judged.items()}
    if hidden:
        result["needle"] = needle.evaluate(forward, run.needle, hidden, tokenizer, parallel.micro_batch)
    if run.prompts:
        for line in perplexity.spelled(run.prompts, tokenizer) if grid.rank == 0 else ():
            print(line, flush=True)
        result["continuations"] = continuations(run, forward.chunks, grid, tokenizer)
    if grid.rank == 0:
        publish(run, result)
    mesh.close()
    return result


def load(run: config.Evaluate, weights: Pretrained, parallel: config.Parallel, grid: Grid) -> Forward:
    """The model that `weights` are of, on the layout of the evaluation."""
    from llama31.engine.pipeline import Forward
    from llama31.model import llama

    chunks = llama.build(weights.shape, weights.precision(run.precision), parallel, grid)
    weights.load(chunks, grid)
    return Forward(chunks, grid)


def publish(run: config.Evaluate, result: dict[str, Any]) -> None:
    """Print tables; write JSON to `output`, or print it too; draw the heat map beside `output`."""
    from llama31.runs import plots

    print(scorecard.text(result), flush=True)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    if not run.output:
        print(text)
        return
    write(Path(run.output), text + "\n")
    if "needle" in result and not Path(run.output).is_char_device():
        print(f"heat map: {plots.draw_recall(Path(run.output).with_suffix('.png'), result['needle'])}")


def write(path: Path, text: str) -> None:
    """Write a file whole, or to a device. Raises ValueError (key `output`) where that fails."""
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise ValueError(f"output={path}: cannot be written ({error}); the result stands above") from error


def continuations(run: config.Evaluate, chunks: list[Llama], grid: Grid, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Each prompt of `run` and how the model goes on, up to the end of the text or turn."""
    from llama31.evaluate.generate import generate

    prompts, stops = (
        [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in run.prompts],
        {tokenizer.eos_id, tokenizer.eot_id},
    )
    new = generate(
        chunks, grid, prompts, run.max_new_tokens, stops, run.temperature, run.top_p, run.seed, tokenizer.vocab_size
    )
    texts = [tokenizer.decode([token for token in tokens if token not in stops]) for tokens in new]
    return [{"prompt": prompt, "continuation": text} for prompt, text in zip(run.prompts, texts, strict=True)]


if __name__ == "__main__":
    start(main, config.Evaluate, "evaluate")
