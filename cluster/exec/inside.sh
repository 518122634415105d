#!/usr/bin/env bash
# inside.sh COMMAND... - run a command in the container IMAGE, or in VENV if that is set (env.sh).
# The shell is replaced by the command, so that exit codes and signals are the command's own.
set -euo pipefail
# shellcheck source=cluster/exec/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

fail() {
    echo "error: $1 ($(hostname))" >&2
    exit 2
}

# USR1 means "save and stop". Ignore it until the command handles it: it kills by default.
trap '' USR1

if [[ -n $VENV ]]; then
    [[ -x $VENV/bin/python ]] || fail "VENV=$VENV has no bin/python on this node; set VENV in cluster/exec/env.sh"
    export PATH=$VENV/bin:$PATH
    exec "$@"
fi

[[ -f $IMAGE ]] || fail "IMAGE=$IMAGE does not exist; build it (cluster/building/build-image.sh) or set VENV"
runtime=$(command -v apptainer || command -v singularity) ||
    fail "neither apptainer nor singularity is in PATH; load its module in cluster/exec/env.sh or set VENV"
mkdir -p "$RUNS_DIR" # folders to bind must exist
options=(--bind "$REPO,$RUNS_DIR${BIND:+,$BIND}" --pwd "$PWD")
if [[ -e /dev/nvidiactl ]]; then options+=(--nv); fi
exec "$runtime" exec "${options[@]}" "$IMAGE" "$@"
