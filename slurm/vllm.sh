# Servers of vLLM on the nodes of this job: what sample.sh and serve.sh share. They source job.sh and set `say`.
#   VLLM_PYTHON             the Python of an environment in which vLLM is installed
#   VLLM_NODES_PER_SERVER   nodes of one server: its layers are split over them (pipeline), each layer over a node's GPUs
: "${VLLM_PORT:=8000}"
: "${VLLM_NODES_PER_SERVER:=1}"
: "${VLLM_OPTIONS:=}"
: "${VLLM_TENSOR_PARALLEL:=$(gpus | sed 's/^0$/1/')}"
servers=
heads=

check_nodes() {
    [ $((SLURM_JOB_NUM_NODES % VLLM_NODES_PER_SERVER)) = 0 ] && return
    say "VLLM_NODES_PER_SERVER=$VLLM_NODES_PER_SERVER does not divide the $SLURM_JOB_NUM_NODES node(s) of this job"
    exit 2
}

# start_servers FOLDER NAME [OPTION ...]: serves FOLDER as NAME; sets `servers`, the process of all, and `heads`, the node
# of each that answers. Exports in FP8 are of a form that vLLM 0.32 reads when told to.
start_servers() {
    local folder=$1 name=$2
    shift 2
    if grep -q '"fbgemm_fp8"' "$folder/config.json"; then set -- --allow-deprecated-quantization "$@"; fi
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
        "$folder" --served-model-name "$name" --host 0.0.0.0 --port "$VLLM_PORT" \
        --tensor-parallel-size "$VLLM_TENSOR_PARALLEL" "$@" $VLLM_OPTIONS &
    servers=$!
}

stop_servers() {
    [ -n "$servers" ] && kill -TERM "$servers" 2>/dev/null && wait "$servers"
    servers=
}

# come_back_later WHAT STOP: from now on a job that is told to stop stops by STOP, and comes back, where WHAT goes on.
come_back_later() {
    goes_on=$1 stop=$2
    trap on_usr1 USR1
    trap come_back TERM
}
come_back() {
    trap '' USR1 TERM
    say "told to stop; $goes_on goes on in a new attempt"
    "$stop"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
on_usr1() {
    stop_when
    if [ "$stop_at" -le "$SECONDS" ]; then come_back; fi
}
