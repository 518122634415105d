#!/usr/bin/env bash
# Run every check: formatting, types, shell scripts, tests. Makes .venv if it is missing.
#
#   bash scripts/test.sh                    everything
#   bash scripts/test.sh -m 'not slow'      the fast tests; arguments go to pytest
#   PYTHON=python bash scripts/test.sh      with an environment of one's own
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment all
cd "$ROOT"

failed=()
check() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}

check 'ruff check' "$PYTHON" -m ruff check
check 'ruff format' "$PYTHON" -m ruff format --check
check mypy "$PYTHON" -m mypy
if command -v shellcheck >/dev/null; then
    check shellcheck find . -path ./.venv -prune -o \( -name '*.sh' -o -path ./.ci/run \) -exec shellcheck {} +
else
    printf '\n== shellcheck is not installed: the shell scripts are not checked\n'
fi
# Without them the tests that use them are skipped.
[ $# -gt 0 ] || check 'client environments' "$PYTHON" scripts/client_environments.py
# With a worker a core, the cores are idle for 45 % of the time: SLURM's tests and those of stops mostly wait.
# At most four: many tests start several processes of their own.
check pytest "$PYTHON" -m pytest -n $(($(nproc) + 1)) --maxprocesses 4 "$@"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nFAILED: %s\n' "${failed[*]}"
    exit 1
fi
printf '\nAll checks passed.\n'
