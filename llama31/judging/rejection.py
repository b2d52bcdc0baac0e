"""What `recipes.sample` does: prompts, policy and reward model of a config, put to work. Torch is imported when needed.

Policy and reward model stand in memory one after the other, on the same layout.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config
from llama31.judging import embedded, ranking
from llama31.sampling import capability_probe, drawing, prompts, servers
from llama31.sampling.filters import Candidate
from llama31.sampling.prompts import Prompt
from llama31.tokens import chat, template

if TYPE_CHECKING:
    from llama31.convert.pretrained import Pretrained
    from llama31.judging.score import RewardScorer
    from llama31.parallel.mesh import Grid
    from llama31.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class Session:
    """A config and what it names."""

    run: config.Sample
    folder: Path
    prompts: Sequence[Prompt]
    repeated: int
    weights: Pretrained
    tokenizer: Tokenizer
    policy: drawing.Policy

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return os.environ.get("RANK", "0") == "0"

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)


def open_session(run: config.Sample) -> Session:
    """Read prompts and policy, and state in the folder what is drawn with. Raises ValueError as those do."""
    from llama31.convert import pretrained
    from llama31.tokens import tokenizers

    drawing.check(run, int(os.environ.get("WORLD_SIZE", "1")))
    weights = pretrained.find(run.policy)
    tokenizer = tokenizers.load(weights.tokenizer(run.tokenizer))
    left_out = Counter[str]()
    given, repeated = prompts.read(run.prompts, chat.Format(tokenizer), run.limit, left_out)
    policy = drawing.Policy(str(weights.folder), drawing.fingerprint(weights.folder))
    session = Session(run, Path(run.folder), given, repeated, weights, tokenizer, policy)
    if session.first:
        further, draws = {"tokenizer": tokenizer.fingerprint}, run.part != "rank"
        if draws:
            further["api"] = run.server.api if run.server.urls else "embedded"
        drawing.settle(session.folder, policy, run.sampling if draws else None, further, given)
    twice = f" ({repeated:,} records repeat one of them)" if repeated else ""
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        session.say(f"prompts left out: {reasons}")
    session.say(f"{len(given):,} prompts{twice}, {run.sampling.answers} answers each, of {weights.folder}")
    return session


def to_draw(session: Session) -> list[drawing.Task]:
    """The answers that are missing. ValueError where our own decoder cannot give them on the layout of the config."""
    run = session.run
    tasks = drawing.missing(
        session.prompts, run.sampling.answers, drawing.read_lines(session.folder / drawing.CANDIDATES)
    )
    there = len(session.prompts) * run.sampling.answers - len(tasks)
    session.say(f"{there:,} answers are there, {len(tasks):,} to be drawn")
    if tasks and not run.server.urls:
        from llama31.evaluate import perplexity

        perplexity.check_layout(session.weights.shape, _decoding(run.parallel))
        perplexity.check_vocabulary(session.tokenizer.vocab_size, session.weights.shape)
    return tasks


def draw(session: Session, tasks: Sequence[drawing.Task], source: drawing.AnswerSource) -> None:
    """Draw the missing answers from `source`: `connect` or `load_policy` makes one."""
    from tqdm import tqdm

    with tqdm(total=len(tasks), desc="answers", disable=None if session.first else True) as bar:

        def said(done: int, total: int) -> None:
            bar.update(done - bar.n)

        drawing.draw(session.folder, tasks, source, said, session.first)
    if session.first:
        _tell_refused(session)


def _tell_refused(session: Session) -> None:
    path = session.folder / drawing.CANDIDATES
    refused = [line for line in drawing.read_lines(path) if "refused" in line]
    if refused:
        session.say(
            f"{len(refused):,} answers, to {len({line['prompt'] for line in refused}):,} prompts, were refused, the "
            f"last since: {refused[-1]['refused']}; remove their lines from {path} to try them again"
        )


def connect(session: Session, tasks: Sequence[drawing.Task]) -> drawing.AnswerSource:
    """The servers of the config, probed for what they honour with a prompt of `tasks`."""
    run = session.run
    # a long one may not fit, and one that spells a special token is refused by some
    asked = {task[0].id: task[0] for task in tasks}.values()
    prompt = min(asked, key=lambda one: (servers.spelled_special(one.ids, session.tokenizer) is not None, len(one.ids)))
    example = drawing.request_of(prompt, run.sampling)
    connected = capability_probe.connect(run.server, session.tokenizer, template.stops(session.tokenizer), example)
    for server in connected:
        session.say(server.capabilities.summary() if server.capabilities else server.url)
    return drawing.Http(connected, run.server, session.policy, run.sampling)


def _decoding(parallel: config.Parallel) -> config.Parallel:
    return replace(parallel, sequence_parallel=False)  # decoding cannot use it


def load_policy(session: Session, grid: Grid) -> drawing.AnswerSource:
    """Our own decoder of the policy, on the processes of `grid`. Collective."""
    import torch.distributed as dist

    from llama31.model import llama

    run, weights = session.run, session.weights
    chunks = llama.build(weights.shape, weights.precision(run.precision), _decoding(run.parallel), grid)
    weights.load(chunks, grid)
    dist.barrier()  # all know what is missing before anything is added to it
    return embedded.Embedded(chunks, grid, session.tokenizer, session.policy, run.sampling)


@dataclass
class Pending:
    """Answers, and the scores that a reward model gave them; `unscored` have none yet."""

    model: drawing.Policy
    limit: int  # tokens of a dialog that the reward model reads
    answers: Mapping[str, Sequence[Candidate]]  # by prompt
    refused: int
    scores: ranking.Scores
    unscored: Sequence[Candidate]
    foreign: frozenset[tuple[str, int]] = frozenset()  # answers in another language than was asked for


def to_rank(session: Session, reward: str) -> Pending:
    """Which answers are there, and which of them `reward`, a reward model, has scored. Collective."""
    import torch.distributed as dist

    from llama31.convert import pretrained

    run, folder = session.run, session.folder
    weights = pretrained.find(reward)
    model = drawing.Policy(str(weights.folder), drawing.fingerprint(weights.folder))
    limit = min(run.score_tokens, weights.shape.max_positions)
    if dist.is_initialized():
        dist.barrier()  # all answers are in the file
    answers, refused = ranking.candidates(folder, drawing.known(session.prompts), run.sampling.answers)
    foreign = _foreign(session, answers)
    scores = ranking.rewards(drawing.read_lines(folder / drawing.SCORES), model.fingerprint, answers, limit)
    return Pending(model, limit, answers, refused, scores, ranking.unscored(answers, scores, foreign), foreign)


def _foreign(session: Session, answers: Mapping[str, Sequence[Candidate]]) -> frozenset[tuple[str, int]]:
    """Answers that no reward model need read, by `filters.language_model`."""
    model = session.run.filters.language_model
    if model is None:
        return frozenset()
    from llama31.synth.multilingual.languages import LanguageMatch

    return ranking.foreign(answers, session.prompts, LanguageMatch(model).matches)


def score(session: Session, pending: Pending, scorer: RewardScorer) -> None:
    """Score what has no score yet. Collective."""
    import torch.distributed as dist

    dist.barrier()  # all know what has a score before anything is added to it

    def scored(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
        return scorer.readable([[*prompt.messages, message] for prompt, message in pairs], pending.limit)

    fresh = ranking.score(
        session.folder, session.prompts, pending.unscored, pending.model, scored, pending.limit, writes=session.first
    )
    pending.scores = {**pending.scores, **fresh}


def publish(session: Session, pending: Pending) -> None:
    """Write the best answers and pairs and say what came out, on the first process; the others wait."""
    import torch.distributed as dist

    if session.first:
        _publish(session, pending)
    if dist.is_initialized():
        dist.barrier()


def _publish(session: Session, pending: Pending) -> None:
    from llama31.runs import plots

    further: dict[str, Any] = {"refused": pending.refused}
    further |= {"policy": {"name": session.policy.name, "fingerprint": session.policy.fingerprint}}
    summary = ranking.publish(
        session.folder,
        session.prompts,
        pending.answers,
        pending.scores,
        pending.model,
        session.run.filters,
        session.run.pairs,
        further,
        pending.foreign,
    )
    dropped = (
        ", ".join(f"{reason} {count:,}" for reason, count in Counter(summary["dropped"]).most_common()) or "nothing"
    )
    session.say(f"{summary['answers']:,} answers to {summary['prompts']:,} prompts; dropped: {dropped}")
    if summary["kept"]:
        session.say(
            f"reward of the best {summary['reward_best']:.4f}, of all {summary['reward_mean']:.4f}; "
            f"{summary['kept']:,} dialogs in {session.folder / drawing.BEST}, "
            f"{summary['pairs']:,} pairs in {session.folder / drawing.PAIRS}"
        )
        title = f"best of {session.run.sampling.answers}"
        plots.draw_histograms(session.folder / drawing.PICTURE, title, summary["rewards"], "reward")
