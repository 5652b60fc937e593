#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0.
#
# Weight decay is meant for matrices; Trainer leaves out what is called bias or norm, by name. What newer models have besides is
# decayed: GPT-OSS's attention sinks, a logit a head; the decay rates A_log and skip weights D of Mamba-2 and of hybrids with it, which
# their authors' code marks as not to be decayed; RWKV's time decay; and norms of other names (`norm_f`, `norm_mlstm`). Pulling them
# to zero is no regularisation: a sink of zero is a logit like others, an A_log of zero a decay rate of one. Seen: the names of vectors
# that Trainer gives weight decay, by model; none for Llama, Mixtral and Qwen3. (Models of default sizes, on the device "meta".)
# slmctl decays what has two dimensions or more, and no vector; a test says so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import re
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

wanted = {
    "llama": set(), "mixtral": set(), "qwen3": set(),
    "gpt_oss": {"sinks"}, "mamba2": {"A_log", "D", "norm_f.weight"}, "bamba": {"A_log", "D"}, "granitemoehybrid": {"A_log", "D"},
    "qwen3_next": {"A_log"}, "rwkv": {"time_decay", "time_first"}, "xlstm": {"norm_ffn.weight", "norm_mlstm.weight"},
}
for kind, names in wanted.items():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    decayed = set(Trainer.__new__(Trainer).get_decay_parameter_names(model))  # which asks the model alone
    vectors = [n for n, p in model.named_parameters() if p.ndim < 2 and n in decayed]
    found = {re.search(r"[^.]+(\.weight)?$", n).group() for n in vectors}
    print(f"{kind:16} {len(vectors):4} vectors are decayed", *sorted(found))
    assert found == names, (kind, found)
PY
echo "still so"
