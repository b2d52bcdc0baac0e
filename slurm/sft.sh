#!/bin/bash
# sbatch --nodes=1 slurm/sft.sh name=sft model=8b parallel=8b_1node init_from=runs/8b data.sources.mine.input=... tokenizer=llama3 ...
# Supervised finetuning. Arguments are those of `python -m recipes.sft`; recipes.submit counts the nodes itself.
#
# 9,000 steps are the report's for its largest models, batch and rows ours; padding counts as tokens.
# bill: --nodes=1 model=8b parallel=8b_1node cluster=h100 schedule.total_tokens=4718592000
#       8 GPUs, 4.72B tokens, 21 h, 171 GPU-h at 40% of 989 TFLOPS
# bill: --nodes=64 model=405b parallel=405b_8k parallel.dp=4 cluster=h100 schedule.total_tokens=4718592000
#       512 GPUs, 4.72B tokens, 16 h, 8,362 GPU-h at 40% of 989 TFLOPS
#
#SBATCH --job-name=sft
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%sft.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" sft "$@"
