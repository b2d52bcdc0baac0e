# Environment of every job, sourced by its script. What an operator exported before sbatch wins: `: "${X:=value}"`.
# Nothing here is a training number, and nothing names a network interface: those are the cluster's business.

# LLAMA31_HOME, the checkout, is known by now: the script asks the job, for its $0 is a copy in Slurm's spool folder.
: "${PYTHON:=$LLAMA31_HOME/.venv/bin/python}"
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
