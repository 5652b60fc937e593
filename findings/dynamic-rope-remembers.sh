#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0.
#
# Under the rope type `dynamic` rotary frequencies grow with the length of the text, beyond the length that a model was trained on.
# In transformers they follow the longest row of the batch, and of all batches before until a short one comes: they are kept in the
# module. So the loss of one and the same text depends on what the model was given earlier and on what stands beside it, in eval
# mode, without cache and without dropout. Under `longrope` it depends on the rest of the batch alone; under `yarn` on neither.
# Seen, for tiny models of random weights trained on 32 positions: the loss of a text of 48 tokens, alone in its batch, before and
# after one of 100 tokens; and logits of a text of 20 tokens beside a padded batch's longer row, relative to those it has alone:
# more than a tenth away for dynamic and longrope. So a held-out loss may depend on batch size and on the order of documents.
# slmctl answers prompts one by one under these types, and refuses them for documents that are packed in a row; both have tests.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

shape = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, initializer_range=0.2)
trained = dict(original_max_position_embeddings=32)
kinds = {
    "dynamic": (32, {}),
    "longrope": (128, dict(trained, short_factor=[1.0] * 4, long_factor=[4.0] * 4)),
    "yarn": (128, trained),
}
text = lambda length: torch.arange(length)[None] * 31 % 97

for kind, (longest, more) in kinds.items():
    torch.manual_seed(0)
    rope = dict(rope_type=kind, factor=4.0, rope_theta=10000.0, **more)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=longest, rope_parameters=rope)).eval().double()
    with torch.no_grad():
        loss = lambda length: model(text(length), labels=text(length), use_cache=False).loss.item()
        first, _, later, _, again = loss(48), loss(100), loss(48), loss(20), loss(48)
        alone = model(text(20), use_cache=False).logits
        ids = torch.cat([torch.nn.functional.pad(text(20), (0, 60)), text(80)])
        mask = torch.ones_like(ids)
        mask[0, 20:] = 0
        beside = model(ids, attention_mask=mask, use_cache=False).logits[:1, :20]
    away = ((beside - alone).norm() / alone.norm()).item()
    print(f"{kind:8} loss of a text {first:.4f}, after a longer one {later:.4f}, then after a short one {again:.4f}; "
          f"logits beside a longer row {away:.1e} away")
    assert (abs(later - first) > 1e-3) == (kind == "dynamic") and again == first
    assert away > 0.1 if kind != "yarn" else away < 1e-12
PY
echo "still so"
