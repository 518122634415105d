#!/usr/bin/env bash
# Every stage once: text -> tokenizer -> token store -> training, stopped and resumed -> Hugging Face folder.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
    cat <<'END'
bash scripts/quickstart.sh [--input FILE|GLOB...] [--vocab_size N] [--out DIR] [--config FILE] [--fresh]

Pretrains a tiny Llama on the CPU, from text to a Hugging Face folder, in a few minutes. The first time it
makes .venv and installs what it needs of requirements.txt into it, from the package index that pip uses (about
500 MB); it needs Python 3.11 or newer.

  --input FILES  your own documents (.jsonl, .jsonl.gz, .jsonl.zst; quote a glob) in place of the sample corpus
  --vocab_size N tokens of the tokenizer; default 4096
  --out DIR      where everything goes; default out/quickstart, and out/my-data with --input
  --config FILE  training options; default pretrain/configs/debug_cpu.yaml
  --fresh        remove what an earlier run left in DIR and start clean
  --help         this text

Run it again to continue with the first stage that is not complete.

  PYTHON=...         use this interpreter's environment instead of .venv
  TORCH_BUILD=cuda   install torch's CUDA build although this machine has no GPU (cpu: the other way round)

Exit codes: 0 done, 2 bad input, 130 interrupted, others are faults.
END
}

INPUTS=()
VOCAB_SIZE=4096
OUT=''
CONFIG=$ROOT/pretrain/configs/debug_cpu.yaml
FRESH=false
while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --input)
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do
                if [[ $1 = /* ]]; then INPUTS+=("$1"); else INPUTS+=("$PWD/$1"); fi
                shift
            done
            [ ${#INPUTS[@]} -gt 0 ] || fail "--input names no file"
            ;;
        --vocab_size)
            [[ ${1:-} =~ ^[0-9]+$ ]] || fail "--vocab_size ${1:-}: not a number"
            VOCAB_SIZE=$1
            shift
            ;;
        --out)
            [ $# -gt 0 ] || fail "--out names no folder"
            OUT=$1
            shift
            ;;
        --config)
            [ -f "${1:-}" ] || fail "--config ${1:-}: no such file"
            CONFIG=$1
            shift
            ;;
        --fresh) FRESH=true ;;
        --help | -h)
            usage
            exit
            ;;
        *) fail "unknown option $option (--help lists the options)" ;;
    esac
done

VAL_FRACTION=0.05
TASKS=9
PROMPT='Es war einmal'
# A tiny model gains nothing from more.
THREADS=$(nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((THREADS > 8 ? 8 : THREADS))}
export PYTHONUNBUFFERED=1

# Before anything is made or installed; data_prep/reading/inputs.py looks into the files later.
check_inputs() {
    local pattern file found kinds='.jsonl, .ndjson or .json, alone or with .gz or .zst, or .parquet'
    for pattern in "${INPUTS[@]}"; do
        [ ! -d "$pattern" ] || fail "--input $pattern is a folder; give files or a glob in quotes: $kinds"
        found=false
        while IFS= read -r file; do
            [ -f "$file" ] || continue
            found=true
            [[ $file =~ \.(parquet|(jsonl|ndjson|json)(\.gz|\.zst)?)$ ]] || fail "--input $file is none of $kinds"
            [ -s "$file" ] || fail "--input $file is empty"
        done < <(if [ -f "$pattern" ]; then echo "$pattern"; else compgen -G "$pattern"; fi)
        $found || fail "--input $pattern names no file; give $kinds"
    done
}

# $OUT/quickstart.txt marks the folder as ours to remove, and says what it is made from.
open_out() {
    if [ -z "$OUT" ]; then
        OUT=$ROOT/out/quickstart
        [ ${#INPUTS[@]} -eq 0 ] || OUT=$ROOT/out/my-data
    fi
    local marker=$OUT/quickstart.txt wanted
    wanted=$(printf '%s\n' "${INPUTS[@]:-the sample corpus}")
    if [ -e "$OUT" ] && [ ! -f "$marker" ] && [ -n "$(ls -A "$OUT" 2>/dev/null || echo file)" ]; then
        fail "--out $OUT is there already and is no quickstart's; give another folder"
    fi
    if $FRESH && [ -e "$marker" ]; then
        echo "Starting clean: removing $OUT"
        rm -rf "$OUT"
    elif [ -e "$marker" ]; then
        [ "$wanted" = "$(<"$marker")" ] ||
            fail "--out $OUT was made from $(paste -sd ' ' "$marker"); give another folder, or --fresh"
        echo "Continuing in $OUT, where an earlier run stopped (--fresh starts clean)"
        return
    else
        echo "Starting clean in $OUT"
    fi
    mkdir -p "$OUT" || fail "--out $OUT cannot be written"
    printf '%s\n' "$wanted" >"$marker"
}

last_step() {
    local step
    step=$(tail -n 1 "$OUT/run/metrics.csv" 2>/dev/null | cut -d, -f1)
    [[ ! $step =~ ^[0-9]+$ ]] || echo "$step"
}

# train [STEP]: train to the end, or send SIGTERM once STEP is reached. Interrupting this script does the same.
train() {
    "$PYTHON" "$ROOT/pretrain/tinyllama_fabric.py" --config "$CONFIG" --resume auto --out_dir "$OUT/run" \
        --train_data_dir "$OUT/data/train" --val_data_dir "$OUT/data/val" &
    local trainer=$! interrupted=false sent=false
    trap 'interrupted=true; kill -TERM $trainer 2>/dev/null || true' INT TERM
    if [ $# -gt 0 ]; then
        while kill -0 $trainer 2>/dev/null && [ "0$(last_step)" -lt "$1" ]; do sleep 0.2 || true; done
        if ! $interrupted && kill -TERM $trainer 2>/dev/null; then
            sent=true
            [ ! -t 2 ] || echo # below the bar
            echo "Sent SIGTERM to the training process, as a cluster does before it takes a node away"
        fi
    fi
    local status=0
    wait $trainer || status=$?
    # A trapped signal ends `wait` before the process has saved and left.
    while kill -0 $trainer 2>/dev/null; do
        wait $trainer || status=$?
    done
    trap - INT TERM
    # Bash forgets a Ctrl-C that comes as a child of its own ends; the trainer has had it, too, and has stopped.
    if $interrupted || { [ $status -eq 0 ] && ! $sent && [ ! -e "$OUT/run/done" ]; }; then
        echo "interrupted; run this again to continue" >&2
        exit 130
    fi
    [ $status -eq 0 ] || exit $status
}

summary() {
    local losses activate=''
    [ "$PYTHON" != "$ENVIRONMENT/bin/python" ] || activate=" after '. .venv/bin/activate'"
    losses=$(awk -F, 'NR == 2 { first = $2 } NR > 1 { last = $2 } NR > 1 && $8 { val = $8 }
        END { printf "loss %.2f -> %.2f, validation %.2f", first, last, val }' "$OUT/run/metrics.csv")
    cat <<END

Done after $SECONDS s: $losses.

  $OUT/
    tokenizer/       byte-level BPE, loads with AutoTokenizer
    data/train, val  token stores: the documents as numbers, in Megatron-LM's format
    run/             checkpoints, metrics.csv, tensorboard/, and datapoints/: what each step was fed
    hf/              the model: AutoModelForCausalLM.from_pretrained("$OUT/hf")
    loss.png         loss and learning rate of the run
    sample.txt       what the model writes after "$PROMPT"

Next, in $ROOT$activate:

  what step 10 was fed      python scripts/datapoints.py step --run $OUT/run --step 10
  the run in a browser      python scripts/explore.py --run $OUT/run
  other text                python scripts/generate.py --model $OUT/hf --prompt 'Am Morgen'
  documents of your own     bash scripts/quickstart.sh --input 'mine/*.jsonl.zst'
  a larger model, a GPU, a cluster: README.md
END
}

main() {
    [ ${#INPUTS[@]} -eq 0 ] || check_inputs
    open_out
    use_environment model

    if [ ${#INPUTS[@]} -eq 0 ]; then
        INPUTS=("$OUT/corpus.jsonl")
        if task 'Write the sample corpus' "$OUT/corpus.jsonl"; then
            run data_prep/sample_corpus.py --output "$OUT/corpus.jsonl"
        fi
    else
        task "Take the documents of ${INPUTS[*]}" '' || true
    fi
    if task "Train a tokenizer of $VOCAB_SIZE tokens" "$OUT/tokenizer"; then
        rm -rf "$OUT/tokenizer.part"
        run data_prep/train_tokenizer.py --input "${INPUTS[@]}" --output "$OUT/tokenizer.part" \
            --vocab_size "$VOCAB_SIZE"
        mv "$OUT/tokenizer.part" "$OUT/tokenizer"
    fi
    if task 'Tokenize, and split off documents for validation' "$OUT/data"; then
        tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/data" "$VAL_FRACTION" "${INPUTS[@]}"
    fi
    local steps
    steps=$(sed -n 's/^max_steps: *\([0-9]*\).*/\1/p' "$CONFIG")
    local half=$((${steps:-1000} / 2))
    if task "Pretrain, and be stopped after step $half" "$(newest_checkpoint "$OUT/run")"; then
        train "$half"
    fi
    if task 'Resume from the checkpoint and train to the end' "$OUT/run/done"; then
        train
    fi
    if task 'Convert to a Hugging Face folder, reload it and compare logits' "$OUT/hf"; then
        run scripts/convert_lit_checkpoint.py --checkpoint "$(newest_checkpoint "$OUT/run")" --output "$OUT/hf" \
            --tokenizer_path "$OUT/tokenizer" --check
    fi
    if task 'Prove from the log what every step was fed' "$OUT/verified.txt"; then
        run scripts/datapoints.py verify --run "$OUT/run" | tee "$OUT/verified.part"
        mv "$OUT/verified.part" "$OUT/verified.txt"
    fi
    if task "Let the model continue \"$PROMPT\"" "$OUT/sample.txt"; then
        run scripts/generate.py --model "$OUT/hf" --prompt "$PROMPT" --temperature 0.5 | tee "$OUT/sample.part"
        mv "$OUT/sample.part" "$OUT/sample.txt"
    fi
    if task 'Draw the run' "$OUT/loss.png"; then
        run scripts/plot_run.py --run "$OUT/run" --output "$OUT/loss.png"
    fi
    summary
}

main
