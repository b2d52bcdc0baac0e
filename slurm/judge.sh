#!/bin/bash
# sbatch slurm/judge.sh folder=runs/rounds/round-02/judge answers=... previous=...
# Judge a round from files alone. Arguments are those of `python -m recipes.judge`; one process, no GPU, seconds.
# bill: --nodes=1 prompts
#       0 GPUs
#
#SBATCH --job-name=judge
#SBATCH --nodes=1 --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%judge.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" judge "$@"
