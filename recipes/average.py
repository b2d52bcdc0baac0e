"""The average of checkpoints, or of Hugging Face folders.

Example: python -m recipes.average run=runs/anneal last=4 target=runs/anneal-average
"""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Average) -> None:
    """Average as `run` says, with a progress bar in bytes."""
    from tqdm import tqdm

    from llama31.convert import average

    with tqdm(unit="B", unit_scale=True, desc="average", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        report = average.run(run, progress)
    size, speed = report.written_bytes / 1e9, report.mb_per_s
    print(f"{report.target}: {size:.3g} GB in {report.elapsed_s:.1f} s ({speed:.0f} MB/s)")


if __name__ == "__main__":
    start(main, config.Average, "average")
