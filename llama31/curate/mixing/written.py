"""The mixture as the `data/` YAML of pre-training, and as a table for the console."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from llama31.curate.mixing import advice
from llama31.curate.mixing.mixture import SourceMixture
from llama31.runs import files

NAME = re.compile(r"[A-Za-z_][\w-]*")
DIGITS = 6  # of a weight, in percent: a source of 0.001 % is still right to a thousandth of itself


def percent(weight: float) -> float:
    """A weight as it is written, in percent."""
    return float(f"{100 * weight:.{DIGITS}g}")


def text(mixture: SourceMixture, folder: str, name: str) -> str:
    """The YAML: sources with weights in percent, those that are not read left out, and what they come to as comments.

    `folder` is that of the packed sources, `name` the one of the file, as in data=NAME. Raises ValueError for names of
    sources that cannot stand in a key.
    """
    if wrong := [one.source.name for one in mixture.sources if not NAME.fullmatch(one.source.name)]:
        raise ValueError(f"sources: {wrong[0]!r} cannot stand in data.sources.NAME; use letters, digits, _ and -")
    sources: dict[str, dict[str, str | float]] = {}
    for one in mixture.sources:
        if one.weight:
            packed = {"packed": _escaped(one.source.packed)} if one.source.packed else {}
            sources[one.source.name] = {**packed, "weight": percent(one.weight)}
    shares = ", ".join(f"{part} {share:.4g}" for part, share in mixture.shares.items())
    head = [
        f"python -m recipes.pretrain data={name} ...",
        f"Shares: {shares}; weights in percent of {mixture.train_tokens:,.0f} tokens. Epochs:",
        *(f"  {one.source.name} {one.epochs:.4g}" for one in mixture.sources if one.weight),
        *(f"Not read: {one.source.name}" for one in mixture.sources if not one.weight),
        *(f"Warning: {line}" for line in advice.warnings(mixture)),
    ]
    content = {"folder": _escaped(folder), "sources": sources}
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write(mixture: SourceMixture, path: str | Path, folder: str) -> Path:
    """Write the YAML to `path`, `DIR/data/NAME.yaml` for --config-dir DIR and data=NAME; returns it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, text(mixture, folder, path.stem))
    return path


def table(mixture: SourceMixture) -> str:
    """Lines for the console: of each source tokens, weight, tokens that are read of it, epochs; warnings below."""
    names = [one.source.name for one in mixture.sources]
    width = max([len("source"), *map(len, names)])
    rows = [f"{'source':<{width}}  {'part':<12} {'tokens':>20} {'weight':>9} {'read':>20} {'epochs':>8}"]
    possible = advice.possible(mixture).weights if mixture.repeated else {}
    for one in mixture.sources:
        row = f"{one.source.name:<{width}}  {one.source.part:<12} {one.source.tokens:>20,} {one.weight:>9.3%} "
        row += f"{one.weight * mixture.train_tokens:>20,.0f} {one.epochs:>8.2f}"
        rows.append(row + (f"   possible: {possible[one.source.name]:.3%}" if possible else ""))
    return "\n".join([*rows, *(f"warning: {line}" for line in advice.warnings(mixture))])


def _escaped(text: str) -> str:
    """As data for OmegaConf, to which ${ begins an interpolation unless a backslash precedes it."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)
