"""Does the model find the needle? Recall over length and depth of the prompts of `haystack`, on any layout.

`recall` judges without decoding: an answer counts where each of its tokens is the likeliest after the prompt and the
answer so far, which is when greedy decoding writes it. It runs through the training's own pipeline, context parallelism
included, so training can ask it between two steps. `decoded_recall` decodes with the KV cache and looks for the answer
in what was written, as is usual for text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.engine.pipeline import Forward
from llama31.engine.scoring import ScoreRequest, answers
from llama31.evaluate import haystack
from llama31.evaluate.confidence import proportion
from llama31.evaluate.generate import generate
from llama31.evaluate.haystack import NeedlePrompt
from llama31.tokens import packed
from llama31.tokens.indexed import IndexedReader
from llama31.tokens.tokenizers import Tokenizer

CHARACTERS = 16  # of a text file per token of the longest haystack: more are not read


def recall(forward: Forward, prompts: Sequence[NeedlePrompt], micro_batch: int) -> NDArray[np.float64]:
    """Share [prompts] of each prompt's values that greedy decoding would write, equal on all ranks. Collective.

    Where several values were asked for, each is judged after the right ones before it.
    """
    requests = [ScoreRequest(np.concatenate([prompt.tokens, prompt.answer]), prompt.answer.size) for prompt in prompts]
    predicted = answers(forward, requests, micro_batch)
    shares = [
        [right[begin:end].all() for begin, end in p.spans] for p, (_, right) in zip(prompts, predicted, strict=True)
    ]
    return np.array([np.mean(share) for share in shares])


def decoded_recall(
    forward: Forward, prompts: Sequence[NeedlePrompt], tokenizer: Tokenizer, micro_batch: int, new_tokens: int
) -> NDArray[np.float64]:
    """Share [prompts] of each prompt's values that stand in its greedy continuation. Collective.

    Layouts are those of `generate`. Prompts are decoded in batches of `micro_batch` per replica.
    """
    shares = []
    size = micro_batch * forward.grid.dp
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        longest = new_tokens if batch[0].values else max(prompt.answer.size for prompt in batch)
        given = [prompt.tokens.tolist() for prompt in batch]
        stops = {tokenizer.eos_id, tokenizer.eot_id} if batch[0].values else set()
        new = generate(forward.chunks, forward.grid, given, longest, stops, vocab_size=tokenizer.vocab_size)
        shares += [_correct(prompt, tokens, tokenizer) for prompt, tokens in zip(batch, new, strict=True)]
    return np.array(shares)


def _correct(prompt: NeedlePrompt, new: list[int], tokenizer: Tokenizer) -> float:
    if prompt.values:
        text = tokenizer.decode(new)
        return float(np.mean([value in text for value in prompt.values]))
    return float(np.mean([new[begin:end] == prompt.answer[begin:end].tolist() for begin, end in prompt.spans]))


def table(prompts: Sequence[NeedlePrompt], shares: NDArray[np.float64]) -> dict[str, Any]:
    """Mean recall by depth (rows) and length (columns), by length, and in all, ready for JSON.

    Intervals count every value that was asked for as one answer.
    """
    lengths, depths = sorted({p.length for p in prompts}), sorted({p.depth for p in prompts})
    cells: dict[tuple[float, int], list[float]] = {(d, n): [] for d in depths for n in lengths}
    for prompt, share in zip(prompts, shares, strict=True):
        cells[prompt.depth, prompt.length] += [float(share)] * len(prompt.spans)
    by_length = {n: [share for d in depths for share in cells[d, n]] for n in lengths}
    return {
        "lengths": lengths,
        "depths": depths,
        "recall": [[float(np.mean(cells[depth, length])) for length in lengths] for depth in depths],
        "by_length": [proportion(of_length).json() for of_length in by_length.values()],
        "total": proportion([share for of_length in by_length.values() for share in of_length]).json(),
    }


def evaluate(
    forward: Forward, needle: config.Needle, prompts: Sequence[NeedlePrompt], tokenizer: Tokenizer, micro_batch: int
) -> dict[str, Any]:
    """`table` of the prompts, judged as `needle` says, and what was asked. Collective."""
    if needle.decode:
        shares = decoded_recall(forward, prompts, tokenizer, micro_batch, needle.answer_tokens)
    else:
        shares = recall(forward, prompts, micro_batch)
    settings = {name: getattr(needle, name) for name in ("kind", "inserted", "asked", "trials", "decode", "seed")}
    return settings | table(prompts, shares)


def prompts_of(
    needle: config.Needle, data: config.Data, split: str, tokenizer: Tokenizer, usual: int, most: int
) -> list[NeedlePrompt]:
    """The prompts that `needle` asks for: of its lengths, none above `most`, or up to `usual` where it names none.

    ValueError (keys needle.*) where that cannot be.
    """
    steps = haystack.lengths(needle, usual, most)
    if needle.kind == "tokens":
        return haystack.token_prompts(needle, haystack.printable(tokenizer), steps, tokenizer.bos_id)
    return haystack.text_prompts(needle, tokenizer, _text(needle, data, split, tokenizer, max(steps)), steps)


def _text(needle: config.Needle, data: config.Data, split: str, tokenizer: Tokenizer, longest: int) -> haystack.Ids:
    """Ids of the haystack: of a file, or of a packed source without the ids that begin and end its documents."""
    name = needle.haystack or next(iter(data.sources), "")
    if name in data.sources:
        ids = IndexedReader(packed.folder_of(data, name) / split).tokens[: 8 * longest].astype(np.int64)
        return ids[~np.isin(ids, [tokenizer.bos_id, tokenizer.eos_id])]
    try:
        with Path(name).open(encoding="utf-8") as file:
            return np.array(tokenizer.encode(file.read(CHARACTERS * longest)), np.int64)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"needle.haystack={name}: cannot be read ({error}); give a text file or a source") from error
