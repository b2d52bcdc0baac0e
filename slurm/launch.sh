#!/bin/bash
# launch.sh RECIPE [ARGUMENT ...]: run `python -m recipes.RECIPE ARGUMENT ...` on the nodes of this job, and come back.
#
# A recipe with a run folder talks to this script through files there, because exit codes do not survive srun:
#   stop           touched here on USR1 or TERM, or by hand: the trainer saves, stops on all ranks at one step, exits 0;
#                  the job then goes on in a new attempt. `echo end > stop` stops for good.
#   outcome.json   {"outcome": "finished" | "stopped" | "failed"}, the trainer's last word. Without one it died.
#   exclude_nodes  nodes that failed their check, one per line: the next attempt avoids them
#   logs/          one file per attempt: JOB.RESTART.log
set -uo pipefail
recipe=$1
shift
restart=${SLURM_RESTART_COUNT:-0}
# A task of an array by its own name: the number of its last task is that of the whole array, too.
job=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
RUN_FOLDER=
signalled=
stop_at=
limit=

say() { echo "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ) launch: job $job attempt $restart: $*"; }
# shellcheck source=slurm/job.sh
source "$LLAMA31_HOME/slurm/job.sh"

on_signal() {
    signalled=1
    stop_at=
    say "signal: asking $recipe to save and stop"
    [ -n "$RUN_FOLDER" ] && [ ! -e "$RUN_FOLDER/stop" ] && touch "$RUN_FOLDER/stop"
}
on_usr1() {
    stop_when
    if [ "$stop_at" -le "$SECONDS" ]; then on_signal; fi
}
# bash loses the first of two traps that come together, as USR1 and TERM of a preemption do: TERM, which stays, is obeyed
trap on_usr1 USR1
trap on_signal TERM

exclude() {
    local nodes before
    nodes=$(sort -u "$RUN_FOLDER/exclude_nodes" | paste -sd,)
    before=$(job_says ExcNodeList)
    [ "$before" = "(null)" ] && before=
    say "excluding $nodes"
    patiently scontrol update JobId="$job" ExcNodeList="$nodes${before:+,$before}"
}

# Ends this attempt where Slurm has done so: cancelled by hand, which must stay so, or requeued by Slurm itself. A node
# that was cut off and is back must not requeue the attempt that runs elsewhere by now.
still_running() {
    local state
    state="$(job_says JobState) $(job_says Restarts)"
    [ "$state" = "RUNNING $restart" ] && return
    # its time is over before the trainer was done: nobody else will bring it back
    [ "$state $(job_says Reason)" = "COMPLETING $restart TimeLimit" ] && return
    say "$1; Slurm has ended this attempt already ($state)"
    exit 1
}

# Ends this attempt. An unfinished job that may not come back ends with 1, so that its dependents are cancelled.
come_back() {
    if [ "$restart" -ge "$MAX_RESTARTS" ]; then
        say "$1; not restarted: MAX_RESTARTS=$MAX_RESTARTS"
        exit 1
    fi
    still_running "$1"
    say "$1; restarting"
    trap '' USR1 TERM # requeueing sends TERM to this very script
    patiently scontrol requeue "$job" || exit 1
    # only now: Slurm changes the nodes of a pending job alone
    if [ -s "$RUN_FOLDER/exclude_nodes" ]; then exclude; fi
    exit 0
}

# True after MAX_FRUITLESS deaths in a row that left nothing new, a checkpoint or answers and scores of recipes.sample: a
# fault that a restart does not heal.
fruitless() {
    local newest
    newest=$(find "$RUN_FOLDER/checkpoints" -mindepth 1 -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n1)
    newest="newest ${newest:-none} $(cat "$RUN_FOLDER"/{candidates,scores}.jsonl 2>/dev/null | wc -c)"
    echo "$newest" >>"$RUN_FOLDER/logs/deaths"
    [ "$(tail -n "$MAX_FRUITLESS" "$RUN_FOLDER/logs/deaths" | grep -cxF "$newest")" -ge "$MAX_FRUITLESS" ]
}

# Sets NODES, PROCESSES_PER_NODE and RUN_FOLDER; refuses a wrong config before any node has loaded torch.
facts=$("$PYTHON" -m recipes.submit "submit.recipe=$recipe" submit.facts=true "submit.nodes=$SLURM_JOB_NUM_NODES" \
    "submit.gpus_per_node=$(gpus)" "$@") || exit 2
eval "$facts"
log=()
if [ -n "$RUN_FOLDER" ]; then
    mkdir -p "$RUN_FOLDER/logs"
    rm -f "$RUN_FOLDER/stop" "$RUN_FOLDER/outcome.json" # those of the attempt before
    if scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qxFf "$RUN_FOLDER/exclude_nodes" 2>/dev/null; then
        come_back "a node of $SLURM_JOB_NODELIST is excluded"
    fi
    [ -n "$signalled" ] && come_back "told to stop before it began"
    log=("--output=${RUN_FOLDER//%/%%}/logs/$SLURM_JOB_ID.$restart.log" --open-mode=append)
fi

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
MASTER_PORT=$((20000 + (SLURM_JOB_ID + 101 * restart) % 10000))
export MASTER_ADDR MASTER_PORT NODES PROCESSES_PER_NODE
say "START $recipe on $SLURM_JOB_NODELIST, $NODES x $PROCESSES_PER_NODE process(es) ${log[0]:-}"
# --node-rank: torchrun's own rendezvous sorts nodes by name, n10 before n2. --cpus-per-task: a step has one core unless
# told otherwise. --export: else that of sbatch holds, and NONE leaves not even PATH. --ignore-signal: torchrun dies of
# USR1, and its workers with it.
# shellcheck disable=SC2016 # expanded on the node
srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --cpus-per-task="$(cores)" --export=ALL --label \
    --kill-on-bad-exit=1 --wait=60 "${log[@]}" \
    bash -c 'exec env --ignore-signal=USR1 "$PYTHON" -m torch.distributed.run --nnodes="$NODES" \
        --node-rank="$SLURM_NODEID" --nproc-per-node="$PROCESSES_PER_NODE" --master-addr="$MASTER_ADDR" \
        --master-port="$MASTER_PORT" --max-restarts=0 -m "recipes.$0" "$@"' "$recipe" "$@" &
pid=$!
while kill -0 $pid 2>/dev/null; do # a bare `wait` can lose a signal
    [ -n "$stop_at" ] && [ "$SECONDS" -ge "$stop_at" ] && on_signal
    sleep 0.5
done
wait $pid
code=$?

outcome= cause=
if [ -n "$RUN_FOLDER" ]; then
    outcome=$(sed -n 's/.*"outcome": *"\([a-z]*\)".*/\1/p' "$RUN_FOLDER/outcome.json" 2>/dev/null)
    cause=$(sed -n 's/.*"cause": *"\(\([^"\\]\|\\.\)*\)".*/\1/p' "$RUN_FOLDER/outcome.json" 2>/dev/null)
fi
say "END exit code $code, outcome ${outcome:-none}${cause:+: $cause}"
[ "$code" != 0 ] && [ ${#log[@]} != 0 ] && tail -n 30 "$RUN_FOLDER/logs/$SLURM_JOB_ID.$restart.log"
case "$outcome/$code" in
finished/* | /0) exit 0 ;;
stopped/*)
    if grep -qx end "$RUN_FOLDER/stop" 2>/dev/null; then
        say "stopped for good: $RUN_FOLDER/stop says end"
        exit 1
    fi
    if [ -n "$limit" ] && [ "$limit" -le 600 ] && fruitless; then
        say "stopped $MAX_FRUITLESS times without anything new; not restarted: a time limit of $limit s is too short"
        exit 1
    fi
    come_back "stopped with a checkpoint"
    ;;
failed/*) exit 1 ;; # it said why: another attempt would fail likewise
esac
[ -z "$RUN_FOLDER" ] && exit "$code" # nothing is saved on the way, so Slurm's own requeue has to do
still_running "died" # a node that was lost is no fault of the trainer
if fruitless; then
    say "died $MAX_FRUITLESS times without anything new; not restarted: MAX_FRUITLESS=$MAX_FRUITLESS"
    exit 1
fi
come_back "died"
