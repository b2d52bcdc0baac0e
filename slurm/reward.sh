#!/bin/bash
# sbatch --nodes=1 slurm/reward.sh name=reward model=8b parallel=8b_1node init_from=runs/8b data.sources.mine.input=... tokenizer=llama3 ...
# Train a reward model. Arguments are those of `python -m recipes.reward`; recipes.submit counts the nodes itself.
#
# A million preferences of 1,300 tokens with both answers (Table 6 says 1,041.6 with one), once; the report states no
# number of them.
# bill: --nodes=1 model=8b parallel=8b_1node cluster=h100 schedule.total_tokens=1300000000
#       8 GPUs, 1.3B tokens, 5.9 h, 47 GPU-h at 40% of 989 TFLOPS
# bill: --nodes=16 model=70b parallel=70b cluster=h100 schedule.total_tokens=1300000000
#       128 GPUs, 1.3B tokens, 3.2 h, 410 GPU-h at 40% of 989 TFLOPS
#
#SBATCH --job-name=reward
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%reward.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" reward "$@"
