"""What failures would cost a run, and which knob buys most: `python -m recipes.simulate restart_s=120 table=true`."""

from __future__ import annotations

from llama31 import config
from recipes import start


def main(run: config.Simulate) -> None:
    """Simulate `run`, print the tables, and draw them where `output` says."""
    from llama31.failures import causes, results, simulation, tables
    from llama31.runs import plots

    causes.check(run)
    histories = simulation.simulate(run)
    gains = results.sensitivities(run, histories)
    print(tables.summary(run, histories))
    print(f"\n{tables.lost_table(run, histories)}\n\n{tables.cause_table(histories)}")
    print(f"\n{tables.sensitivity_table(run, gains)}")
    if run.table:
        print(f"\neffective training time; bold: at least {run.goal:.0%}\n\n{tables.goal_table(run)}")
    if run.output:
        lost = results.lost_shares(histories, run)
        panels = {
            "lost time by reason": {name: 100 * share.value for name, share in results.ranked(lost)},
            "gained by halving one knob": {name: 100 * gain.value for name, gain in gains.items()},
        }
        title = f"{run.gpus:,} GPUs, {run.days:g} days: {results.effective(histories).percent()} effective"
        print(f"drawn to {plots.draw_bars(run.output, title, panels, '% of the run')}")


if __name__ == "__main__":
    start(main, config.Simulate, "simulate")
