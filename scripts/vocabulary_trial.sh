#!/usr/bin/env bash
# What new tokens bring: a model of one language continued on another, with its tokenizer and with an extended one.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -ne 3 ]; then
    cat >&2 <<'END'
bash scripts/vocabulary_trial.sh ENGLISH GERMAN OUT

Pretrains a tiny Llama on ENGLISH, with a tokenizer of ENGLISH, and continues it on GERMAN twice: as it is, and with
as many tokens again, learned from GERMAN, in two stages (new rows, all).
ENGLISH and GERMAN are files or quoted globs of documents (.jsonl, .jsonl.gz, .jsonl.zst), ten megabytes or more.
Run it again to continue. OUT/table.md has the bits per byte of both languages after so many megabytes of GERMAN.

  STEPS=1000   of the pretraining; each continuation has 4/5 as many
  TOKENS=4096  of the tokenizer of ENGLISH, and as many new ones
END
    exit 2
fi

ENGLISH=$1
GERMAN=$2
OUT=$3
STEPS=${STEPS:-1000}
TOKENS=${TOKENS:-4096}
[[ $STEPS =~ ^[0-9]+$ && $STEPS -ge 10 ]] || fail "STEPS=$STEPS: give a number of steps, at least 10"
[[ $TOKENS =~ ^[0-9]+$ ]] || fail "TOKENS=$TOKENS: give a number of tokens"
NEW_ROWS=$((STEPS * 4 / 25)) ALL=$((STEPS * 4 / 5))
RUNS=("$OUT/base" "$OUT/extended")
TASKS=7
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

train() {
    run pretrain/tinyllama_fabric.py --accelerator cpu --resume auto --keep_last 1 --log_step_interval 25 \
        --global_batch_size 32 --micro_batch_size 32 --eval_iters 0 --eval_step_interval $((STEPS / 10)) \
        --save_step_interval $((STEPS / 10)) "$@"
}

# continue_in NAME STAGE...: the rates are the same at the same step, whatever the stages are.
continue_in() {
    local name=$1
    cat >"$OUT/$name.yaml" <<END
model_name: "$OUT/initial-$name"
initial_checkpoint_dir: "$OUT/initial-$name"
train_data_dir: ["$OUT/$name-de/train"]
val_data_dir: ["de=$OUT/$name-de/val", "en=$OUT/$name-en/val"]
learning_rate: 2.0e-3
lr_schedule: constant
warmup_steps: 0
stages:
$(printf '  - %s\n' "${@:2}")
END
    train --config "$OUT/$name.yaml" --out_dir "$OUT/$name" >>"$OUT/$name.log" 2>&1 ||
        fail "it did not end well: see $OUT/$name.log"
}

# A row's targets are 128; how many bytes each stands for follows from loss and bits per byte.
table() {
    printf '| %s ' step 'MB, base' German English 'MB, extended' German English
    printf '|\n|---|---|---|---|---|---|---|\n'
    awk -F, '
        { sub(/\r$/, "") } # the end of a line of CSV
        FNR == 1 { runs++; for (i = 1; i <= NF; i++) column[$i] = i; next }
        {
            step = $column["step"]
            if (runs == 1 && !(step in known)) { known[step]; order[++n] = step }
            bits[step, $column["store"], runs] = $column["bits_per_byte"]
            if ($column["store"] == "de") bytes[runs] = $column["loss"] / log(2) / $column["bits_per_byte"]
        }
        END {
            for (k = 1; k <= n; k++) {
                line = "| " order[k]
                for (r = 1; r <= runs; r++)
                    line = line sprintf(" | %.2f | %.3f | %.3f", order[k] * 32 * 128 * bytes[r] / 1e6,
                        bits[order[k], "de", r], bits[order[k], "en", r])
                print line " |"
            }
        }' "${RUNS[@]/%//validation.csv}"
}

use_environment model
mkdir -p "$OUT"
if task "Train a tokenizer of $TOKENS tokens on English, and tokenize" "$OUT/base-en"; then
    [ -e "$OUT/tokenizer/tokenizer_config.json" ] ||
        run data_prep/train_tokenizer.py --input "$ENGLISH" --output "$OUT/tokenizer" --vocab_size "$TOKENS"
    tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/base-en" 0.01 "$ENGLISH"
fi
if task "Pretrain tiny_100K on English, $STEPS steps" "$OUT/english/done"; then
    train --model_name tiny_100K --out_dir "$OUT/english" --train_data_dir "$OUT/base-en/train" --max_steps "$STEPS" \
        --val_data_dir "en=$OUT/base-en/val" --warmup_steps $((STEPS / 20)) --learning_rate 4.0e-3
fi
if task 'Export it to a Hugging Face folder, and make an initial checkpoint of that' "$OUT/initial-base"; then
    rm -rf "$OUT/hf"
    run scripts/convert_lit_checkpoint.py --checkpoint "$(newest_checkpoint "$OUT/english")" --output "$OUT/hf"
    run scripts/convert_hf_checkpoint.py --hf_dir "$OUT/hf" --output "$OUT/initial-base"
fi
if task "Extend the tokenizer by $TOKENS tokens of German, and the model with it" "$OUT/initial-extended"; then
    [ -e "$OUT/hf+de" ] || run data_prep/extend_tokenizer.py --tokenizer "$OUT/hf" --input "$GERMAN" \
        --new_tokens "$TOKENS" --output "$OUT/hf+de"
    run scripts/convert_hf_checkpoint.py --hf_dir "$OUT/hf" --output "$OUT/initial-extended" --extension "$OUT/hf+de"
fi
if task 'Tokenize both languages' "$OUT/extended-en"; then
    [ -e "$OUT/base-de" ] ||
        tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/base-de" 0.01 "$GERMAN"
    [ -e "$OUT/extended-de" ] ||
        tokenize data_prep/tokenize_corpus.py "$OUT/hf+de" "$OUT/extended-de" 0.01 "$GERMAN"
    tokenize data_prep/tokenize_corpus.py "$OUT/hf+de" "$OUT/extended-en" 0.01 "$ENGLISH"
fi
if task "Continue both on German, side by side: $OUT/*.log" "$OUT/continued"; then
    trap 'wait; exit 130' INT # the runs have had the signal, too, and save
    continue_in base "{name: all, steps: $ALL}" &
    processes=($!)
    continue_in extended "{name: new, steps: $NEW_ROWS, trainable: ['transformer.wte[new]', 'lm_head[new]']}" \
        "{name: all, steps: $((ALL - NEW_ROWS))}" &
    processes+=($!)
    for process in "${processes[@]}"; do wait "$process" || exit; done
    touch "$OUT/continued"
fi
task 'Compare the runs' '' || true
table | tee "$OUT/table.md"
