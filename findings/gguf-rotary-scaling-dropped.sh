#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0 and torch 2.13.0.
#
# A GGUF file tells how rotary positions are scaled for long contexts (`llama.rope.scaling.type` and `.factor`).
# The configuration that transformers makes of a Llama file leaves it out: the model is loaded without a word, with the
# positions of an unscaled one, and gives other losses than it was trained to. Seen: the file says linear, 4.0; the
# configuration says `default`.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 gguf==0.19.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys
import gguf, numpy as np
from transformers import AutoConfig

writer = gguf.GGUFWriter(sys.argv[1] + "/scaled.gguf", "llama")
writer.add_vocab_size(32); writer.add_block_count(1); writer.add_context_length(8192); writer.add_embedding_length(16)
writer.add_feed_forward_length(32); writer.add_head_count(2); writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5); writer.add_rope_freq_base(10000.0)
writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR); writer.add_rope_scaling_factor(4.0)
writer.add_tensor("token_embd.weight", np.zeros((32, 16), np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
fields = gguf.GGUFReader(sys.argv[1] + "/scaled.gguf").fields
told = {n: fields[n].contents() for n in fields if "rope.scaling" in n}
config = AutoConfig.from_pretrained(sys.argv[1], gguf_file="scaled.gguf")
print("the file:         ", told)
print("the configuration:", config.rope_parameters)
assert told["llama.rope.scaling.type"] == "linear" and told["llama.rope.scaling.factor"] == 4.0
assert config.rope_parameters["rope_type"] == "default" and "factor" not in config.rope_parameters
PY
echo "still so"
