"""The `data/` YAML of what was packed, with the mixture's weights, which pre-training reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.curate.mixing import advice, mixture, written
from llama31.curate.mixing import sources as packed
from llama31.curate.running import ledger
from llama31.curate.running.stages import CurationStage
from llama31.runs import files


def packed_sources(folder: Path, stage: CurationStage) -> dict[str, dict[str, Any]]:
    """What `packed.json` says of every packed source, by name."""
    found: dict[str, dict[str, Any]] = {}
    for rank in range(stage.tasks):
        record = ledger.read(folder, stage.name, rank)
        for one in ledger.left(record) if record else []:
            path = folder / stage.name / one.path
            content = files.read_object(path) if path.name == "packed.json" else None
            if content is not None:
                found[path.parent.name] = content
    return dict(sorted(found.items()))


def mixed(
    folder: Path, asked: config.MixtureShares, names: Collection[str] | None = None
) -> tuple[mixture.SourceMixture, list[str]]:
    """The mixture of what is packed in `folder`/tokens, and a line for each part that there is no text of.

    With `names` of these sources alone: others may be left of a run with more tasks.

    Raises ValueError where nothing is packed, or where no part with a share has text.
    """
    there = packed.of_folder(folder / "tokens", asked.main_languages)
    there = [one for one in there if names is None or one.name in names]
    wanted = {name: getattr(asked, name) for name in packed.SHARES}
    tokens = {part: sum(one.tokens for one in there if one.part == part) for part in wanted}
    shares = {part: share for part, share in wanted.items() if tokens[part]}
    absent = [part for part, share in wanted.items() if share and not tokens[part]]
    said = [f"mixture.{part}={wanted[part]:g}: there is no text of it; the other parts share it" for part in absent]
    if not any(shares.values()):
        raise ValueError(f"mixture: {folder / 'tokens'} holds no text of a part with a share; give one above 0")
    total = float(sum(one.tokens for one in there))
    languages = asked.language_shares or None
    try:
        made = mixture.mix(there, asked.train_tokens or total, shares, asked.temperature, languages, asked.most_epochs)
    except ValueError as error:
        raise ValueError(f"mixture.{error}") from error
    return made, said


def described(made: mixture.SourceMixture, asked: config.MixtureShares, said: list[str]) -> dict[str, Any]:
    """A mixture for the report: its keys, of each source part, weight and epochs, and what there is to say."""
    return {
        "keys": dataclasses.asdict(asked),
        "train_tokens": made.train_tokens,
        "sources": {
            one.source.name: {
                "part": one.source.part,
                "language": one.source.language,
                "weight": one.weight,
                "epochs": one.epochs,
                "repeated": one in made.repeated,
            }
            for one in made.sources
        },
        "said": [*said, *advice.warnings(made)],
    }


def write_data(folder: Path, name: str, made: mixture.SourceMixture) -> Path:
    """Write `conf/data/NAME.yaml` in the folder of the curation."""
    return written.write(made, folder / "conf" / "data" / f"{name}.yaml", str((folder / "tokens").resolve()))
