# What launch.sh and sample.sh ask Slurm about their own job, and when they obey its signal. They set `job` and `say`.

# Slurm's controller may be away for minutes, which is no reason to lose a job.
patiently() {
    local pause
    for pause in 1 2 4 8 16 32 64 128; do
        "$@" && return
        sleep $pause
    done
    "$@"
}

job_says() { patiently scontrol show job -o "$job" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }

# The fewest cores that a node of this job has: srun gives every task as many. "128(x2),64" says 64.
cores() { tr ',' '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-$SLURM_CPUS_ON_NODE}" | sed 's/(.*//' | sort -n | head -n1; }

# GPUs of a node as they were asked for ("h100:8" says 8): with --exclusive a node gives all it has, one more than another.
gpus() {
    local asked=${SLURM_GPUS_PER_NODE:-}
    asked=${asked##*:}
    [[ $asked =~ ^[0-9]+$ ]] || asked=${SLURM_GPUS_ON_NODE:-0}
    echo "$asked"
}

# On USR1: sets `stop_at`, the second of this shell's life (SECONDS) at which to stop. That is now, except where the time
# limit is not much longer than what --signal asks for (300 s in our scripts, and Slurm sends it up to 60 s early): then
# USR1 comes with the first step, and stopping would requeue after every one. Such a job stops with a third left.
stop_when() {
    local record started ends left
    stop_at=$SECONDS
    record=$(scontrol show job -o "$job" 2>/dev/null | head -n1)
    [ -n "$record" ] || return
    started=$(date -d "$(sed -n 's/.* StartTime=\([^ ]*\).*/\1/p' <<<"$record")" +%s 2>/dev/null) || return
    ends=$(date -d "$(sed -n 's/.* EndTime=\([^ ]*\).*/\1/p' <<<"$record")" +%s 2>/dev/null) || return # Unknown: no limit
    left=$((ends - $(date +%s)))
    limit=$((ends - started))
    if [ $limit -gt 600 ] || [ $left -le $((limit / 3)) ]; then return; fi
    case $record in *" PreemptTime=None "*) ;; *) return ;; esac
    stop_at=$((SECONDS + left - limit / 3))
    say "USR1 with $left s of a time limit of $limit s left: too short for --signal=B:USR1@300 of the scripts, so it is" \
        "obeyed when $((limit / 3)) s are left; give --time of more than 10 minutes, or --signal=B:USR1@$((limit / 3))"
}
