# Environment of every job, sourced by its script. What an operator exported before sbatch wins: `: "${X:=value}"`.
# Nothing here is a training number, and nothing names a network interface: those are the cluster's business.

# Nothing of the job or job step that sbatch was typed in, all of which it hands on: srun obeys SLURM_CPU_BIND,
# SLURM_MEM_PER_CPU, SLURM_EXPORT_ENV and dozens more ("input environment variables" of its manual), torchrun PET_*.
# What stays is what slurmd sets anew for every job.
for name in $(compgen -e); do
    case $name in
    SLURM_JOB_* | SLURM_ARRAY_* | SLURM_SPANK_* | SLURM_CONF | SLURM_CLUSTER_NAME | SLURM_WORKING_CLUSTER) ;;
    SLURM_JOBID | SLURM_NODELIST | SLURM_NODEID | SLURM_SUBMIT_* | SLURM_RESTART_COUNT) ;;
    SLURM_CPUS_ON_NODE | SLURM_GPUS_ON_NODE | SLURM_GPUS_PER_NODE) ;;
    SLURM_* | SRUN_* | PMI_* | PMIX_* | PET_* | TORCHELASTIC_*) unset "$name" ;;
    RANK | WORLD_SIZE | LOCAL_RANK | LOCAL_WORLD_SIZE | GROUP_RANK | GROUP_WORLD_SIZE | ROLE_*) unset "$name" ;;
    esac
done
# Whether this is a restart or a task of an array, Slurm sets only where it is one. Where its controller does not answer,
# the environment is believed.
record=$(scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null | grep "^JobId=$SLURM_JOB_ID " | head -n1)
case $record in
*" Restarts=0 "*) unset SLURM_RESTART_COUNT ;;
esac
case $record in
"" | *" ArrayTaskId="*) ;;
*) for name in $(compgen -e SLURM_ARRAY_); do unset "$name"; done ;;
esac
# --export=NIL, and folders of a job that has ended
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}" HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
[ -d "${TMPDIR:-/tmp}" ] || unset TMPDIR

# LLAMA31_HOME, the checkout, is known by now: the script asks the job, for its $0 is a copy in Slurm's spool folder.
: "${PYTHON:=$LLAMA31_HOME/.venv/bin/python}"
if ! command -v "$PYTHON" >/dev/null; then
    echo "PYTHON=$PYTHON: not on $(hostname); set it before sbatch, which has to hand it on: --export=PYTHON or ALL" >&2
    exit 2
fi
PYTHONPATH=$LLAMA31_HOME${PYTHONPATH:+:$PYTHONPATH}

# How often a job may come back in all, and how often in a row without anything new (launch.sh).
: "${MAX_RESTARTS:=500}"
: "${MAX_FRUITLESS:=3}"

# Threads: a process drives one GPU; the cores that Slurm reports belong to eight of them and their data threads.
: "${OMP_NUM_THREADS:=1}"
: "${TOKENIZERS_PARALLELISM:=false}"

# Python: lines when they are written, a stack of every thread on a fatal signal, no network on the way to a tokenizer.
: "${PYTHONUNBUFFERED:=1}"
: "${PYTHONFAULTHANDLER:=1}"
: "${PYTHONWARNINGS:=ignore}"
: "${HF_HUB_OFFLINE:=1}"

# NCCL: warnings alone; a collective that fails ends its process; the last ones of every rank are kept (the flight
# recorder, report section 3.3.4) and written when one times out.
: "${NCCL_DEBUG:=WARN}"
: "${TORCH_NCCL_ASYNC_ERROR_HANDLING:=1}"
: "${TORCH_FR_BUFFER_SIZE:=2000}"
: "${TORCH_NCCL_DUMP_ON_TIMEOUT:=1}"

# Megatron-Core: one hardware queue, so that communication of tensor parallelism starts before the product it hides behind.
: "${CUDA_DEVICE_MAX_CONNECTIONS:=1}"
: "${PYTORCH_CUDA_ALLOC_CONF:=expandable_segments:True}"

export LLAMA31_HOME PYTHON PYTHONPATH MAX_RESTARTS MAX_FRUITLESS OMP_NUM_THREADS TOKENIZERS_PARALLELISM PYTHONUNBUFFERED
export PYTHONFAULTHANDLER PYTHONWARNINGS HF_HUB_OFFLINE NCCL_DEBUG TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_FR_BUFFER_SIZE
export TORCH_NCCL_DUMP_ON_TIMEOUT CUDA_DEVICE_MAX_CONNECTIONS PYTORCH_CUDA_ALLOC_CONF
