#!/bin/bash
# sbatch --array=0-7 slurm/filter_data.sh name=first input=scored.jsonl shards=8 'judge.urls=[http://n1:8000/v1]' ...
# Filters of dialogs: an element for each shard, which asks the judge's servers that are up (slurm/vllm.sh).
# `python -m recipes.filter_data submit=true ...` submits what is missing, and the job that selects, which embeds what is left:
# on a GPU where 'job.gathering=--gpus=1' gives it one.
#
# bill: --nodes=1
#       0 GPUs; those of the servers are theirs
#
#SBATCH --job-name=filter_data
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --output=%x-%A_%a.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%filter_data.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
# No torch, so no launch.sh: Slurm requeues a shard whose node fails; one that fails itself is left to the next submission,
# which sends what is missing. Both go on where they were.
exec "$PYTHON" -m recipes.filter_data "$@" ${SLURM_ARRAY_TASK_ID:+part=make "shard=$SLURM_ARRAY_TASK_ID"}
