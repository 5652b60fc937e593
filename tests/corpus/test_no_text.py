"""What is no text in a field that a template asks for, what is, and what is nothing."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmctl.config.data import SourceConfig
from slmctl.config.evaluation import TaskConfig
from slmctl.config.template import FieldError, Template
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.evaluation.generation import make_item
from slmctl.system.errors import InputError

QA = "{question}\n{answer}"


def read(source: SourceConfig, tally: Tally | None = None) -> list[str]:
    tally = tally or Tally()
    return [text for piece in plan_slices([source], 10**6) for _, text in documents(source, piece, tally)]


@pytest.mark.parametrize("text", ["{text}", "Text: {text}", "{title} {text}"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", "NaN, a missing"),
        ("Infinity", "infinite"),
        ("-Infinity", "infinite"),
        ("1e999", "infinite"),
        ("true", "a boolean"),
    ],
)
def test_what_json_calls_numbers_and_booleans_is_no_text(tmp_path: Path, value: str, reason: str, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"title": "t", "text": "fine", "score": NaN}}\n{{"title": "t", "text": {value}}}\n')
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: field 'text' is {reason}"):
        read(SourceConfig(path=str(path), text=text))
    tally = Tally()
    assert len(read(SourceConfig(path=str(path), text=text, on_bad="skip"), tally)) == 1
    assert (tally.documents, tally.skipped, tally.empty) == (1, 1, 0)


@pytest.mark.parametrize("template", ["{text}", " {text}\n", "{text}\u200b"])
@pytest.mark.parametrize("number", [12, 12.5, -0.0, 10**30])
def test_a_number_alone_is_refused(template: str, number: float) -> None:
    with pytest.raises(FieldError, match=r"'text' is a number \(.*\) with no text beside it"):
        Template(template).document({"text": number})


@pytest.mark.parametrize(
    ("template", "record", "document"),
    [
        (QA, {"question": "6 + 6?", "answer": 12}, "6 + 6?\n12"),
        (QA, {"question": 12, "answer": "a dozen"}, "12\na dozen"),
        ("{a} = {b}", {"a": 1, "b": 1.0}, "1 = 1.0"),
        ("Answer: {text}", {"text": -0.0}, "Answer: -0.0"),
        ("n: {n}", {"n": np.float32(0.1)}, "n: 0.1"),
        ("n: {n}", {"n": np.int64(7)}, "n: 7"),
        ("n: {n}", {"n": decimal.Decimal("1.50")}, "n: 1.50"),
        ("{text}", {"text": np.str_("NaN")}, "NaN"),
        ("{text}", {"text": "Infinity"}, "Infinity"),
        ("{text}", {"text": "12"}, "12"),
        ("{a.b}", {"a": {"b": "true"}}, "true"),
    ],
)
def test_what_is_text(template: str, record: dict[str, Any], document: str) -> None:
    assert Template(template).document(record) == document


@pytest.mark.parametrize("record", [{"a": 1, "b": 2}, {"a": "", "b": 2}, {"a": 1, "b": "\n\0"}])
def test_two_fields_without_text_are_no_document(record: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match="with no text beside it"):
        Template("{a}\n{b}").document(record)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, r"a boolean \(true\)"),
        (np.False_, "bool"),
        (np.float32("nan"), "NaN"),
        (np.float64("-inf"), "infinite"),
        (decimal.Decimal("NaN"), "NaN"),
        (b"bytes", "bytes"),
        (["x"], "list"),
        ({"b": "x"}, "dict"),
        (datetime.datetime(2020, 1, 1), "datetime"),
        (np.datetime64("2020-01-01"), "datetime64"),
        (np.array(["x"]), "ndarray"),
        (1j, "complex"),
    ],
)
def test_what_is_no_text_in_a_document_nor_in_a_task(value: Any, kind: str) -> None:
    for text in (Template("Text: {a.text}"), Template("Text: {a.text}").document):
        with pytest.raises(FieldError, match=f"field 'a.text' is {kind}"):
            text({"a": {"text": value}})


@pytest.mark.parametrize("blank", ["", " \t\r\n", "\0", "\0\x07\x1b", "\u200b\ufeff\u2060", "\u3000\u2028"])
def test_documents_of_blank_fields_are_empty_and_counted(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"question": blank, "answer": blank}, {"question": blank, "answer": "yes"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in lines))
    for text in ("{question}{answer}", "Question: {question}\nAnswer: {answer}"):
        tally = Tally()
        assert read(SourceConfig(path=str(path), text=text), tally) == [text.format(**lines[1])]
        assert (tally.documents, tally.empty, tally.skipped) == (1, 1, 0)


@pytest.mark.parametrize("text", ["a", "é", "漢", "🦊", ".", "\0a", "\ufffd", "\u0301"])
def test_a_single_sign_is_a_document(text: str) -> None:
    assert Template("{text}").document({"text": text}) == text


@pytest.mark.parametrize("line", ['{"text": "a", "text": "b"}', '{"m": {"text": "a", "text": "b"}, "text": "c"}'])
def test_a_key_that_stands_twice_says_no_one_thing(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x", "m": {{"text": "y"}}, "other": 1, "other": 2}}\n{line}\n')
    text = "{m.text}" if "m" in json.loads(line) else "{text}"
    assert len(read(SourceConfig(path=str(tmp_path / "a.jsonl"), text=text, on_bad="skip"))) == 1, "unasked keys may be twice"
    with pytest.raises(InputError, match=r"line 2: field '(m\.)?text' stands there more than once"):
        read(SourceConfig(path=str(tmp_path / "a.jsonl"), text=text))


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "id"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has more than one column named text"):
        read(SourceConfig(path=str(tmp_path / "a.parquet")))


TEXTS = pa.array(["one", "two"])


@pytest.mark.parametrize(
    "column",
    [TEXTS, TEXTS.cast(pa.large_string()), TEXTS.cast(pa.string_view()), TEXTS.dictionary_encode()],
    ids=lambda c: str(c.type)[:12],
)
def test_parquet_columns_of_text(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(SourceConfig(path=str(tmp_path / "a.parquet"))) == ["one", "two"]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([math.nan]), "'text' is NaN"),
        (pa.array([math.nan]).cast(pa.float32()), "'text' is NaN"),
        (pa.array([math.inf], pa.float16()), "'text' is infinite"),
        (pa.array([math.nan]).dictionary_encode(), "'text' is NaN"),
        (pa.array([1.0]), "'text' is a number"),
        (pa.array([1]), "'text' is a number"),
        (pa.array([decimal.Decimal("1.5")]), "'text' is a number"),
        (pa.array([True]), "'text' is a boolean"),
        (pa.array([None], pa.string()), "'text' is null"),
        (pa.nulls(1), "'text' is null"),
        (pa.array([b"x"]), "'text' is bytes"),
        (pa.array([["x"]]), "'text' is list"),
        (pa.array([{"a": "x"}]), "'text' is dict"),
        (pa.array([0], pa.timestamp("us")), "'text' is datetime"),
        (pa.array([2**31 - 1], pa.date32()), "holds a value that cannot be read"),
    ],
    ids=lambda v: str(v.type)[:16] if isinstance(v, pa.Array) else "",
)
def test_parquet_columns_of_no_text(tmp_path: Path, column: pa.Array, reason: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet, row 0: .*{reason}"):
        read(SourceConfig(path=str(tmp_path / "a.parquet")))
    tally = Tally()
    assert read(SourceConfig(path=str(tmp_path / "a.parquet"), on_bad="skip"), tally) == []
    assert tally.skipped == 1


def test_a_task_takes_numbers_alone_and_no_missing_values() -> None:
    task = TaskConfig(name="sums", path="sums.jsonl", prompt="{question}", answer="{answer}")
    item = make_item(task, {"question": "6 + 6 =", "answer": 12})
    assert item is not None
    assert (item.answer, item.target) == ("12", "12")
    for answer in (math.nan, math.inf, True, None):
        with pytest.raises(FieldError, match="field 'answer' is"):
            make_item(task, {"question": "?", "answer": answer})
