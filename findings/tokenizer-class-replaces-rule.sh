#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3.
#
# A tokenizer.json may say how texts are cut (`pre_tokenizer`). Where tokenizer_config.json beside it names a class of the
# library, AutoTokenizer takes vocabulary and merges from the file, and the cutting rule from the class: the same text becomes
# other tokens than the file gives, without a word. Seen: `tokenizers` cuts "1234567" as the file says, in threes;
# AutoTokenizer, told GPT2Tokenizer, cuts it as GPT-2 does. With TokenizersBackend in the class's place both agree.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PY'
import json, sys
from pathlib import Path
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

folder = Path(sys.argv[1]); folder.mkdir()
texts = [f"order {n} has {n * 7919} parts" for n in range(2000)]
made = Tokenizer(models.BPE())
threes = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
made.pre_tokenizer = pre_tokenizers.Sequence([threes, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
made.decoder = decoders.ByteLevel()
special = ["<|endoftext|>"]
made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False,
                                                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
made.save(str(folder / "tokenizer.json"))

def ids_by(name):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "eos_token": special[0]}))
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]

text = "order 1234567 has 89 parts"
by_file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False)
as_gpt2, as_file = ids_by("GPT2Tokenizer"), ids_by("TokenizersBackend")
print("by the file:      ", by_file.tokens)
print("as GPT2Tokenizer: ", made.decode(as_gpt2) == text, [made.id_to_token(i) for i in as_gpt2])
print("as TokenizersBackend the same as the file:", as_file == by_file.ids)
assert as_file == by_file.ids and as_gpt2 != by_file.ids and made.decode(as_gpt2) == text
PY
echo "still so"
