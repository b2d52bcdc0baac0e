"""Mathematics (report, section 4.3.3): questions from text, solutions in steps or with Python, checked.

Imports: config, sandbox, dialogs, sampling, synth.pipeline, synth.equality.
Offers: solutions (steps, final answers, votes), questions (task=questions), solving (task=mathematics), and what it
does: rollouts (labels of steps), search (a tree of steps), scoring (of steps; reward_servers), programs (Python
between text), corrections (of wrong solutions).
"""
