# shellcheck shell=bash
# Settings of this site, for every batch script, for scripts/submit.py and for your shell: `source cluster/exec/env.sh`.
# Variables that are already set win, so that a single job can differ: `VENV=~/venv sbatch ...`.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export REPO

# --- SLURM: read by sbatch itself (man sbatch, INPUT ENVIRONMENT VARIABLES); the job's size is in each script's head.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal

# --- Python: from the container, or from the virtual environment VENV, which every node must see.
export VENV=${VENV:-}
export IMAGE=${IMAGE:-$REPO/llammlein.sif}
# Folders to bind into the container besides the repository, the runs and $HOME, separated by commas.
export BIND=${BIND:-}

# --- Folders. A run's folder is $RUNS_DIR/$MODEL_NAME; it needs room for keep_last + 1 checkpoints.
export RUNS_DIR=${RUNS_DIR:-$REPO/runs}
# Node-local folder into which shards of the token store are copied ahead; empty: read them in place.
export SHARD_CACHE=${SHARD_CACHE:-}

# --- Restarts in a row from the same checkpoint after which a job gives up.
export MAX_STALLED_RESTARTS=${MAX_STALLED_RESTARTS:-3}

# --- Network. The names are those of `ip link` and `ibstat` on a compute node; NCCL finds most networks by itself.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5_0,mlx5_1
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# --- Unbuffered output, and no packages of ~/.local inside the container.
export PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1

# --- Inside a job only.
if [[ -n ${SLURM_JOB_ID:-} ]]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # Compiled kernels on node-local disk: a home folder on a network file system is slow and fills up.
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/inductor-$(id -un)}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -un)}
    # If nodes reach each other by other names than SLURM's, such as node01i:
    # MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/i/;q')
    # export MASTER_ADDR
fi
