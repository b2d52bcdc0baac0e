#!/bin/bash
# sbatch --nodes=2048 slurm/long_context.sh name=long-1 schedule=long_1 parallel=405b_len16k model=405b init_from=RUN ...
# One stage of long context. Arguments are those of `python -m recipes.pretrain --config-name long_context`. The job
# succeeds when the stage's gates open; where they are still shut at its last token it fails, and a chain ends with it.
#
# Each stage to its last token, attention over whole rows. The share is the report's at 128K tokens (Table 4), for all.
# bill: --nodes=2048 model=405b parallel=405b_len16k schedule=long_1 cluster=h100
#       16,384 GPUs, 100B tokens, 12 h, 194,069 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_len32k schedule=long_2 cluster=h100
#       16,384 GPUs, 100B tokens, 13 h, 209,070 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_len48k schedule=long_3 cluster=h100
#       16,384 GPUs, 100B tokens, 14 h, 224,085 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_len64k schedule=long_4 cluster=h100
#       16,384 GPUs, 150B tokens, 22 h, 358,588 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_len96k schedule=long_5 cluster=h100
#       16,384 GPUs, 150B tokens, 25 h, 403,591 GPU-h at 38% of 989 TFLOPS
# bill: --nodes=2048 model=405b parallel=405b_128k schedule=long_6 cluster=h100
#       16,384 GPUs, 200B tokens, 37 h, 598,101 GPU-h at 38% of 989 TFLOPS
# The 405B's six together: 2.0M GPU-hours.
# bill: --nodes=32 model=8b parallel=8b_1node parallel.cp=16 schedule=long_6 cluster=h100
#       256 GPUs, 200B tokens, 86 h, 21,894 GPU-h at 38% of 989 TFLOPS
#
#SBATCH --job-name=long_context
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=7-00:00:00
# Slurm may send it a minute early and half a minute late; a checkpoint of 405B has to fit into the rest.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%long_context.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" pretrain --config-name long_context "$@"
