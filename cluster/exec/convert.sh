#!/usr/bin/env bash
# Convert a checkpoint, or every checkpoint of a run, to Hugging Face folders. Needs no GPU.
#
#   sbatch cluster/exec/convert.sh ...    the arguments of scripts/create.sh
#
# Submit from the repository's root.
#SBATCH --job-name=llammlein-convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

# shellcheck source=cluster/exec/env.sh
source "${REPO:-$SLURM_SUBMIT_DIR}/cluster/exec/env.sh" || {
    echo "error: submit from the repository's root, or export REPO" >&2
    exit 2
}
export PYTHON=python # the container's or VENV's, not that of a .venv in the clone
srun "$REPO/cluster/exec/inside.sh" bash "$REPO/scripts/create.sh" "$@"
