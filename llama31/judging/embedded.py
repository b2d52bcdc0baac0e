"""Our own decoder as the source of answers: no server, any TP x PP x DP layout, all processes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llama31 import config
from llama31.sampling import answers
from llama31.sampling.drawing import Policy, Task, line_of, seed_of, temperature_of
from llama31.tokens import chat, template

if TYPE_CHECKING:
    from llama31.model.llama import Llama
    from llama31.parallel.mesh import Grid
    from llama31.tokens.tokenizers import Tokenizer


class Embedded:
    """Answers of a model that stands in this process (and its peers). `draw` is collective."""

    def __init__(
        self, chunks: list[Llama], grid: Grid, tokenizer: Tokenizer, policy: Policy, sampling: config.Sampling
    ) -> None:
        self.chunks, self.grid, self.tokenizer, self.form = chunks, grid, tokenizer, chat.Format(tokenizer)
        self.policy, self.sampling, self.ends = policy, sampling, template.stops(tokenizer)

    def draw(self, tasks: Sequence[Task]) -> Iterator[list[dict[str, Any]]]:
        """Lines of the tasks, batch by batch, prompts of like length together, equal on all ranks.

        An answer depends on its line's `seed` and `choice` alone, not on the others of its batch.
        """
        from llama31.evaluate.generate import generate

        run, ends = self.sampling, set(self.ends.values())
        room = self.chunks[0].max_sequence_length - run.max_new_tokens
        todo = sorted(tasks, key=lambda task: len(task[0].ids))
        for begin in range(0, len(todo), run.batch):
            batch = todo[begin : begin + run.batch]
            seed = seed_of(run.seed, *(f"{prompt.id}:{k}" for prompt, k in batch))
            fits = [(number, task) for number, task in enumerate(batch) if len(task[0].ids) <= room]
            new = generate(
                self.chunks, self.grid, [task[0].ids for _, task in fits], run.max_new_tokens, ends,
                [temperature_of(task[0], run) for _, task in fits], run.top_p, seed, self.tokenizer.vocab_size,
            )  # fmt: skip
            drawn = dict(zip((number for number, _ in fits), enumerate(new)))
            yield [self._line(task, seed, drawn.get(number), room) for number, task in enumerate(batch)]

    def _line(self, task: Task, seed: int, given: tuple[int, list[int]] | None, room: int) -> dict[str, Any]:
        if given is None:
            why = f"the prompt has {len(task[0].ids)} tokens, and there is room for {room}"
            return line_of(task, self.policy, self.sampling, seed, refused=why, server="embedded")
        choice, ids = given
        record = answers.of_ids(ids, self.form, self.tokenizer, self.ends).record()
        return line_of(task, self.policy, self.sampling, seed, **record, choice=choice, server="embedded")
