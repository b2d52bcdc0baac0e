#!/bin/bash
# sbatch --nodes=64 slurm/pretrain.sh name=first model=8b parallel=8b_1node schedule=8b cluster=h100 ...
# Train on the next token. Arguments are those of `python -m recipes.pretrain`; recipes.submit counts the nodes itself.
#
# bill: --nodes=64 model=8b parallel=8b_1node schedule=8b cluster=h100
#       512 GPUs, 15T tokens, 1,059 h, 542,113 GPU-h at 40% of 989 TFLOPS
# bill: --nodes=256 model=70b parallel=70b schedule=70b cluster=h100
#       2,048 GPUs, 15T tokens, 2,310 h, 4,731,449 GPU-h at 40% of 989 TFLOPS
# The shares of the next two are the report's (Table 4). Together they cost 26.7M GPU-hours of computing; the model card
# says 30.84M in all.
# bill: --nodes=1024 model=405b parallel=405b_8k schedule=405b cluster=h100 stop_after_steps=342161
#       8,192 GPUs, 2.87T tokens, 578 h, 4,731,470 GPU-h at 43% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_16k schedule=405b cluster=h100
#       16,384 GPUs, 12.7T tokens, 1,343 h, 22,010,376 GPU-h at 41% of 989 TFLOPS
#
#SBATCH --job-name=pretrain
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=7-00:00:00
# Slurm may send it a minute early and half a minute late; a checkpoint of 405B has to fit into the rest.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%pretrain.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" pretrain "$@"
