#!/usr/bin/env bash
# tokenizers 0.23.3 beside sentencepiece 0.2.3.
#
# With `encode_special_tokens = True` the name of a special token in a text is to be plain text. That holds for the search for
# added tokens only: the model still finds the name among its own entries. Under Unigram, whose vocabulary holds the special
# tokens, "</s>" in a text becomes the id that ends documents, all the same. SentencePiece never matches a control symbol in a
# text. Seen: one `</s>` id from tokenizers, none from sentencepiece, with the same entries and scores.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3
"$folder/venv/bin/python" - <<'PY'
import io
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

texts = [f"the price of {n} apples is {n * 3} / {n} < {n + 1} > s" for n in range(400)]
out = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, vocab_size=60, model_type="unigram",
                                         hard_vocab_limit=False, minloglevel=2)
theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
entries = [(theirs.id_to_piece(i), theirs.get_score(i)) for i in range(theirs.vocab_size())]
own = Tokenizer(models.Unigram(entries, theirs.unk_id()))
own.pre_tokenizer = pre_tokenizers.Metaspace()
own.add_special_tokens([AddedToken(n, special=True) for n in ("<s>", "</s>")])
own.encode_special_tokens = True
text = "the price</s> is 3"
found, wanted = own.encode(text, add_special_tokens=False), theirs.encode(text)
print("tokenizers:   ", found.tokens)
print("sentencepiece:", [theirs.id_to_piece(i) for i in wanted])
assert found.ids.count(theirs.eos_id()) == 1 and theirs.eos_id() not in wanted
assert own.encode("the price is 3").ids == theirs.encode("the price is 3")
PY
echo "still so"
