#!/usr/bin/env bash
# Everything that only a GPU can show: the tests that need one, steps per second against others, time by kernel.
#
#   bash scripts/check_gpu.sh OUTPUT_FOLDER      about fifteen minutes on one H200; makes .venv if it is missing
#
# litgpt and torchao are measured where they are installed in that environment: pip install litgpt torchao==0.18.0
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# = 1 ] || fail "give one folder for the results"
nvidia-smi >/dev/null 2>&1 || fail "nvidia-smi sees no GPU here"
mkdir -p "$1"
output=$(cd "$1" && pwd)
use_environment all
cd "$ROOT"

status=0
tests=(tests/lit_gpt/test_{attention,loss,model}.py)
"$PYTHON" -m pytest -rs "${tests[@]}" 2>&1 | tee "$output/tests.txt" || status=1
"$PYTHON" scripts/bench_step.py --output "$output/bench.json" 2>&1 | tee "$output/bench.txt" || status=1
"$PYTHON" scripts/bench_step.py --profile 2>&1 | tee "$output/profile.txt" || status=1
exit "$status"
