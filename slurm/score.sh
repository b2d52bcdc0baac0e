#!/bin/bash
# sbatch --nodes=1 slurm/score.sh input=held-out.jsonl output=scored.jsonl reward=runs/reward parallel.tp=8 cluster=h100
# Rewards of answers that files hold. Arguments are those of `python -m recipes.score`. Nothing is saved on the way.
#
# 100,000 answers with their prompts, of 1,000 tokens; loading the weights comes on top.
# bill: --nodes=1 model=8b tokens=100000000
#       8 GPUs, 100M tokens, 0.2 h, 1.6 GPU-h at 30% of 989 TFLOPS
# bill: --nodes=2 model=405b tokens=100000000
#       16 GPUs, 100M tokens, 4.9 h, 79 GPU-h at 30% of 989 TFLOPS
#
#SBATCH --job-name=score
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%score.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" score "$@"
