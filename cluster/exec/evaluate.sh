#!/usr/bin/env bash
# Evaluate a Hugging Face folder, or every checkpoint of a run, on one GPU.
#
#   sbatch cluster/exec/evaluate.sh ...    the arguments of scripts/evaluate.py
#
# Submit from the repository's root.
#SBATCH --job-name=llammlein-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

# shellcheck source=cluster/exec/env.sh
source "${REPO:-$SLURM_SUBMIT_DIR}/cluster/exec/env.sh" || {
    echo "error: submit from the repository's root, or export REPO" >&2
    exit 2
}
srun "$REPO/cluster/exec/inside.sh" python "$REPO/scripts/evaluate.py" "$@"
