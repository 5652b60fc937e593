#!/usr/bin/env bash
# lm_eval 0.4.13 with transformers 5.23.0 and torch 2.13.0.
#
# Bits per byte and perplexities of lm-evaluation-harness come from loglikelihood_rolling, which sets a prefix token (BOS, else EOS)
# before each document, so that its first token is predicted as well. Where the tokenizer adds BOS by itself, as Llama's, Gemma's and
# Mistral's do, the document's own ids begin with BOS, and the prefix comes before that: BOS is predicted from BOS and counted,
# and all that follows has it twice before it. Texts never hold it there, so a trained model gives it next to nothing; the shorter
# documents are, the more the figure is raised, for such tokenizers alone. With add_bos_token=False the document has one BOS. Seen for
# a small model that was trained on texts of eight bytes, each after one BOS: 0.78 bits a byte by hand and with
# add_bos_token=False, 2.83 as it is.
# slmctl's rolling figure sets the prefix once, whatever the tokenizer adds, and a test compares it with the harness.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'lm_eval[hf]==0.4.13' transformers==5.23.0
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" - <<'PY'
import math
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

entries = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
made = Tokenizer(models.BPE({t: i for i, t in enumerate(entries)}, []))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.add_special_tokens(["<s>", "</s>"])
made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(entries), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1))
texts = [f"{n % 9} and {n * 7 % 8}." for n in range(72)]  # of eight bytes
ids = torch.tensor([tokenizer(t)["input_ids"] for t in texts])
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(150):
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()

def bits_a_byte(**how):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu", **how)
    requests = [Instance("loglikelihood_rolling", {}, (t,), n) for n, t in enumerate(texts)]
    nats = -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True))
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)

with torch.no_grad():
    nats = model(ids, labels=ids).loss.item() * ids[:, 1:].numel()
by_hand = nats / math.log(2) / sum(len(t.encode()) for t in texts)
as_it_is, told = bits_a_byte(), bits_a_byte(add_bos_token=False)
print(f"bits a byte: by hand {by_hand:.3f}, add_bos_token=False {told:.3f}, as it is {as_it_is:.3f}")
assert abs(told - by_hand) < 1e-4 and as_it_is > 2 * by_hand
PY
echo "still so"
