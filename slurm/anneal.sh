#!/bin/bash
# sbatch --nodes=2048 slurm/anneal.sh name=anneal model=405b parallel=405b_128k init_from=RUN data=report_anneal ...
# The annealing. Arguments are those of `python -m recipes.pretrain --config-name anneal`.
#
# The share is the report's at 128K tokens (Table 4).
# bill: --nodes=2048 model=405b parallel=405b_128k cluster=h100
#       16,384 GPUs, 40B tokens, 7.3 h, 119,660 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_128k schedule=anneal_40m cluster=h100
#       16,384 GPUs, 50.3M tokens, 0.0092 h, 151 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=32 model=8b parallel=8b_1node parallel.cp=16 cluster=h100
#       256 GPUs, 40B tokens, 17 h, 4,380 GPU-h at 38% of 989 TFLOPS
#
#SBATCH --job-name=anneal
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=7-00:00:00
# Slurm may send it a minute early and half a minute late; a checkpoint of 405B has to fit into the rest.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%anneal.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" pretrain --config-name anneal "$@"
