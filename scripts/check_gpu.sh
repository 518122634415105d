#!/usr/bin/env bash
# Check what only a GPU can show, in parts of at most eight minutes each, the most telling first:
#
#   bash scripts/check_gpu.sh OUTPUT_FOLDER                                all parts, one after another
#   bash scripts/check_gpu.sh OUTPUT_FOLDER --train_data_dir STORE         on your own token store
#   bash scripts/check_gpu.sh OUTPUT_FOLDER --parts versions tests train   only these
#
# Called again, it continues with the parts that have not passed. docs/performance.md says what to expect of each:
#
#   versions tests train deterministic sharded        does it work?  (the first ten minutes)
#   bench-1B bench-120M bench-7B profile              how fast is it, beside litgpt?
#   lengths changes-120M changes-1B deterministic-cost sharded-cost     what does each optimization give?
#   float8 experiments autotune                       what could be next?
#
# PYTHON=python uses the active environment; a part that lacks a package names it. Otherwise .venv is used, and
# made if it is missing.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case ${1:--} in -*) fail "give the folder for the results as the first argument" ;; esac
nvidia-smi >/dev/null 2>&1 || fail "nvidia-smi sees no GPU here; run this on a machine with one"
[ -n "${PYTHON:-}" ] || use_environment all
output=$1
shift
exec "$PYTHON" "$ROOT/scripts/check_gpu.py" --output "$output" "$@"
