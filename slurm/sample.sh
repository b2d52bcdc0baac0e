#!/bin/bash
# sbatch --nodes=2 slurm/sample.sh folder=runs/first/sample prompts=prompts.jsonl policy=runs/first reward=runs/reward ...
# Rejection sampling. Arguments are those of `python -m recipes.sample`. With VLLM_PYTHON, the Python of an environment
# in which vLLM is installed, every node runs a server; they stop before the reward model ranks what was drawn, since
# both need the memory. Without it our own decoder answers. 405B is 810 GB in BF16, more than 8 GPUs of 80 GB hold:
# VLLM_NODES_PER_SERVER=2 gives each server two nodes as pipeline stages, or policy= is an export in FP8 (recipes.convert
# fp8=true). Servers take no defaults from the folder's generation_config.json: what is asked is what is drawn.
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

: "${VLLM_WAIT_S:=3600}" # until a server has loaded 405B from a shared disk

job=$SLURM_JOB_ID
stop_at=
say() { echo "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ) sample: job $SLURM_JOB_ID: $*"; }
# shellcheck source=slurm/job.sh
source "$LLAMA31_HOME/slurm/job.sh"
# shellcheck source=slurm/vllm.sh
source "$LLAMA31_HOME/slurm/vllm.sh"
value() { printf '%s\n' "$@" | sed -n "s|^$name=||p" | tail -n1; }
name=folder && folder=$(value "$@")
name=policy && policy=$(value "$@")
name=part && part=$(value "$@")
name=reward && reward=$(value "$@")

gone=
client=
stop_all() {
    [ -n "$client" ] && kill -TERM "$client" 2>/dev/null
    stop_servers
}
come_back_later drawing stop_all # all that came in is in candidates.jsonl, and the next attempt draws the rest

if [ "${part:-all}" != rank ]; then
    check_nodes
    hf=$policy
    if [ ! -f "$policy/config.json" ]; then
        hf=$folder/hf
        [ -f "$hf/config.json" ] ||
            "$PYTHON" -m recipes.convert direction=to_hf "checkpoint=$policy" "hf=$hf" || exit 1
    fi
    start_servers "$hf" policy --generation-config vllm
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
