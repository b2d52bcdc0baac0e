#!/bin/bash
# sbatch slurm/average.sh run=runs/anneal target=runs/anneal-average
# The average of checkpoints. Arguments are those of `python -m recipes.average`; one process, no GPU.
#
# Disks decide; this is at 200 MB/s for reading and writing, with the ten checkpoints that the annealing leaves.
# bill: --nodes=1 model=8b inputs=10
#       0 GPUs, 16 GB read 10 times and written, 0.25 h
# bill: --nodes=1 model=70b inputs=10
#       0 GPUs, 141 GB read 10 times and written, 2.2 h
# bill: --nodes=1 model=405b inputs=10
#       0 GPUs, 812 GB read 10 times and written, 12 h
#
#SBATCH --job-name=average
#SBATCH --nodes=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%average.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" average "$@"
