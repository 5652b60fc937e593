#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0 and torch 2.13.0.
#
# `eval_loss` of Trainer is a mean over batches of each batch's mean over tokens, weighted by the rows of a batch, not by its tokens.
# Where texts differ in length it is therefore no loss a token of the set, and depends on per_device_eval_batch_size: exp(eval_loss)
# is no perplexity. (The loss that is trained is a mean over the tokens of all accumulated micro-batches.) Seen for one model and
# eight texts of 4 and 60 tokens: 4.06, 4.39, 4.58 and 4.60 for batches of 1, 2, 4 and 8 rows; a token's mean is that of one batch of
# all rows, 4.60.
# slmctl's held-out loss is a sum over tokens divided by their number, the same for any batch, and tests show that.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/out" <<'PY'
import sys
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                     num_attention_heads=4, initializer_range=0.1)).eval()
rows = []
for length in (4, 60, 4, 60, 4, 4, 4, 60):  # the short ones of one token again and again
    ids = torch.randint(97, (length,)) if length > 4 else torch.zeros(length, dtype=torch.long)
    pad = (0, 60 - length)
    rows.append({"input_ids": F.pad(ids, pad), "attention_mask": F.pad(torch.ones_like(ids), pad), "labels": F.pad(ids, pad, value=-100)})
with torch.no_grad():
    logits = model(torch.stack([r["input_ids"] for r in rows]), torch.stack([r["attention_mask"] for r in rows])).logits
labels = torch.stack([r["labels"] for r in rows])
a_token = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
found = {}
for size in (1, 2, 4, 8):
    args = TrainingArguments(sys.argv[1], per_device_eval_batch_size=size, report_to=[], use_cpu=True, disable_tqdm=True)
    found[size] = Trainer(model, args, eval_dataset=rows).evaluate()["eval_loss"]
print("eval_loss by batch size:", {n: round(x, 3) for n, x in found.items()}, f"loss a token: {a_token:.3f}")
assert abs(found[8] - a_token) < 1e-4
assert max(found.values()) - min(found.values()) > 0.3 and len({round(x, 2) for x in found.values()}) > 2
PY
echo "still so"
