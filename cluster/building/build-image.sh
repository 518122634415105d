#!/usr/bin/env bash
# build-image.sh [IMAGE] - build the container of llammlein.def, llammlein.sif in the repository's root by default.
#
# Needs apptainer, the network, 40 GB in APPTAINER_TMPDIR and, for FlashAttention-3, half an hour on 16 cores (MAX_JOBS
# sets how many it takes; each needs 4 GB of memory). No GPU. The result holds no credentials: nothing of the home
# folder and no variable of this shell goes in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
image=${1:-llammlein.sif}

fail() {
    echo "error: $*" >&2
    exit 2
}

command -v apptainer >/dev/null || fail "no apptainer in PATH; load its module, or build on a machine that has it"
[[ ! -e $image ]] || fail "$image is there already; move it away, jobs may be using it"

# Times in the image are those of the last change of what it is made from.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- llammlein.def cluster/building 2>/dev/null ||
    stat --format=%Y llammlein.def)
export SOURCE_DATE_EPOCH

apptainer build --build-arg "max_jobs=${MAX_JOBS:-8}" "$image" llammlein.def
sha256sum "$image"
