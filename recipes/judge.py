"""What a round of post-training has gained, as judge.json and one HTML page, from files alone.

Example: python -m recipes.judge folder=runs/rounds/round-02/judge answers=... previous=...
"""

from __future__ import annotations

from collections.abc import Mapping

from llama31 import config
from llama31.judging import distribution, judge
from recipes import start


def main(run: config.Judge) -> None:
    """Judge as `run` says, and tell the scores."""
    judgement, page = judge.write(run)
    scores = {"win rate": judgement["win_rate"]} if "win_rate" in judgement else {}
    scores |= {f"obeyed, {name.strip()}": proportion for name, proportion in judgement["answers"]["obeyed"].items()}
    scores |= {f"refused, {name}": proportion for name, proportion in judgement["answers"]["refused"].items()}
    for name, proportion in scores.items():
        print(f"{name:<28}{proportion['score']:7.1%} ± {proportion['ci95']:.1%}  of {proportion['count']:,}")
    if rewards := judgement.get("rewards"):
        print(distribution.text(rewards))
    for whose, account in (("of this model", judgement["answers"]), ("of the one before", judgement.get("previous"))):
        if account is not None:
            print(f"answers {whose}: {lengths(account['lengths'], judgement['prompts'])}")
    print(f"report: {page}")


def lengths(figures: Mapping[str, float], prompts: int) -> str:
    """How long answers are, and how many are missing, in words."""
    return (
        f"{figures['words, median']:g} words (median), {figures['unfinished']:.1%} unfinished, "
        f"{figures['unanswered']:,} of {prompts:,} prompts without an answer that has a reward"
    )


if __name__ == "__main__":
    start(main, config.Judge, "judge")
