#!/bin/bash
# sbatch --nodes=1 slurm/serve.sh model=hf/first-fp8 [name=NAME] [OPTION OF VLLM ...]
# OpenAI's API over a Hugging Face folder until the job ends, by vLLM: VLLM_PYTHON is the Python that has it. Each layer
# is split over the GPUs of a node (VLLM_TENSOR_PARALLEL), the layers over all nodes of the job as pipeline stages, as
# in the report (section 6): the 405B in FP8 (recipes.convert fp8=true) on one node, in BF16 on two. With
# VLLM_NODES_PER_SERVER nodes a server there are several. They are named in the log when they answer; a job that is told
# to stop (end of its time limit, preemption) comes back.
#
# bill: --nodes=1 model=8b
#       8 GPUs, 16 GB of weights, 2 GB on each
# bill: --nodes=1 model=405b fp8=true
#       8 GPUs, 487 GB of weights, 61 GB on each
# bill: --nodes=2 model=405b
#       16 GPUs, 812 GB of weights, 51 GB on each
#
#SBATCH --job-name=serve
#SBATCH --nodes=1 --gpus-per-node=8 --exclusive --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append --output=%x-%j.out
set -uo pipefail
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n1)
: "${LLAMA31_HOME:=$(cd "${SLURM_SUBMIT_DIR:-.}" && cd "${command%%serve.sh*}.." && pwd)}"
source "$LLAMA31_HOME/slurm/env.sh" ||
    { echo "$LLAMA31_HOME/slurm/env.sh: set LLAMA31_HOME=CHECKOUT before sbatch, or --export=LLAMA31_HOME" >&2 && exit 2; }

job=$SLURM_JOB_ID
stop_at=
say() { echo "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ) serve: job $SLURM_JOB_ID: $*"; }
# shellcheck source=slurm/job.sh
source "$LLAMA31_HOME/slurm/job.sh"
: "${VLLM_NODES_PER_SERVER:=$SLURM_JOB_NUM_NODES}"
# shellcheck source=slurm/vllm.sh
source "$LLAMA31_HOME/slurm/vllm.sh"

model=
name=policy
options=()
for word in "$@"; do
    case $word in
    model=*) model=${word#model=} ;;
    name=*) name=${word#name=} ;;
    *) options+=("$word") ;;
    esac
done
if [ -z "${VLLM_PYTHON:-}" ]; then
    say "VLLM_PYTHON is not set: give the Python of an environment in which vLLM is installed"
    exit 2
fi
if [ ! -f "$model/config.json" ]; then
    say "model=$model: no Hugging Face folder; make one: python -m recipes.convert direction=to_hf checkpoint=... hf=..."
    exit 2
fi
check_nodes

come_back_later serving stop_servers

# Whether the server on node $1 says that it is well.
answers() {
    (
        exec 3<>"/dev/tcp/$1/$VLLM_PORT" || exit
        printf 'GET /health HTTP/1.0\r\n\r\n' >&3
        read -rt 5 line <&3 && [[ $line == *" 200 "* ]]
    ) 2>/dev/null
}

start_servers "$model" "$name" "${options[@]}"
silent=$heads
while kill -0 "$servers" 2>/dev/null; do # a bare `wait` would hold back the signals
    for head in $silent; do
        if answers "$head"; then
            say "$name answers at http://$head:$VLLM_PORT/v1"
            silent=$(grep -vxF "$head" <<<"$silent")
        fi
    done
    [ -n "$stop_at" ] && [ "$SECONDS" -ge "$stop_at" ] && come_back
    sleep 0.5
done
wait "$servers"
code=$?
say "END all servers have ended, exit code $code; their words stand above"
[ "$code" != 0 ] || code=1 # a server ends of itself where something is wrong
exit "$code"
