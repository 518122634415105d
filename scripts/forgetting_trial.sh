#!/usr/bin/env bash
# What a model forgets: pretrained on one language, continued on another with 0, 5 and 25% replay of the first.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -ne 3 ]; then
    cat >&2 <<'END'
bash scripts/forgetting_trial.sh ENGLISH GERMAN OUT

Pretrains a tiny Llama on ENGLISH, takes it through a Hugging Face folder, and continues it on GERMAN three times,
with 0, 5 and 25% of the rows from ENGLISH, in three stages: adapt, longer rows with linear RoPE, anneal.
ENGLISH and GERMAN are files or quoted globs of documents (.jsonl, .jsonl.gz, .jsonl.zst), ten megabytes or more.
Run it again to continue. OUT/table.md has the bits per byte at each border, OUT/forgetting.png the plot.

  STEPS=1000   of the pretraining; the three stages have 5/8, 1/8 and 1/4 as many
END
    exit 2
fi

ENGLISH=$1
GERMAN=$2
OUT=$3
STEPS=${STEPS:-1000}
[[ $STEPS =~ ^[0-9]+$ && $STEPS -ge 8 ]] || fail "STEPS=$STEPS: give a number of steps, at least 8"
ADAPT=$((STEPS * 5 / 8)) LONGER=$((STEPS / 8)) ANNEAL=$((STEPS / 4)) WARMUP=$((STEPS / 20))
RUNS=("$OUT/replay-0" "$OUT/replay-5" "$OUT/replay-25")
TASKS=8
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

# Validation is on all rows, so that rows of both lengths are measured on the same documents.
train() {
    run pretrain/tinyllama_fabric.py --accelerator cpu --resume auto --keep_last 1 --log_step_interval 25 \
        --micro_batch_size 32 --val_data_dir "en=$OUT/en/val" "de=$OUT/de/val" --eval_iters 0 \
        --eval_step_interval $((STEPS / 4)) --save_step_interval $((STEPS / 4)) "$@"
}

# continue_in RUN: longer rows take documents that were not seen in shorter ones, and half as many make a step.
continue_in() {
    local run=$1 replay=${1##*-} short long
    short="\"$OUT/de/train@0-70:$((100 - replay))\"" long="\"$OUT/de/train@70-100:$((100 - replay))\""
    if [ "$replay" -gt 0 ]; then
        short+=", \"$OUT/en/train@0-70:$replay\"" long+=", \"$OUT/en/train@70-100:$replay\""
    fi
    cat >"$run.yaml" <<END
model_name: "$OUT/initial"
initial_checkpoint_dir: "$OUT/initial"
learning_rate: 2.0e-3
stages:
  - {name: adapt, steps: $ADAPT, train_data_dir: [$short], warmup_steps: $WARMUP, lr_schedule: constant,
     global_batch_size: 32}
  - {name: longer, steps: $LONGER, train_data_dir: [$long], warmup_steps: 0, lr_schedule: constant,
     global_batch_size: 16, block_size: 256, rope_scaling: {rope_type: linear, factor: 2.0}}
  - {name: anneal, steps: $ANNEAL, train_data_dir: [$long], warmup_steps: 0, lr_schedule: linear, min_lr: 0.0,
     global_batch_size: 16, block_size: 256, rope_scaling: {rope_type: linear, factor: 2.0}}
END
    train --config "$run.yaml" --out_dir "$run" >>"$run.log" 2>&1 || fail "it did not end well: see $run.log"
}

# Bits per byte of both languages at the borders, a column for each run; then what the trial is to show.
table() {
    printf '| %s ' 'after step' stage 'English 0%' 5% 25% 'German 0%' 5% 25%
    printf '|\n|---|---|---|---|---|---|---|---|\n'
    awk -F, -v borders=" 0 $ADAPT $((ADAPT + LONGER)) $((ADAPT + LONGER + ANNEAL)) " '
        { sub(/\r$/, "") } # the end of a line of CSV
        FNR == 1 { runs++; for (i = 1; i <= NF; i++) column[$i] = i; next }
        index(borders, " " $column["step"] " ") {
            at = $column["step"] " | " $column["stage"]
            if (!(at in known)) { known[at]; order[++n] = at }
            bits[at, $column["store"], runs] = $column["bits_per_byte"]
        }
        END {
            for (k = 1; k <= n; k++) {
                line = "| " order[k]
                for (r = 1; r <= runs; r++) line = line sprintf(" | %.3f", bits[order[k], "en", r])
                for (r = 1; r <= runs; r++) line = line sprintf(" | %.3f", bits[order[k], "de", r])
                print line " |"
            }
            for (r = 1; r <= runs; r++) {
                rise[r] = bits[order[n], "en", r] - bits[order[1], "en", r]
                german = bits[order[n], "de", r]
                if (r == 1 || german < low) low = german
                if (german > high) high = german
            }
            printf "\nEnglish rises by %.3f, %.3f and %.3f bits per byte", rise[1], rise[2], rise[3]
            print (rise[1] > rise[2] && rise[2] > rise[3] ? ": the less, the more replay." : ", which is NOT in order.")
            printf "German ends within %.1f%%.\n", 100 * (high / low - 1)
        }' "${RUNS[@]/%//validation.csv}"
}

use_environment model
mkdir -p "$OUT"
if task 'Train one tokenizer of 4096 tokens on both languages' "$OUT/tokenizer"; then
    run data_prep/train_tokenizer.py --input "$ENGLISH" "$GERMAN" --output "$OUT/tokenizer" --vocab_size 4096
fi
if task 'Tokenize English' "$OUT/en"; then
    tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/en" 0.03 "$ENGLISH"
fi
if task 'Tokenize German' "$OUT/de"; then
    tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/de" 0.01 "$GERMAN"
fi
if task "Pretrain tiny_100K on English, $STEPS steps" "$OUT/english/done"; then
    train --model_name tiny_100K --out_dir "$OUT/english" --train_data_dir "$OUT/en/train" --max_steps "$STEPS" \
        --warmup_steps "$WARMUP" --learning_rate 4.0e-3 --global_batch_size 32
fi
if task 'Export it to a Hugging Face folder, and make an initial checkpoint of that' "$OUT/initial"; then
    rm -rf "$OUT/hf"
    run scripts/convert_lit_checkpoint.py --checkpoint "$(newest_checkpoint "$OUT/english")" --output "$OUT/hf"
    run scripts/convert_hf_checkpoint.py --hf_dir "$OUT/hf" --output "$OUT/initial"
fi
if task "Continue on German with 0, 5 and 25% replay, side by side: $OUT/replay-*.log" "$OUT/continued"; then
    trap 'wait; exit 130' INT # the runs have had the signal, too, and save
    processes=()
    for folder in "${RUNS[@]}"; do
        continue_in "$folder" &
        processes+=($!)
    done
    for process in "${processes[@]}"; do wait "$process" || exit; done
    touch "$OUT/continued"
fi
task 'Compare the runs' '' || true
table | tee "$OUT/table.md"
task 'Plot them' '' || true
run scripts/plot_run.py --run "${RUNS[@]}" --output "$OUT/forgetting.png"
