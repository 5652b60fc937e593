#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0.
#
# Documents packed in one row are told apart by position ids that restart: most models of transformers find the borders by
# them and mask attention across. Some do not hand position ids on to what makes the mask, and attend to the documents before,
# without a word. Seen, for tiny models of random weights and a row of two documents, the second document's hidden states
# beside those that it has alone: Mixtral the same to rounding; GPT-OSS and AFMoE more than a tenth of their length away.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import torch
from transformers import AutoConfig, AutoModel

shape = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.2)
experts = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2)
ids = torch.arange(33)[None] * 31 % 97
positions = torch.cat([torch.arange(23), torch.arange(10)])[None]
away = {}
for kind in ("mixtral", "gpt_oss", "afmoe"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape, **experts)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False)[0][0, 23:]
        alone = model(input_ids=ids[:, 23:], use_cache=False)[0][0]
    away[kind] = ((packed - alone).norm() / alone.norm()).item()
    print(f"{kind:8} relative difference {away[kind]:.1e}")
assert away["mixtral"] < 1e-4 and min(away["gpt_oss"], away["afmoe"]) > 0.1
PY
echo "still so"
