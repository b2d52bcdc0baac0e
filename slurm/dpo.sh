#!/bin/bash
# sbatch --nodes=1 slurm/dpo.sh name=dpo model=8b parallel=8b_1node init_from=runs/sft data.sources.mine.input=... tokenizer=llama3 ...
# Direct preference optimisation. Arguments are those of `python -m recipes.dpo`; recipes.submit counts the nodes.
#
# Half a million preferences, prompts twice: 2,100 tokens each, once (ours; the report states no number). The
# reference's log-probabilities, once and a third of that on top, are kept for the next run with the same data.
# bill: --nodes=1 model=8b parallel=8b_1node cluster=h100 schedule.total_tokens=1050000000
#       8 GPUs, 1.05B tokens, 4.7 h, 38 GPU-h at 40% of 989 TFLOPS
# bill: --nodes=64 model=405b parallel=405b_8k parallel.dp=4 cluster=h100 schedule.total_tokens=1050000000
#       512 GPUs, 1.05B tokens, 3.6 h, 1,861 GPU-h at 40% of 989 TFLOPS
#
#SBATCH --job-name=dpo
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%dpo.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" dpo "$@"
