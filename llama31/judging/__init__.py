"""Which answers are good, and which model is.

Imports: config, runs, tokens, data, dialogs, parallel, model, engine, convert, evaluate, sampling, report.
Offers: score (rewards), ranking, rejection (best of K), judge, calibration, embedded (a model as its own server);
of two models, distribution (of rewards) and divergence (of predictions).
"""
