#!/usr/bin/env bash
# Train, and requeue the job from the newest checkpoint until the run is complete.
#
#   MODEL_NAME=german_1B sbatch cluster/exec/train_fabric.sh \
#       --config pretrain/configs/LLaMmlein_1B.yaml --train_data_dir DIR --val_data_dir DIR
#
# Submit from the repository's root. What follows the script's name goes to pretrain/tinyllama_fabric.py; the run's
# folder is RUNS_DIR/MODEL_NAME. The job's size is below, or given to sbatch; the site's settings are in env.sh.
# CHAIN=NAME, for clusters that forbid requeueing: this job is one of several, submitted together with
# --dependency=singleton, each of which continues where the one before stopped. scripts/submit.py --chain does it.
#SBATCH --job-name=llammlein
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# shellcheck source=cluster/exec/env.sh
source "${REPO:-$SLURM_SUBMIT_DIR}/cluster/exec/env.sh" || {
    echo "error: submit from the repository's root, or export REPO" >&2
    exit 2
}

out=$RUNS_DIR/${MODEL_NAME:?MODEL_NAME is not set: it names the folder of the run in RUNS_DIR}
starts=$out/starts.log
series=${CHAIN:-$SLURM_JOB_ID}

say() { echo "$(date -Is) job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $*"; }

# Name of the newest complete checkpoint, from which a start begins: the measure of progress.
newest_checkpoint() {
    find "$out" -maxdepth 2 -path '*/iter-*-ckpt.pth/MANIFEST.json' -printf '%P\n' | sort | tail -n 1 | cut -d / -f 1
}

# Whether this series of starts has begun from the same checkpoint too often.
stalled() {
    local starts_from_here
    starts_from_here=$(grep -cxF "$series from ${1:-nothing}" "$starts" || true)
    ((starts_from_here > MAX_STALLED_RESTARTS))
}

# End for good, and cancel the later jobs of the chain.
leave() {
    local status=$1
    shift
    say "$*"
    if [[ -n ${CHAIN:-} ]]; then scancel --user="$(id -un)" --name="$SLURM_JOB_NAME" --state=PENDING; fi
    exit "$status"
}

give_up_if_stalled() {
    if stalled "$1"; then
        leave 1 "giving up: $MAX_STALLED_RESTARTS restarts brought no checkpoint after ${1:-the beginning};" \
            "find the cause above, then submit again"
    fi
}

mkdir -p "$out"
touch "$starts"
checkpoint=$(newest_checkpoint)
give_up_if_stalled "$checkpoint"
echo "$series from ${checkpoint:-nothing}" >>"$starts"
rm -f "$out/requeue" "$out/done"
say "on $SLURM_JOB_NODELIST, from ${checkpoint:-the beginning}"

options=(--out_dir "$out" --resume auto --num_nodes "$SLURM_NNODES" --devices "$SLURM_NTASKS_PER_NODE")
if [[ -n $SHARD_CACHE ]]; then options+=(--cache_dir "$SHARD_CACHE"); fi
# srun does not inherit this from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# SIGTERM and USR1 are for the tasks. This shell ignores them, to decide afterwards whether to requeue.
trap : TERM USR1
status=0
# When a task ends early, the others have a minute to end with exit codes of their own.
srun --label --kill-on-bad-exit=0 --wait=60 "$REPO/cluster/exec/inside.sh" \
    python "$REPO/pretrain/tinyllama_fabric.py" "$@" "${options[@]}" || status=$?

if ((status == 0)) && [[ -e $out/done ]]; then leave 0 "the run is complete: $out"; fi
if ((status == 2)); then leave 2 "bad input, named above: fix it and submit again"; fi
if ((status == 0)); then reason="stopped as asked"; else reason="ended with exit code $status"; fi
job=$(scontrol show job -o "$SLURM_JOB_ID")
if [[ $job != *" JobState=RUNNING "* && $job != *" Reason=TimeLimit "* ]]; then
    say "$reason; SLURM is ending the job (scancel, or its own requeueing): nothing to do"
    exit 1
fi
give_up_if_stalled "$(newest_checkpoint)"
if [[ -n ${CHAIN:-} ]]; then
    say "$reason; the next job of the chain continues"
    exit 0
fi
say "$reason; requeueing"
if ! scontrol requeue "$SLURM_JOB_ID"; then
    say "this cluster forbids it: submit again, or several jobs at once with scripts/submit.py --chain"
    exit 1
fi
sleep 300 # until SLURM takes the job away
