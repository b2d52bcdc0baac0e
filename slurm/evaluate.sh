#!/bin/bash
# sbatch --nodes=2 slurm/evaluate.sh checkpoint=runs/first data=own parallel.tp=8 parallel.pp=2 cluster=h100 ...
# Held-out loss and continuations. Arguments are those of `python -m recipes.evaluate`. Nothing is saved on the way.
#
# Forward passes alone; loading the weights takes longer.
# bill: --nodes=1 model=8b tokens=131072
#       8 GPUs, 131K tokens, 0.00026 h, 0.0021 GPU-h at 30% of 989 TFLOPS
# bill: --nodes=2 model=405b tokens=131072
#       16 GPUs, 131K tokens, 0.0065 h, 0.1 GPU-h at 30% of 989 TFLOPS
#
#SBATCH --job-name=evaluate
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=02:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%evaluate.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" evaluate "$@"
