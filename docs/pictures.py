"""Draw the pictures of these pages as SVG, text as text: `python docs/pictures.py`.

`way.svg` shows the way from text to an aligned model, `house.svg` the packages as import-linter holds them
(`pyproject.toml`) and the calls of a training step. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
STYLE = """
text { font: 13px -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #1f2328; }
.head { font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.code { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #0a4fa8; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.sheet { fill: #ffffff; stroke: #d1d9e0; }
.box { fill: #f3f6fa; stroke: #8c98a5; }
.data { fill: #fdf6e3; stroke: #b8a15a; }
.result { fill: #eaf6ec; stroke: #5f9c6c; }
.frame { fill: none; stroke: #8c98a5; stroke-dasharray: 5 4; }
.light { stroke-dasharray: 4 3; }
.way { fill: none; stroke: #59636e; stroke-width: 1.4; }
.tip { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9aa5b1; }
  .code { fill: #79b8ff; }
  .sheet { fill: #0d1117; stroke: #3d444d; }
  .box { fill: #1a222c; stroke: #6b7785; }
  .data { fill: #2b2613; stroke: #96834a; }
  .result { fill: #14261a; stroke: #4f8a5c; }
  .frame { stroke: #6b7785; }
  .way { stroke: #9aa5b1; }
  .tip { fill: #9aa5b1; }
}
"""


def label(x: float, y: float, text: str, kind: str) -> str:
    """Text whose baseline is at y."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>'


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    head: str,
    small: Iterable[str],
    code: Iterable[str],
    kind: str = "box",
) -> list[str]:
    """A box with a headline, small lines and, at its foot, the recipes that do it."""
    middle, code = x + width / 2, list(code)
    parts = [rectangle(x, y, width, height, kind), label(middle, y + 20, head, "head middle")]
    parts += [label(middle, y + 37 + 14 * i, line, "small middle") for i, line in enumerate(small)]
    foot = y + height - 9 - 14 * (len(code) - 1)
    return parts + [label(middle, foot + 14 * i, line, "code middle") for i, line in enumerate(code)]


def way(*points: tuple[float, float]) -> str:
    """An arrow along points."""
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {path}" class="way" marker-end="url(#tip)"/>'


def sheet(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG on a sheet of its own, so that it can be read on any background."""
    tip = '<path d="M 0 0 L 8 4 L 0 8 z" class="tip"/>'
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
        f'  viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">',
        f"{tip}</marker></defs>",
        rectangle(0.5, 0.5, width - 1, height - 1, "sheet"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def from_text_to_an_aligned_model() -> str:
    """Above pre-training with what it ends in, below the rounds of post-training, at the foot what all share."""
    parts, top, gap = [label(16, 26, "Pre-training", "head")], 40, 16
    stages = (
        (104, "Text", ("pages; JSONL,", "source trees"), ("curate", "classify"), "data"),
        (92, "Tokens", ("and a", "tokenizer"), ("pack",), "box"),
        (122, "Pre-training", ("any layout of", "processes"), ("pretrain",), "box"),
        (
            182,
            "Long context",
            ("8K to 128K in stages", "that gates end"),
            ("pretrain", "--config-name long_context"),
            "box",
        ),
        (144, "Annealing", ("learning rate", "to 0"), ("pretrain", "--config-name anneal"), "box"),
        (88, "Averaging", ("of its", "checkpoints"), ("average",), "box"),
    )
    x, height, edges = 16.0, 92, []
    for width, head, small, code, kind in stages:
        parts += box(x, top, width, height, head, small, code, kind)
        edges.append((x, x + width))
        x += width + gap
    parts += [way((left[1], top + 46), (right[0], top + 46)) for left, right in itertools.pairwise(edges)]
    measured, low = edges[2][0], top + height + 22
    parts += [way(((left + right) / 2, top + height), ((left + right) / 2, low)) for left, right in edges[2:5]]
    end = edges[4][1]
    measures = ("held-out loss by source and position, tasks, needles; what a source of data is worth",)
    parts += box(measured, low, end - measured, 66, "Evaluation", measures, ("evaluate · probe",), "result")
    down = (edges[5][0] + edges[5][1]) / 2
    rounds = low + 94
    parts.append(way((down, top + height), (down, rounds)))
    parts.append(label(down - 8, rounds - 10, "the model to align", "small end"))
    parts += post_training(rounds, down)
    return sheet(844, rounds + 276, "The way from text to an aligned model", parts)


def post_training(top: float, down: float) -> list[str]:
    """The rounds in a frame, the records that go in, and the export and other commands beneath."""
    parts = [rectangle(136, top, 692, 168, "frame"), label(150, top + 22, "Post-training, in rounds", "head")]
    parts.append(label(322, top + 22, "post_train", "code"))
    row, height = top + 36, 82
    parts += box(
        16, row, 104, height, "Records", ("dialogs, prompts,", "preferences"), ("synthesize", "filter_data"), "data"
    )
    stages = (
        ("Reward", "model", ("reward", "score")),
        ("Sampling", "best of K", ("sample",)),
        ("SFT", "on the best", ("sft",)),
        ("DPO", "on preferences", ("dpo",)),
        ("Averaging", "of variants", ("average",)),
        ("Judge", "win rate", ("judge",)),
    )
    width, gap, x = 98, 16, 150.0
    parts.append(way((120, row + 41), (x, row + 41)))
    for i, (head, small, code) in enumerate(stages):
        parts += box(x, row, width, height, head, (small,), code)
        if i:
            parts.append(way((x - gap, row + 41), (x, row + 41)))
        x += width + gap
    judge, sampling, low = x - gap - width / 2, 150 + width + gap + width / 2, row + height + 22
    parts.append(way((judge - 20, row + height), (judge - 20, low), (sampling, low), (sampling, row + height)))
    parts.append(
        label((judge + sampling) / 2, low + 16, "the best model of a round answers in the next", "small middle")
    )
    foot = top + 194
    parts.append(way((judge + 20, row + height), (judge + 20, foot)))
    parts += box(598, foot, 230, 66, "Hugging Face format", ("for transformers and vLLM",), ("convert",), "result")
    beside = ("jobs of Slurm with a bill, runs as a page, what failures and layouts cost, what small runs say",)
    return parts + box(16, foot, 566, 66, "Beside the steps", beside, ("submit · report · simulate · plan · scaling",))


def packages() -> tuple[list[list[str]], set[str]]:
    """Packages by layer, the highest first, and those that load no torch, of import-linter's contracts."""
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    light = next(contract["source_modules"] for contract in contracts if contract["type"] == "forbidden")
    names = [[name.strip().removeprefix("llama31.") for name in layer.split("|")] for layer in layers]
    return names, {name.removeprefix("llama31.") for name in light}


OPENED = ("data", "model", "optimizer", "where to start")
EVENTS = (
    "batch", "gradients and norm", "verdict of the guard", "learning rate", "update", "record", "validation",
    "checkpoint",
)  # fmt: skip


def packages_and_calls() -> str:
    """On the left the layers, on the right the calls of a step."""
    layers, light = packages()
    parts, top, width, height, gap = [label(16, 26, "Packages: each imports from below", "head")], 42, 400, 34, 8
    for i, names in enumerate(layers):
        share = (width - gap * (len(names) - 1)) / len(names)
        for j, name in enumerate(names):
            x, y = 16 + j * (share + gap), top + i * (height + gap)
            parts.append(rectangle(x, y, share, height, f"box{' light' if name in light else ''}"))
            parts.append(label(x + share / 2, y + 21, name, "code middle"))
    bottom = top + len(layers) * (height + gap)
    parts.append(rectangle(16, bottom + 6, 28, 14, "box light"))
    parts.append(label(52, bottom + 17, "kept free of torch", "small"))
    parts += calls(452, top, bottom - gap)
    return sheet(844, bottom + 34, "Packages in layers, and the calls of a training step", parts)


def calls(x: float, top: float, bottom: float) -> list[str]:
    """The command, `main`, `setup` beside `fit` with its order of events, and the engine, down to `bottom`."""
    parts, width, gap = [label(x, 26, "A step: main, fit, Engine", "head")], 376, 22
    main, row, foot = top + 52 + gap, top + 138 + gap, bottom - 90
    left, right, height = 150, 182, foot - gap - row
    fit = x + width - right
    parts += box(
        x, top, width, 52, "Command", ("torchrun -m recipes.pretrain, or sbatch slurm/pretrain.sh",), (), "data"
    )
    parts += box(x, main, width, 64, "main", ("opens the data, sets up, trains",), ("recipes/pretrain.py",))
    parts += box(x, row, left, height, "setup", (), ("train/setup.py",))
    parts += box(fit, row, right, height, "fit", (), ("train/loop.py",))
    step = (height - 80) / (len(EVENTS) - 1)
    parts += [label(fit + 28, row + 42 + step * i, f"{i + 1}  {event}", "small") for i, event in enumerate(EVENTS)]
    parts += [label(x + 28, row + 42 + step * i, text, "small") for i, text in enumerate(OPENED)]
    engine = ("accumulate: forward, backward, norm", "apply: AdamW, each rank on its part of the state")
    parts += box(x, foot, width, 90, "Engine", engine, ("engine/pipeline.py",))
    parts.append(label((x + left + fit) / 2, row + height / 2 - 8, "State", "small middle"))
    ways = (
        ((x + width / 2, top + 52), (x + width / 2, main)),
        ((x + left / 2, main + 64), (x + left / 2, row)),
        ((x + left, row + height / 2), (fit, row + height / 2)),
        ((fit + right / 2, main + 64), (fit + right / 2, row)),
        ((fit + right / 2, row + height), (fit + right / 2, foot)),
    )
    return parts + [way(*points) for points in ways]


def pictures() -> dict[str, str]:
    """Every picture by the name of its file."""
    return {"way.svg": from_text_to_an_aligned_model(), "house.svg": packages_and_calls()}


if __name__ == "__main__":
    for name, svg in pictures().items():
        (DOCS / name).write_text(svg, encoding="utf-8")
