#!/usr/bin/env bash
# Tokenize and pack a corpus of many files by a job array; each task makes a token store of its share of the files.
#
#   TASKS=16 sbatch --array=0-15 cluster/exec/prepare_data.sh STORES FILE... -- --tokenizer DIR
#
# Submit from the repository's root. What follows -- goes to data_prep/tokenize_corpus.py. Task i of TASKS takes every
# TASKS-th file from the i-th on and writes STORES/train-0000i; task 0 also splits off STORES/val (VAL_FRACTION, 0.01).
# A task that fails is requeued alone; to repeat one by hand: TASKS=16 sbatch --array=3, with the same arguments.
# Train on all with --train_data_dir STORES/train-* --val_data_dir STORES/val.
#SBATCH --job-name=llammlein-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail

# shellcheck source=cluster/exec/env.sh
source "${REPO:-$SLURM_SUBMIT_DIR}/cluster/exec/env.sh" || {
    echo "error: submit from the repository's root, or export REPO" >&2
    exit 2
}

fail() {
    echo "error: $*" >&2
    exit 2
}

task=${SLURM_ARRAY_TASK_ID:-}
[[ -n $task && -n ${TASKS:-} ]] || fail "submit by TASKS=16 sbatch --array=0-15 ..., with your own numbers"
((task < TASKS)) || fail "task $task is not one of 0 to TASKS - 1 = $((TASKS - 1))"
stores=${1:-}
shift || true
files=()
while (($#)) && [[ $1 != -- ]]; do
    files+=("$1")
    shift
done
[[ -n $stores && ${#files[@]} -gt 0 && ${1:-} == -- ]] || fail "arguments are STORES FILE... -- --tokenizer DIR"
shift

mine=()
for ((index = task; index < ${#files[@]}; index += TASKS)); do mine+=("${files[index]}"); done
if ((${#mine[@]} == 0)); then
    echo "nothing to do: ${#files[@]} file(s) for $TASKS tasks"
    exit 0
fi

store=$stores/train-$(printf %05d "$task")
to_pack=("$store")
validation=()
if ((task == 0)); then
    validation=(--val_fraction "${VAL_FRACTION:-0.01}" --val_output "$stores/val")
    to_pack+=("$stores/val")
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
inside=(srun "$REPO/cluster/exec/inside.sh" python)

work() {
    "${inside[@]}" "$REPO/data_prep/tokenize_corpus.py" --input "${mine[@]}" --output "$store" \
        --workers "${SLURM_CPUS_PER_TASK:-1}" "${validation[@]}" "$@" || return
    for folder in "${to_pack[@]}"; do
        "${inside[@]}" "$REPO/data_prep/pack.py" --store "$folder" --block_size "${BLOCK_SIZE:-2048}" || return
    done
}

status=0
work "$@" || status=$?
# 2 is bad input: a restart would not help.
if ((status == 0 || status == 2)); then exit "$status"; fi
if ((${SLURM_RESTART_COUNT:-0} >= MAX_STALLED_RESTARTS)); then
    echo "task $task: exit code $status again, after $MAX_STALLED_RESTARTS restarts; giving up"
    exit 1
fi
echo "task $task: exit code $status; starting again"
scontrol requeue "${SLURM_ARRAY_JOB_ID}_$task" || exit 1
sleep 300 # until SLURM takes the job away
