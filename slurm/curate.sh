#!/bin/bash
# sbatch --array=0-63 slurm/curate.sh stage=extract name=web sources.crawl.input=/data/warc sources.crawl.format=warc ...
# One stage of curation, a task of the array for each of its tasks. `python -m recipes.curate submit=true ...` submits all
# stages, each after those that it needs, with the memory that it states; nothing waits behind a stage that failed.
#
# bill: --nodes=1 bytes=1e12
#       0 GPUs, 41 core-h for 1 TB of HTML
#
#SBATCH --job-name=curate
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --output=%x-%A_%a.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%curate.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
# No torch, so no launch.sh: a task that dies is requeued by Slurm or left to the next submission, which makes what is missing.
exec "$PYTHON" -m recipes.curate "$@" task="$SLURM_ARRAY_TASK_ID"
