"""What failures would cost a run, and which knob buys most: `python -m recipes.simulate restart_s=120 table=true`."""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Simulate) -> None:
    """Simulate `run`, print the tables, and draw them where `output` says."""
    from llama31.plan import simulate
    from llama31.runs import plots

    simulate.check(run)
    histories = simulate.simulate(run)
    gains = simulate.sensitivities(run, histories)
    print(simulate.summary(run, histories))
    print(f"\n{simulate.lost_table(run, histories)}\n\n{simulate.cause_table(histories)}")
    print(f"\n{simulate.sensitivity_table(run, gains)}")
    if run.table:
        print(f"\neffective training time; bold: at least {run.goal:.0%}\n\n{simulate.goal_table(run)}")
    if run.output:
        lost = simulate.lost_shares(histories, run)
        panels = {
            "lost time by reason": {name: 100 * share.value for name, share in simulate.ranked(lost)},
            "gained by halving one knob": {name: 100 * gain.value for name, gain in gains.items()},
        }
        title = f"{run.gpus:,} GPUs, {run.days:g} days: {simulate.effective(histories).percent()} effective"
        print(f"drawn to {plots.draw_bars(run.output, title, panels, '% of the run')}")


if __name__ == "__main__":
    start(main, config.Simulate, "simulate")
