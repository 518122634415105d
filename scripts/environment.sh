# shellcheck shell=bash
# Sourced by quickstart.sh, the trials and test.sh. `use_environment` sets PYTHON to an interpreter with
# the packages of requirements.txt: the one that PYTHON names, else that of .venv, which is made and kept up to
# date. `use_environment all` wants all of them, `use_environment model` those that lead from text to a model:
# half the download.
#
#   PYTHON        an interpreter whose environment is used as it is (a container, a cluster's module)
#   TORCH_BUILD   cpu or cuda: which torch to install; by default cpu where nvidia-smi sees no GPU

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ENVIRONMENT=$ROOT/.venv
MINIMUM=3.11
# Where the CPU builds of torch are published; asked only when the configured indexes have none.
CPU_TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Threads that wait by spinning are 4 times slower where others use the machine too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

# torch takes 2 s to import, and 5 s where Python may not keep what it has compiled.
unset PYTHONDONTWRITEBYTECODE

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# task TITLE RESULT: say which of $TASKS comes, and whether it is still to do. A result is complete or absent.
number=0
task() {
    number=$((number + 1))
    printf '\n[%d/%d, after %d s] %s\n' "$number" "$TASKS" "$SECONDS" "$1"
    [ ! -e "$2" ] || { echo "there already: $2" && return 1; }
}

run() {
    "$PYTHON" "$ROOT/$1" "${@:2}"
}

# tokenize COMMAND TOKENIZER OUTPUT VAL_FRACTION INPUT... OPTION...: OUTPUT/train and OUTPUT/val, both or none.
tokenize() {
    run "$1" --tokenizer "$2" --output "$3.part/train" --val_output "$3.part/val" --val_fraction "$4" \
        --input "${@:5}"
    mv "$3.part" "$3"
}

newest_checkpoint() {
    local checkpoints=("$1"/iter-*-ckpt.pth)
    echo "${checkpoints[${#checkpoints[@]} - 1]}"
}

use_environment() {
    local wanted
    wanted=$(_requirements "$1")
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: no such program; unset it to have .venv made"
        local missing
        missing=$(_missing_packages "$PYTHON" <<<"$wanted") || fail "PYTHON=$PYTHON does not run"
        [ -z "$missing" ] ||
            fail "PYTHON=$PYTHON lacks $missing; install requirements.txt there, or unset PYTHON to have .venv made"
        return
    fi
    PYTHON=$ENVIRONMENT/bin/python
    if ! _is_current "$PYTHON" || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        local base
        base=$(_find_python) || exit 2
        echo "Making the environment $ENVIRONMENT with $("$base" --version)"
        "$base" -m venv --clear "$ENVIRONMENT"
    fi
    # The copy is written after a successful install: it lists what is there.
    local installed=$ENVIRONMENT/requirements.txt
    { cmp -s "$ROOT/requirements.txt" "$installed" || cmp -s - "$installed" <<<"$wanted"; } && return
    printf '%s\n' "$wanted" >"$installed.new"
    _install "$installed.new"
    mv "$installed.new" "$installed"
}

# The lines of requirements.txt: all, or with `model` those above "Evaluation and development".
_requirements() {
    case $1 in
        all) cat "$ROOT/requirements.txt" ;;
        model) sed '/^# Evaluation and development/,$d' "$ROOT/requirements.txt" ;;
    esac
}

# The packages on standard input that an interpreter does not have, as one line.
_missing_packages() {
    "$1" -c '
import importlib.metadata, re, sys
names = [re.match(r"[\w.-]+", line) for line in sys.stdin]
have = {re.sub(r"[-_.]+", "-", d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()}
print(*(name[0] for name in names if name and re.sub(r"[-_.]+", "-", name[0]).lower() not in have))
'
}

_is_current() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${MINIMUM/./, }))" 2>/dev/null
}

# The first Python that is new enough and can make an environment.
_find_python() {
    local candidate incomplete=''
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        _is_current "$candidate" || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        incomplete=${incomplete:-$candidate}
    done
    if [ -z "$incomplete" ]; then
        fail "no Python $MINIMUM or newer found (tried python3, python3.11 to python3.14); install one" \
            "and run this again, or set PYTHON to an interpreter that has requirements.txt installed"
    fi
    local version
    version=$("$incomplete" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fail "Python $version cannot make environments: its modules venv and ensurepip are missing; on Debian and" \
        "Ubuntu install them by 'apt-get install python$version-venv', then run this again"
}

# pip compiles every module it installs, most of which are never imported: Python does it at first use.
_install() {
    local quiet=--quiet torch=''
    [ -t 1 ] && quiet=''
    torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$ROOT/requirements.txt")
    _install_cpu_torch "$torch+cpu" || true
    echo "Installing requirements.txt"
    # shellcheck disable=SC2086 # empty on a terminal
    "$PYTHON" -m pip install $quiet --no-compile -r "$1" ||
        fail "pip could not install requirements.txt (see above); run this again when that is fixed"
}

# Without a GPU a CPU build of torch saves some gigabytes; it is no error if there is none.
_install_cpu_torch() {
    [ "$(uname -s)" = Linux ] || return
    if [ -n "${TORCH_BUILD:-}" ]; then
        [ "$TORCH_BUILD" = cpu ] || return
    elif nvidia-smi --list-gpus >/dev/null 2>&1; then
        return
    fi
    local log=$ENVIRONMENT/cpu_torch.log
    echo "Installing $1 (no GPU here; TORCH_BUILD=cuda takes the CUDA build)"
    "$PYTHON" -m pip install --no-compile "$1" >"$log" 2>&1 && return
    "$PYTHON" -m pip install --no-compile "$1" --extra-index-url "$CPU_TORCH_INDEX" --timeout 10 --retries 0 \
        >>"$log" 2>&1 && return
    echo "No CPU build of torch found (see $log): installing the standard one, a few gigabytes"
}
