#!/bin/bash
# sbatch --array=0-9 --nodes=64 slurm/probe.sh name=worth init_from=runs/first 'candidates=[books]' model=8b schedule=probe ...
# One arm of a probe per task of the array: the default data and each candidate, with each seed. recipes.submit recipe=probe
# counts nodes and the arms that remain. Then: python -m recipes.probe collect=true and the same arguments.
#
# One arm; a candidate with five seeds has five of its own and shares five.
# bill: --nodes=64 model=8b parallel=8b_1node schedule=probe cluster=h100
#       512 GPUs, 40B tokens, 2.8 h, 1,446 GPU-h at 40% of 989 TFLOPS
#
#SBATCH --job-name=probe
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%probe.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" probe "$@" ${SLURM_ARRAY_TASK_ID:+"arm=$SLURM_ARRAY_TASK_ID"}
