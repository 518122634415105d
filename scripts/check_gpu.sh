#!/usr/bin/env bash
# Everything that only a GPU can show, in parts of at most eight minutes, the most telling first:
#
#   bash scripts/check_gpu.sh OUTPUT_FOLDER                                all parts, one after another
#   bash scripts/check_gpu.sh OUTPUT_FOLDER --train_data_dir STORE         on a token store of one's own
#   bash scripts/check_gpu.sh OUTPUT_FOLDER --parts versions tests train   these alone
#
# Called again it goes on with what has not passed yet. docs/performance.md has what to expect of each part:
#
#   versions tests train deterministic sharded        does it work                           the first ten minutes
#   bench-1B bench-120M bench-7B profile              how fast, beside litgpt in one call
#   lengths changes-120M changes-1B deterministic-cost sharded-cost     what each change gives
#   float8 experiments autotune                       what might be next
#
# With PYTHON=python it uses the environment that is there, and a part that lacks a package says which; otherwise
# .venv, which is made if it is missing.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case ${1:--} in -*) fail "give a folder for the results first" ;; esac
nvidia-smi >/dev/null 2>&1 || fail "nvidia-smi sees no GPU here"
[ -n "${PYTHON:-}" ] || use_environment all
output=$1
shift
exec "$PYTHON" "$ROOT/scripts/check_gpu.py" --output "$output" "$@"
