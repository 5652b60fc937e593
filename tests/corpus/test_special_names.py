"""Names of special tokens in texts stay text, under every kind of tokenizer; what cannot is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizer_kinds import KINDS, SPECIAL, TEXTS, bpe, unigram, word_level
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers import normalizers as N  # noqa: N812
from tokenizers import pre_tokenizers as P  # noqa: N812

from slmctl.corpus import long_texts
from slmctl.corpus.encoder import Encoder
from slmctl.system.errors import InputError

UNK, BOS, EOS, PAD = range(4)
NAMED = ["the price <s>12</s> is", "</s>", "<s>", " </s> ", "a</s></s>b", "<pad> x", "x\n</s>\n", "<s> count </s> the <pad>"]


def marked(backend: Tokenizer, special: bool = True) -> Tokenizer:
    tokens = [AddedToken(t, special=special, normalized=False) for t in SPECIAL]
    (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    return backend


@pytest.mark.parametrize("special", [True, False], ids=["marked special", "not marked"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_a_special_id(kind: str, special: bool) -> None:
    plain = KINDS[kind]()
    encoder = Encoder.from_json(marked(plain, special).to_str(), EOS, {BOS, PAD})
    for text, ids in zip([*NAMED, *TEXTS], encoder.encode([*NAMED, *TEXTS]), strict=True):
        assert not set(ids.tolist()) & {BOS, EOS, PAD}, text
        assert ids.size or not text.strip()
    parsed = encoder.encode(NAMED, parse_special_tokens=True)
    assert sum(int((ids == EOS).sum()) for ids in parsed) == sum(t.count("</s>") for t in NAMED) or "word" in kind
    assert [i.tolist() for i in encoder.encode(TEXTS)] == [plain.encode(t, add_special_tokens=False).ids for t in TEXTS]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "digits, gpt2"])
def test_byte_level_texts_with_names_come_back(kind: str) -> None:
    encoder = Encoder(marked(KINDS[kind](), special=False), EOS, {BOS, PAD})
    encoder.backend.decoder = decoders.ByteLevel()
    for text, ids in zip(NAMED, encoder.encode(NAMED), strict=True):
        assert encoder.backend.decode(ids.tolist(), skip_special_tokens=False) == text


def test_merges_that_make_a_name_and_words_that_are_one_are_out_of_reach() -> None:
    letters = ["<unk>", "<", "/", "s", ">", "x", "</", "</s"]
    vocabulary = {t: i for i, t in enumerate([*letters, "</s>", "</s>x"])}
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("</s>", "x")]
    for options in ({}, {"ignore_merges": True}):
        encoder = Encoder(Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", **options)), vocabulary["</s>"])
        assert [encoder.backend.id_to_token(i) for i in encoder.encode(["</s>"])[0]] == ["</s", ">"]
        assert encoder.backend.id_to_token(encoder.encode(["</s>x"])[0][0]) == "</s>x"  # an entry like any other


def test_unigram_equals_sentencepiece_in_which_special_tokens_are_control_symbols() -> None:
    parts = json.loads(marked(unigram(None, N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]))).to_str())
    pieces = [(piece, score - i * 2**-10) for i, (piece, score) in enumerate(parts["model"]["vocab"])]  # no two ways alike
    parts["model"]["vocab"] = pieces
    backend = Tokenizer.from_str(json.dumps(parts))
    form = sentencepiece_model_pb2
    model, kinds = form.ModelProto(), form.ModelProto.SentencePiece
    for i, (piece, score) in enumerate(pieces):
        kind = kinds.UNKNOWN if i == UNK else kinds.CONTROL if i < 4 else kinds.NORMAL
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.unk_id = form.TrainerSpec.UNIGRAM, UNK
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    judge = SentencePieceProcessor(model_proto=model.SerializeToString())
    texts = [*NAMED, "the <unk> 12", "<unk>", *TEXTS]
    texts = [t for t in texts if "##" not in t and "--" not in t]  # whose parts, in either order, are as likely
    got = Encoder(backend, EOS, {BOS, PAD}).encode(texts)
    assert [g.tolist() for g in got] == [judge.encode(t) for t in texts]


def test_the_unknown_token_comes_of_unknown_characters_and_not_of_its_name() -> None:
    backend = marked(unigram(None, N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])))
    named, unknown = Encoder(backend, EOS, {BOS, PAD}).encode(["the <unk> 12", "the ☃ 12"])
    assert UNK not in named
    assert UNK in unknown


@pytest.mark.parametrize("text", ["a word like </s> here", "seven unheard-of"])
def test_an_unknown_token_that_ends_documents_is_refused_where_it_occurs(text: str) -> None:
    vocabulary = {w: i for i, w in enumerate(["</s>", "the", "seven", "a"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = P.WhitespaceSplit()
    encoder = Encoder(backend, 0)
    assert encoder.encode(["the seven"])[0].tolist() == [1, 2]
    with pytest.raises(InputError, match=r"special token '</s>' though.*the end or the beginning.*model\.tokenizer"):
        encoder.encode(["the seven", text])


def test_a_word_level_tokenizer_without_an_unknown_token_is_refused_in_one_line() -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="[none]"))
    backend.pre_tokenizer = P.WhitespaceSplit()
    with pytest.raises(InputError, match="cannot encode a text that begins 'the </s>'"):
        Encoder(backend, 0).encode(["the </s>"])


def test_padding_by_the_unknown_token_is_no_fault_in_a_text() -> None:
    encoder = Encoder(marked(word_level(P.WhitespaceSplit())), EOS, {BOS})
    assert encoder.encode(["the unheard-of"])[0].tolist()[1] == UNK


def test_names_in_long_texts_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 400)
    monkeypatch.setattr(long_texts, "MARGIN_CHARS", 60)
    encoder = Encoder(marked(unigram(P.Metaspace())), EOS, {BOS, PAD})
    [long] = encoder.encode(["the price <s>12</s> is\n" * 100])
    [one] = encoder.encode(["the price <s>12</s> is\n"])
    assert not set(long.tolist()) & {BOS, EOS, PAD}
    assert len(long) >= 100 * (len(one) - 1)


def test_a_name_that_a_normalizer_makes_stays_text() -> None:
    backend = bpe(None, N.Sequence([N.NFKC(), N.Lowercase(), N.Replace(" ", "▁")]))
    backend.add_special_tokens([AddedToken(t, normalized=True) for t in SPECIAL])
    for text in ("the ＜/s＞ 12", "</S>", "<S>"):
        assert not set(Encoder(backend, EOS, {BOS, PAD}).encode([text])[0].tolist()) & {BOS, EOS, PAD}


def test_ids_beyond_the_table_are_no_special_ones() -> None:
    encoder = Encoder(marked(KINDS["gpt2"]()), EOS)
    assert not encoder.names.suspect("x", np.array([400, 499, 10**6]))
    assert encoder.names.suspect("x", np.array([400, EOS]))
