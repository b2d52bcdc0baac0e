#!/bin/bash
# sbatch slurm/average.sh 'inputs=[runs/a,runs/b]' target=runs/average
# The average of checkpoints. Arguments are those of `python -m recipes.average`; one process, no GPU.
#
# Disks decide; this is one input read and the average written, at 200 MB/s: every further input adds half of it.
# bill: --nodes=1 model=8b
#       0 GPUs, 16 GB read and written, 0.045 h
# bill: --nodes=1 model=405b
#       0 GPUs, 812 GB read and written, 2.3 h
#
#SBATCH --job-name=average
#SBATCH --nodes=1 --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
: "${LLAMA31_HOME:=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/slurm/[a-z_]*\.sh.*|\1|p')}"
source "$LLAMA31_HOME/slurm/env.sh"
exec "$LLAMA31_HOME/slurm/launch.sh" average "$@"
