#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0.
#
# A GGUF file names the rule by which its tokenizer cuts texts (`tokenizer.ggml.pre`), since vocabulary and merges alone do not
# tell it. AutoTokenizer does not read that field: files that differ in it alone give one and the same tokenizer. Seen: digits
# stay together as GPT-2 cuts them, whether the file says `gpt-2` or `smollm` (digits one by one, as SmolLM2 was trained).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 gguf==0.19.0 sentencepiece==0.2.3
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from pathlib import Path
import gguf, numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

trained = Tokenizer(models.BPE())
trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trained.train_from_iterator([f"part {n % 100} of 2024" for n in range(3000)], trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
import json
parts = json.loads(trained.to_str())["model"]
tokens = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
merges = [" ".join(m) for m in parts["merges"]]
rules = {}
for rule in ("gpt-2", "smollm"):
    file = Path(sys.argv[1]) / f"{rule}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(len(tokens)); writer.add_block_count(1); writer.add_context_length(64)
    writer.add_embedding_length(8); writer.add_feed_forward_length(8); writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2"); writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens); writer.add_token_merges(merges)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_eos_token_id(0); writer.add_bos_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), np.float32))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    loaded = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=file.name)
    rules[rule] = loaded.backend_tokenizer.pre_tokenizer.pre_tokenize_str("part 2024")
    print(f"{rule:7}", [p for p, _ in rules[rule]])
assert rules["gpt-2"] == rules["smollm"] and any("2024" in p for p, _ in rules["smollm"])
PY
echo "still so"
