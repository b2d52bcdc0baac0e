#!/bin/bash
# sbatch slurm/convert.sh direction=to_hf checkpoint=runs/first hf=hf/first
# Weights from and to Hugging Face format. Arguments are those of `python -m recipes.convert`; one process, no GPU.
#
# Disks decide; this is at 200 MB/s for reading and writing.
# bill: --nodes=1 model=8b
#       0 GPUs, 16 GB read and written, 0.045 h
# bill: --nodes=1 model=70b
#       0 GPUs, 141 GB read and written, 0.39 h
# bill: --nodes=1 model=405b
#       0 GPUs, 812 GB read and written, 2.3 h
# bill: --nodes=1 model=405b fp8=true
#       0 GPUs, 812 GB read and 487 GB written, 1.8 h
#
#SBATCH --job-name=convert
#SBATCH --nodes=1 --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue --open-mode=append --output=%x-%j.out
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%convert.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
exec "$LLAMA31_HOME/slurm/launch.sh" convert "$@"
