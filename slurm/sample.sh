#!/bin/bash
# sbatch --nodes=2 slurm/sample.sh folder=runs/first/sample prompts=prompts.jsonl policy=runs/first reward=runs/reward ...
# Rejection sampling. Arguments are those of `python -m recipes.sample`. With VLLM_PYTHON, the Python of an environment
# in which vLLM is installed, every node runs a server; they stop before the reward model ranks what was drawn, since
# both need the memory. Without it our own decoder answers. 405B is 810 GB in BF16, more than 8 GPUs of 80 GB hold:
# Servers take no defaults from the folder's generation_config.json: what is asked is what is drawn.
# VLLM_NODES_PER_SERVER=2 gives each server two nodes as pipeline stages (or VLLM_OPTIONS names a quantization).
#
# 100,000 prompts, 10 answers of 512 tokens: forward passes of one token at a time, whose share of the peak is ours.
# bill: --nodes=1 model=8b tokens=512000000
#       8 GPUs, 512M tokens, 3.1 h, 25 GPU-h at 10% of 989 TFLOPS
# bill: --nodes=16 model=405b tokens=512000000
#       128 GPUs, 512M tokens, 9.5 h, 1,210 GPU-h at 10% of 989 TFLOPS
#
#SBATCH --job-name=sample
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
set -uo pipefail
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%sample.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }
[ -z "${VLLM_PYTHON:-}" ] && exec "$LLAMA31_HOME/slurm/launch.sh" sample "$@"

: "${VLLM_PORT:=8000}"
: "${VLLM_WAIT_S:=3600}" # until a server has loaded 405B from a shared disk
: "${VLLM_NODES_PER_SERVER:=1}"
: "${VLLM_OPTIONS:=}"

job=$SLURM_JOB_ID
stop_at=
say() { echo "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ) sample: job $SLURM_JOB_ID: $*"; }
# shellcheck source=slurm/job.sh
source "$LLAMA31_HOME/slurm/job.sh"
: "${VLLM_TENSOR_PARALLEL:=$(gpus | sed 's/^0$/1/')}"
value() { printf '%s\n' "$@" | sed -n "s|^$name=||p" | tail -n1; }
name=folder && folder=$(value "$@")
name=policy && policy=$(value "$@")
name=part && part=$(value "$@")
name=reward && reward=$(value "$@")

servers=
gone=
client=
stop_all() {
    [ -n "$client" ] && kill -TERM "$client" 2>/dev/null
    [ -n "$servers" ] && kill -TERM "$servers" 2>/dev/null && wait "$servers"
    servers=
}
# All that came in is in candidates.jsonl, and the next attempt draws the rest.
come_back() {
    trap '' USR1 TERM
    say "told to stop; drawing goes on in a new attempt"
    stop_all
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
on_usr1() {
    stop_when
    if [ "$stop_at" -le "$SECONDS" ]; then come_back; fi
}
trap on_usr1 USR1
trap come_back TERM

if [ "${part:-all}" != rank ]; then
    if [ $((SLURM_JOB_NUM_NODES % VLLM_NODES_PER_SERVER)) != 0 ]; then
        say "VLLM_NODES_PER_SERVER=$VLLM_NODES_PER_SERVER does not divide the $SLURM_JOB_NUM_NODES node(s) of this job"
        exit 2
    fi
    hf=$policy
    if [ ! -f "$policy/config.json" ]; then
        hf=$folder/hf
        [ -f "$hf/config.json" ] ||
            "$PYTHON" -m recipes.convert direction=to_hf "checkpoint=$policy" "hf=$hf" || exit 1
    fi
    say "START a server on every $VLLM_NODES_PER_SERVER node(s) of $SLURM_JOB_NODELIST"
    heads=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk -v n="$VLLM_NODES_PER_SERVER" '(NR - 1) % n == 0')
    export VLLM_PYTHON VLLM_NODES_PER_SERVER heads
    # shellcheck disable=SC2016,SC2086 # expanded on the node; options are several words
    env -u PYTHONPATH -u PYTORCH_CUDA_ALLOC_CONF -u CUDA_DEVICE_MAX_CONNECTIONS srun --ntasks-per-node=1 \
        --nodes="$SLURM_JOB_NUM_NODES" --cpus-per-task="$(cores)" --export=ALL --kill-on-bad-exit=0 --overlap \
        bash -c 'several=() n=$VLLM_NODES_PER_SERVER
        if [ "$n" -gt 1 ]; then
            mapfile -t heads <<<"$heads"
            several=(--pipeline-parallel-size "$n" --nnodes "$n" --node-rank $((SLURM_NODEID % n))
                --master-addr "${heads[SLURM_NODEID / n]}" --distributed-executor-backend mp)
            [ $((SLURM_NODEID % n)) = 0 ] || several+=(--headless)
        fi
        exec "$VLLM_PYTHON" -m vllm.entrypoints.cli.main serve "$@" "${several[@]}"' vllm \
        "$hf" --served-model-name policy --host 0.0.0.0 --port "$VLLM_PORT" --generation-config vllm \
        --tensor-parallel-size "$VLLM_TENSOR_PARALLEL" $VLLM_OPTIONS &
    servers=$!
    urls=$(sed "s|.*|\"http://&:$VLLM_PORT/v1\"|" <<<"$heads" | paste -sd,)
    "$PYTHON" -m recipes.sample "$@" part=draw "server.urls=[$urls]" "server.wait_s=$VLLM_WAIT_S" &
    client=$!
    while kill -0 "$client" 2>/dev/null; do # a bare `wait` would hold back the signals
        if [ -z "$gone" ] && ! kill -0 "$servers" 2>/dev/null; then # or it would wait for them with the GPUs in hand
            say "all servers have ended, so drawing ends; their words stand above, and what was drawn is kept"
            gone=1
            kill -TERM "$client" 2>/dev/null
        fi
        [ -n "$stop_at" ] && [ "$SECONDS" -ge "$stop_at" ] && come_back
        sleep 0.5
    done
    wait "$client"
    code=$?
    client=
    stop_all
    say "END drawing: exit code $code"
    [ "$code" = 0 ] || exit "$code"
fi
[ "${part:-all}" = draw ] || [ -z "$reward" ] && exit 0
exec "$LLAMA31_HOME/slurm/launch.sh" sample "$@" part=rank
