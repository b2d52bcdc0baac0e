"""What keeps a run of weeks alive: verdicts, watching, stopping, and going on where it stopped.

Imports: config, plan, runs, data, parallel, checkpoint, engine.
Offers: attempt, resume, guard, ranks, watch and watchdog, stopping, preflight.
"""
