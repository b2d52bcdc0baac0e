"""What a round of post-training has gained, as judge.json and one HTML page, from files alone.

Example: python -m recipes.judge folder=runs/rounds/round-02/judge answers=... previous=...
"""

from __future__ import annotations

from collections.abc import Mapping

from llama31 import config
from llama31.judging import judge
from recipes import start


def main(run: config.Judge) -> None:
    """Judge as `run` says, and tell the scores."""
    told, page = judge.write(run)
    scores = {"win rate": told["win_rate"]} if "win_rate" in told else {}
    scores |= {f"obeyed, {name.strip()}": found for name, found in told["answers"]["obeyed"].items()}
    scores |= {f"refused, {name}": found for name, found in told["answers"]["refused"].items()}
    for name, found in scores.items():
        print(f"{name:<28}{found['score']:7.1%} ± {found['ci95']:.1%}  of {found['count']:,}")
    for whose, found in (("of this model", told["answers"]), ("of the one before", told.get("previous"))):
        if found is not None:
            print(f"answers {whose}: {lengths(found['lengths'], told['prompts'])}")
    print(f"report: {page}")


def lengths(found: Mapping[str, float], prompts: int) -> str:
    """How long answers are, and how many are missing, in words."""
    return (
        f"{found['words, median']:g} words (median), {found['unfinished']:.1%} unfinished, "
        f"{found['unanswered']:,} of {prompts:,} prompts without an answer that has a reward"
    )


if __name__ == "__main__":
    start(main, config.Judge, "judge")
