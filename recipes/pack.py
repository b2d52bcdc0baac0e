"""Text to tokens on disk: `python -m recipes.pack data.sources.mine.input=FOLDER data.folder=packed/mine ...`.

Trains the tokenizer first where `tokenizer.kind=bpe` and there is none at `tokenizer.path`.
"""

from __future__ import annotations

from llama31 import config
from llama31.tokens import pack
from recipes import start


def main(run: config.Pack) -> None:
    """Pack every source that has an input."""
    if run.tokenizer.kind == "bpe":
        pack.train_tokenizer(run.data, run.tokenizer)
    for name in run.data.sources:
        pack.pack(run.data, name, run.tokenizer, run.overwrite)


if __name__ == "__main__":
    start(main, config.Pack, "pack")
