"""Raw pages to token files (report, section 3.1).

Example: python -m recipes.curate name=web sources.crawl.input=WARCS sources.crawl.format=warc tokenizer=llama3 ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.curate.running.stages import CurationStage


def main(run: config.Curate) -> None:
    """Run, submit or print what is not done. The same command goes on where it stopped."""
    from llama31.curate.running import folder, local, stages

    if run.stage is not None and (run.task is not None or run.stage == "report"):
        alone(run, stages.stages(run, folder.joined(run)))
        return
    with local.alone(Path(run.folder)):
        begun = folder.opened(run)
        known = stages.stages(run, begun.tasks)
        if run.submit or run.dry_run:
            submit(run, known, begun.inputs)
            return
        local.execute(run, known, known if run.stage is None else [stages.named(known, run.stage)])
        if run.stage is None:
            finish(run, known)


def alone(run: config.Curate, known: list[CurationStage]) -> None:
    """Tasks of a stage, as an element of an array runs them, or the report, which comes after all of them."""
    from llama31.curate.running import local, stages

    if run.stage == "report":
        finish(run, known)
        return
    stage = stages.named(known, str(run.stage))
    local.element(run, known, stage, range(run.task or 0, stage.tasks, run.stride or stage.tasks))


def submit(run: config.Curate, known: list[CurationStage], inputs: dict[str, Any]) -> None:
    """Print what is not done with its bill, and the commands of Slurm; submit them unless the run is dry."""
    from llama31.curate.outcome import costs
    from llama31.curate.running import tasks
    from llama31.curate.running.stages import CurationStage
    from llama31.slurm import arrays

    missing = tasks.missing(run, known)
    size = costs.input_bytes(run.sources, inputs)
    asked = costs.models(run.language, run.cited, run.encoders, run.knowledge, run.minhash)
    print("\n".join(costs.table(known, missing, size, asked)), flush=True)
    if run.submit:
        report = CurationStage("report", "the page", 1, 4.0, needs=tuple(stage.name for stage in known))
        arrays.submit(
            run, [*known, report], {**missing, "report": [0]}, sys.argv[1:], lambda text: print(text, flush=True)
        )


def finish(run: config.Curate, known: list[CurationStage]) -> None:
    """Write the report and what pre-training needs, and say where they are."""
    from llama31.curate.mixing import written
    from llama31.curate.outcome import page, sources, summary
    from llama31.tokens import tokenizers

    folder = Path(run.folder)
    there = tokenizers.tokenizer_file(run.tokenizer).is_file()
    encode = tokenizers.load(run.tokenizer).encode if there else None
    length = None if encode is None else lambda text: len(encode(text))
    content = summary.summary(folder, run.name, known, run.report.samples, length)
    packed = content["packed"]
    try:
        mixture, said = sources.mixed(folder, run.mixture, packed) if packed else (None, [])
        content["mixture"] = mixture and sources.described(mixture, run.mixture, said)
    finally:
        summary.write(folder, content)
        print("\n".join([summary.said(content), *summary.warnings(content)]))
        print(f"report: {page.write(folder, content)}")
    if mixture is None:
        left = folder / known[-1].name / "documents"
        documents = f"documents, as recipes.classify reads them: {left}/*.jsonl.zst"
        print("no token files" if run.tokens.enabled else documents if left.is_dir() else "no document is left")
        return
    path = sources.write_data(folder, run.name, mixture)
    print("\n".join([written.table(mixture), *said]))
    print(f"token files: {folder / 'tokens'}   for recipes.pretrain: --config-dir {path.parents[1]} data={run.name}")


if __name__ == "__main__":
    start(main, config.Curate, "curate")
