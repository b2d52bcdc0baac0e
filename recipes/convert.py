"""Weights in Hugging Face's or Meta's format to a checkpoint, and a checkpoint to either format.

Example: python -m recipes.convert direction=from_hf hf=Llama-3.1-8B checkpoint=runs/llama-8b
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Convert) -> None:
    """Convert as `run` says, with a progress bar in bytes."""
    from tqdm import tqdm

    from llama31.convert import checkpoints

    with tqdm(unit="B", unit_scale=True, desc=run.direction, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        report = checkpoints.run(run, progress)
    size, speed = report.written_bytes / 1e9, report.mb_per_s
    print(f"{report.target}: {size:.3g} GB in {report.elapsed_s:.1f} s ({speed:.0f} MB/s)")


if __name__ == "__main__":
    start(main, config.Convert, "convert")
