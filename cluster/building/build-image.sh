#!/usr/bin/env bash
# build-image.sh [IMAGE] - build the container of llammlein.def, llammlein.sif in the repository's root by default.
#
# Needs apptainer, the network, 40 GB in APPTAINER_TMPDIR and, for FlashAttention-3, half an hour on 16 cores (MAX_JOBS
# sets how many it takes; each needs 4 GB of memory). No GPU. The image contains no credentials: nothing of the home
# folder and no variable of this shell.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
image=${1:-llammlein.sif}

fail() {
    echo "error: $*" >&2
    exit 2
}

command -v apptainer >/dev/null || fail "apptainer is not in PATH; load its module, or build on a machine that has it"
[[ ! -e $image ]] || fail "$image exists already; move it away, since jobs may be using it"

# Use the time of the last change of its sources for all files of the image.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- llammlein.def cluster/building 2>/dev/null ||
    stat --format=%Y llammlein.def)
export SOURCE_DATE_EPOCH

apptainer build --build-arg "max_jobs=${MAX_JOBS:-8}" "$image" llammlein.def
sha256sum "$image"
