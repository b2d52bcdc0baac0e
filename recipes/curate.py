"""Raw pages to token files (report, section 3.1).

Example: python -m recipes.curate name=web sources.crawl.input=WARCS sources.crawl.format=warc tokenizer=llama3 ...
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.curate.running.stages import CurationStage


def main(run: config.Curate) -> None:
    """Run what is not done of all stages, of one, or of one task. The same command goes on where it stopped."""
    from llama31.curate.running import folder, local, stages, tasks

    if run.task is not None and run.stage is not None:
        known = stages.stages(run, folder.opened(run))
        stage = stages.named(known, run.stage)
        outcome = tasks.execute(run, stage, run.task, {one.name: one for one in known})
        print(f"{stage.name}, task {run.task}: {'done before' if outcome.was_done else 'done'}")
        return
    with local.alone(Path(run.folder)):
        known = stages.stages(run, folder.opened(run))
        local.execute(run, known, known if run.stage is None else [stages.named(known, run.stage)])
        if run.stage is None:
            finish(run, known)


def finish(run: config.Curate, known: list[CurationStage]) -> None:
    """Write the report and what pre-training needs, and say where they are."""
    from llama31.curate.outcome import page, sources, summary
    from llama31.tokens import tokenizers

    folder = Path(run.folder)
    there = run.tokens.enabled and tokenizers.tokenizer_file(run.tokenizer).is_file()
    encode = tokenizers.load(run.tokenizer).encode if there else None
    length = None if encode is None else lambda text: len(encode(text))
    content = summary.summary(folder, run.name, known, run.report.samples, length)
    summary.write(folder, content)
    print(f"report: {page.write(folder, content)}")
    path = sources.write_data(folder, run.name, known)
    if path is not None:
        print(
            f"token files: {folder / 'tokens'}   for recipes.pretrain: --config-dir {path.parents[1]} data={run.name}"
        )


if __name__ == "__main__":
    start(main, config.Curate, "curate")
