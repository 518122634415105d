#!/usr/bin/env bash
# Checkpoint -> Hugging Face folder, by scripts/convert_lit_checkpoint.py.
#
#   bash scripts/create.sh CHECKPOINT OUTPUT [TOKENIZER] [OPTION...]
#   bash scripts/create.sh --all RUN OUTPUT [TOKENIZER] [OPTION...]   every checkpoint of a run, each to OUTPUT/iter-N;
#                                                                     existing ones are skipped
#
# TOKENIZER is the folder of the training data's tokenizer, by default the copy in its token store. Options are those
# of the converter, such as --dtype bfloat16. In a container:  apptainer exec llammlein.sif bash scripts/create.sh ...
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-$([ -x "$ROOT/.venv/bin/python" ] && echo "$ROOT/.venv/bin/python" || echo python3)}

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

convert() {
    "$PYTHON" "$ROOT/scripts/convert_lit_checkpoint.py" --checkpoint "$1" --output "$2" "${OPTIONS[@]}"
}

ALL=false
case ${1:-} in
    --help | -h)
        usage
        exit
        ;;
    --all)
        ALL=true
        shift
        ;;
esac
if [ $# -lt 2 ] || [[ $1 = --* ]] || [[ $2 = --* ]]; then
    echo "error: scripts/create.sh takes a checkpoint (or --all and a run) and an output folder; --help says more" >&2
    exit 2
fi
SOURCE=$1 OUTPUT=$2
shift 2
OPTIONS=()
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    OPTIONS+=(--tokenizer_path "$1")
    shift
fi
OPTIONS+=("$@")

if ! $ALL; then
    convert "$SOURCE" "$OUTPUT"
    exit
fi
shopt -s nullglob
checkpoints=("$SOURCE"/iter-*-ckpt.pth)
if [ ${#checkpoints[@]} -eq 0 ]; then
    echo "error: $SOURCE holds no checkpoint (iter-*-ckpt.pth); give the folder of a run" >&2
    exit 2
fi
status=0
for checkpoint in "${checkpoints[@]}"; do
    name=$(basename "$checkpoint" -ckpt.pth)
    if [ -e "$OUTPUT/$name" ]; then
        echo "$OUTPUT/$name already exists"
    else
        # One damaged checkpoint must not keep the others from being converted.
        convert "$checkpoint" "$OUTPUT/$name" || status=$?
    fi
done
exit $status
