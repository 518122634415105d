#!/usr/bin/env bash
# What a chat stage brings: a tiny Llama reads the sample corpus, then conversations, and ends its turns.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -ne 1 ]; then
    cat >&2 <<'END'
bash scripts/chat_trial.sh OUT

Pretrains a tiny Llama on the sample corpus, and tunes it on sample conversations with 20% replay of the corpus, as two
stages of one run. Both are exported and asked 50 questions of other conversations.
Run it again to continue. OUT/table.md has the losses and how many answers end their turn; OUT/hf is the chat model.

  STEPS=300    of the pretraining; the chat stage has half as many
  MEGABYTES=4  of the corpus
END
    exit 2
fi

OUT=$1
STEPS=${STEPS:-300}
MEGABYTES=${MEGABYTES:-4}
[[ $STEPS =~ ^[0-9]+$ && $STEPS -ge 10 ]] || fail "STEPS=$STEPS: give a number of steps, at least 10"
[[ $MEGABYTES =~ ^[0-9]+$ ]] || fail "MEGABYTES=$MEGABYTES: give a whole number"
CHAT=$((STEPS / 2))
TASKS=6
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

# export_step STEP FOLDER
export_step() {
    run scripts/convert_lit_checkpoint.py --output "$2" \
        --checkpoint "$(printf '%s/run/iter-%08d-ckpt.pth' "$OUT" "$1")"
}

# Losses after a step of validation.csv, and the line of the answers.
row() {
    local name=$1 step=$2 count
    count=$(sed -n "s|^$3: \([0-9]* of [0-9]*\) .*|\1|p" "$OUT/answers.txt")
    awk -F, -v name="$name" -v step="$step" -v count="$count" '
        NR == 1 { for (i = 1; i <= NF; i++) { sub(/\r$/, "", $i); column[$i] = i } }
        $column["step"] == step { loss[$column["store"]] = $column["loss"] }
        END { printf "| %s | %.2f | %.2f | %s |\n", name, loss["chat"], loss["text"], count }' "$OUT/run/validation.csv"
}

table() {
    printf '| after %s steps | loss of conversations | of documents | answers that end their turn |\n' "$STEPS + $CHAT"
    printf '|---|---|---|---|\n'
    row base "$STEPS" "$OUT/base-hf"
    row chat $((STEPS + CHAT)) "$OUT/hf"
}

use_environment model
mkdir -p "$OUT"
if task 'Write the sample corpus and sample conversations' "$OUT/questions.jsonl"; then
    run data_prep/sample_corpus.py --output "$OUT/text.jsonl" --megabytes "$MEGABYTES"
    run data_prep/sample_conversations.py --output "$OUT/chat.jsonl" --documents $((MEGABYTES * 1000))
    run data_prep/sample_conversations.py --output "$OUT/questions.jsonl" --documents 50 --seed 2
fi
if task 'Train a tokenizer with the special tokens of ChatML' "$OUT/tokenizer"; then
    run data_prep/train_tokenizer.py --input "$OUT/text.jsonl" --output "$OUT/tokenizer" --vocab_size 2048 \
        --special_tokens '<|im_start|>' '<|im_end|>'
fi
if task 'Tokenize both' "$OUT/chat"; then
    [ -e "$OUT/text" ] ||
        tokenize data_prep/tokenize_corpus.py "$OUT/tokenizer" "$OUT/text" 0.02 "$OUT/text.jsonl"
    tokenize data_prep/tokenize_chat.py "$OUT/tokenizer" "$OUT/chat" 0.02 "$OUT/chat.jsonl" --max_tokens 257
fi
if task "Train: $STEPS steps on documents, $CHAT on conversations with 20% documents" "$OUT/run/done"; then
    cat >"$OUT/run.yaml" <<END
model_name: tiny_100K
block_size: 256
val_data_dir: ["chat=$OUT/chat/val", "text=$OUT/text/val"]
global_batch_size: 16
micro_batch_size: 16
stages:
  - {name: base, steps: $STEPS, train_data_dir: ["$OUT/text/train"], learning_rate: 4.0e-3, lr_schedule: constant}
  - {name: chat, steps: $CHAT, train_data_dir: ["$OUT/chat/train:0.8", "$OUT/text/train:0.2"], learning_rate: 4.0e-3,
     warmup_steps: 0, lr_schedule: linear, min_lr: 0.0}
END
    run pretrain/tinyllama_fabric.py --config "$OUT/run.yaml" --out_dir "$OUT/run" --accelerator cpu --resume auto \
        --keep_last 1 --eval_iters 0 --eval_step_interval "$STEPS" --log_step_interval 25
fi
if task 'Export the base and the chat model' "$OUT/hf"; then
    [ -e "$OUT/base-hf" ] || export_step "$STEPS" "$OUT/base-hf"
    export_step $((STEPS + CHAT)) "$OUT/hf"
fi
if task 'Ask both' "$OUT/answers.txt"; then
    run scripts/chat_answers.py --model "$OUT/base-hf" "$OUT/hf" --conversations "$OUT/questions.jsonl" |
        tee "$OUT/answers.part"
    mv "$OUT/answers.part" "$OUT/answers.txt"
fi
table | tee "$OUT/table.md"
