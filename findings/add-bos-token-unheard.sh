#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3.
#
# tokenizer_config.json may say `add_bos_token`, which decides whether a text begins as the texts did that a model learnt from.
# Where a tokenizer.json lies beside it, AutoTokenizer does not heed that field, in either direction, and says nothing: the
# post-processor of tokenizer.json alone decides. Seen: `true` over a file without a template gives no <s>; `false` over a file
# with one gives <s> all the same; for the classes TokenizersBackend and PreTrainedTokenizerFast alike.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

for name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
    for wanted in (True, False):
        folder = Path(sys.argv[1]) / f"{name}-{wanted}"; folder.mkdir()
        entries = ["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
        made = Tokenizer(models.BPE({t: i for i, t in enumerate(entries)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.add_special_tokens(["<s>", "</s>"])
        if not wanted:
            made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        made.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": wanted}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ids = AutoTokenizer.from_pretrained(folder)("x")["input_ids"]
        print(f"{name}: add_bos_token {wanted} gives", "a beginning" if ids[0] == 0 else "no beginning")
        assert (ids[0] == 0) is not wanted
PY
echo "still so"
