"""What keeps a run of weeks alive: verdicts, watching, stopping, and going on where it stopped.

Imports: config, plan, planner, runs, data, parallel, checkpoint, engine.
Offers: attempt, resume, guard, ranks, watch and watchdog, stopping, preflight, expectation (what the
planner says against what a run takes).
"""
