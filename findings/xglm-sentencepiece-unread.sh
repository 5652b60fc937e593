#!/usr/bin/env bash
# transformers 5.23.0 with sentencepiece 0.2.3.
#
# A folder whose vocabulary is a SentencePiece file alone (`sentencepiece.bpe.model`), with the class that belongs to it
# (XGLMTokenizer): the file is accepted and its entries are not read. The tokenizer that comes out has a handful of special
# entries, and every word of every text becomes <unk>, without a word. Seen: 11 entries where the file has 120; with
# XLMRobertaTokenizer over the same file all of them are there.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PY'
import io, json, sys
from pathlib import Path
import sentencepiece
from transformers import AutoTokenizer

folder = Path(sys.argv[1]); folder.mkdir()
texts = [f"the price of {n} apples is {n * 3} and the train is late by {n % 7} hours" for n in range(600)]
out = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, vocab_size=120, model_type="unigram",
                                         hard_vocab_limit=False, minloglevel=2)
(folder / "sentencepiece.bpe.model").write_bytes(out.getvalue())
pieces = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
found = {}
for name in ("XGLMTokenizer", "XLMRobertaTokenizer"):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = loaded("the price of 3 apples", add_special_tokens=False)["input_ids"]
    found[name] = len(loaded), loaded.convert_ids_to_tokens(ids)
    print(name, *found[name])
print("sentencepiece", pieces.vocab_size(), pieces.encode("the price of 3 apples", out_type=str))
assert found["XGLMTokenizer"][0] < 20 and set(found["XGLMTokenizer"][1]) == {"<unk>"}
assert found["XLMRobertaTokenizer"][0] >= pieces.vocab_size() and "<unk>" not in found["XLMRobertaTokenizer"][1]
PY
echo "still so"
