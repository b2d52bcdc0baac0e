"""What stands before the first step."""

from __future__ import annotations

from llama31 import config
from llama31.checkpoint import publish
from llama31.engine import state
from llama31.engine.pipeline import Engine
from llama31.model import llama
from llama31.parallel.mesh import Grid
from llama31.resilience.resume import Start


def open_engine(run: config.Training, grid: Grid, start: Start) -> Engine:
    """Weights drawn or loaded, then the optimizer, then its state where the run goes on."""
    fresh = start.weights is None
    chunks = llama.build(run.model, run.precision, run.parallel, grid, seed=run.seed if fresh else None)
    if start.weights is not None:
        new = (llama.REWARD_HEAD,) if start.head != run.model.head else ()
        state.load_weights(start.weights, chunks, run.model, grid, without=new)
        if new:
            llama.initialise_reward_head(chunks, run.model, grid, run.seed)
    engine = Engine(chunks, run.model, run.optimizer, run.precision, run.parallel, grid)
    if start.weights is not None and start.optimizer:
        state.load_optimizer(start.weights, engine, start.updates)
        publish.load_random(start.weights)
    return engine
