"""Classifying headlines and files: every row comes back, nothing of it is lost, and memory does not grow with the file."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.judging.calibrate import Calibration, read_calibration
from newsjuice_pipelines.classification.serving import classify, records
from newsjuice_pipelines.classification.serving.article_files import (
    RESULT_COLUMNS,
    ArticleFileError,
    open_article_file,
)
from newsjuice_pipelines.classification.serving.classify import (
    classify_file,
    classify_headlines,
    classify_texts,
    logged_progress,
)
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.serving.records import wide_cells
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError

CAKE, PLANET = "Ten Chocolate Cake Recipes For Dinner", "Scientists Find A Planet"


class Counting:
    """A classifier that says the first class of two, the surer the longer the text, and keeps what it was asked."""

    classes = ("LONG", "SHORT")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[min(len(text), 50) / 10, 0.0] for text in texts]).reshape(len(texts), 2)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("serving calibrates the logits itself")


def labels_of(trained: Any, *texts: str) -> list[str]:
    """What a checkpoint itself says."""
    loaded = load_classifier(trained.checkpoint)
    return [loaded.classes[number] for number in loaded.predict_logits(texts).argmax(axis=1)]


def two_classes(**changes: Any) -> Calibration:
    whole = Calibration(Counting.classes, Counting.classes, 1.0, 0.9, None, None, (1.0, 1.0))
    return replace(whole, **changes)


def classified(tmp_path: Path, content: bytes, name: str = "in.csv") -> tuple[dict[str, int], list[dict[str, str]], Counting]:
    source, target, classifier = tmp_path / name, tmp_path / f"out{Path(name).suffix}", Counting()
    source.write_bytes(content)
    counts = classify_file(source, target, classifier, two_classes())
    text = target.read_bytes().decode("utf-8")
    if target.suffix == ".jsonl":
        return counts, [json.loads(line) for line in text.splitlines()], classifier
    with wide_cells():
        return counts, list(csv.DictReader(io.StringIO(text, newline=""))), classifier


def test_a_file_of_headlines_gets_its_answers(linear: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(f"id,headline\n1,{CAKE}\n2,{PLANET}\n", encoding="utf-8")
    calibration = replace(read_calibration(linear.evaluation), threshold=0.0)
    counts = classify_file(tmp_path / "in.csv", tmp_path / "out.csv", load_classifier(linear.checkpoint), calibration)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "headline", *RESULT_COLUMNS]
    cake, planet = labels_of(linear, CAKE, PLANET)
    assert cake != planet
    assert [(row["id"], row["predicted_category"], row["decision"]) for row in rows] == [
        ("1", cake, "filed"),
        ("2", planet, "filed"),
    ]
    assert rows[0]["top_3"].split(" | ")[0] == cake
    assert (counts["rows"], counts["classified"], counts["filed"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        ("text,title", "a whole text,unused", "a whole text"),
        ("text,title", ",when there is no text", "when there is no text"),
        ("Headline,short_description", "A head,and more", "A head. and more"),
        (" TITLE ,Content", "Why?,Because.", "Why? Because."),
        ("id;title", "1;semicolons, here", "semicolons, here"),
        ("id\ttitle", "1\ttabs", "tabs"),
        ("title,content", "T," + " ".join(map(str, range(100))), "T. " + " ".join(map(str, range(60)))),
    ],
)
def test_the_text_is_put_together_from_known_columns(tmp_path: Path, header: str, row: str, text: str) -> None:
    _, _, classifier = classified(tmp_path, f"{header}\n{row}\n".encode())
    assert classifier.asked == [text]


def test_every_bad_row_is_kept_with_its_reason_and_counted(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b"id,title",
            b"1,fine",
            b"2,caf\xe9",
            b"3",
            b"4,a,b,c",
            b"5,  ",
            b"6," + b"x" * 10_000_000,
            b"",
            b'7,"two\nlines"',
            b"8,a\x00b",
            b"9,last",
        ]
    )
    counts, rows, classifier = classified(tmp_path, content)
    assert [row["id"] for row in rows] == list("123456789")
    assert [row["title"][:20] for row in rows] == [
        "fine", "caf\\xe9", "", "a", "  ", "x" * 20, "two\nlines", "a\x00b", "last",
    ]  # fmt: skip
    assert [row["reason"] for row in rows] == [
        "",
        "not valid UTF-8; the bytes are shown as \\xNN",
        "1 cells instead of 2",
        '4 cells instead of 2, surplus ["b", "c"]',
        "no text",
        "text of 10,000,000 characters; at most 1,000,000 are read",
        "",
        "",
        "",
    ]
    assert len(rows[5]["title"]) == 10_000_000
    assert all(not row["predicted_category"] and not row["decision"] for row in rows if row["reason"])
    assert classifier.asked == ["fine", "two lines", "a b", "last"]
    problems = {name: counts[name] for name in ("invalid_utf8", "wrong_cells", "empty_text", "long_text", "unreadable")}
    assert problems == {"invalid_utf8": 1, "wrong_cells": 2, "empty_text": 1, "long_text": 1, "unreadable": 0}
    assert (counts["rows"], counts["classified"]) == (9, 4)


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    rows_before = b"".join(b'%d,"fine, %d"\n' % (number, number) for number in range(50))
    counts, rows, _ = classified(tmp_path, b"id,title\n" + rows_before + b'x,"never closed\n' + rows_before)
    assert (counts["rows"], counts["unreadable"], counts["classified"]) == (101, 1, 100)
    assert rows[50]["reason"] == 'cannot be read as CSV: x,"never closed'


def test_a_record_that_grows_too_long_costs_the_line_that_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_CHARACTERS", 1_000)
    counts, _, _ = classified(tmp_path, b'id,title\nx,"never closed\n' + b"1,an ordinary row\n" * 500)
    assert (counts["rows"], counts["unreadable"], counts["classified"]) == (501, 1, 500)


def test_a_record_of_too_many_lines_costs_the_line_that_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_LINES", 10)
    ordinary = b"1,an ordinary row\n" * 20
    counts, rows, _ = classified(tmp_path, b'id,title\nx,"closed too late\n' + ordinary + b'2,"the end"\n')
    assert (counts["rows"], counts["unreadable"], counts["classified"]) == (22, 1, 21)
    counts, rows, _ = classified(tmp_path, b'id,title\nx,"' + b"a line\n" * 9 + b'the end"\n')
    assert (counts["rows"], counts["classified"], rows[0]["title"]) == (1, 1, "a line\n" * 9 + "the end")


def test_time_grows_with_the_lines_whatever_their_quotes_are(tmp_path: Path) -> None:
    reopened = b'x"y,"z and some more words of a headline\n'
    merged = b'"a","b","c\n' * 500 + b'B,"unclosed\n'
    started = time.process_time()
    counts, _, _ = classified(tmp_path, b"title,content\n" + reopened * 20_000)
    assert (counts["rows"], counts["unreadable"]) == (20_000, 20_000)
    classified(tmp_path, b"title,content\n" + merged * 20)
    assert time.process_time() - started < 10  # reading on from every quote anew takes minutes


def test_a_closed_record_with_a_surplus_cell_is_kept_whole(tmp_path: Path) -> None:
    content = b'title,content\n"A one","line 1\nPolice arrest man,robbery downtown\nline 3",surplus\nB,two\n'
    counts, rows, classifier = classified(tmp_path, content)
    assert (counts["rows"], counts["wrong_cells"], classifier.asked) == (2, 1, ["B. two"])
    assert rows[0]["content"] == "line 1\nPolice arrest man,robbery downtown\nline 3"
    assert rows[0]["reason"] == '3 cells instead of 2, surplus ["surplus"]'


def test_two_rows_with_unclosed_quotes_do_not_become_one_article(tmp_path: Path) -> None:
    counts, rows, classifier = classified(tmp_path, b'title,content\nA,"unclosed one\nB,"unclosed two\n')
    assert (counts["rows"], counts["unreadable"], classifier.asked) == (2, 2, [])
    assert [row["reason"] for row in rows] == [
        'cannot be read as CSV: A,"unclosed one',
        'cannot be read as CSV: B,"unclosed two',
    ]


def test_a_stray_quote_inside_a_cell_of_several_lines_costs_the_row_and_makes_no_other(tmp_path: Path) -> None:
    content = b'title,content\nA,"line 1\nPolice arrest man,robbery\nsaid "so\nB,two\n'
    counts, rows, classifier = classified(tmp_path, content)
    assert (counts["rows"], counts["unreadable"], classifier.asked) == (2, 1, ["B. two"])
    assert "Police arrest man,robbery\nsaid" in rows[0]["reason"]


@pytest.mark.parametrize(("name", "begin", "end"), [("in.csv", b"title\n", b""), ("in.jsonl", b'{"title": "first"}\n', b'"}')])
def test_a_line_too_long_to_hold_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, begin: bytes, end: bytes
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_CHARACTERS", 2_000)
    monkeypatch.setattr(records, "BLOCK_CHARACTERS", 700)
    opening = b'{"title": "' if end else b""
    last = opening + b"last" + end
    counts, rows, classifier = classified(tmp_path, begin + opening + b"x" * 5_000 + end + b"\n" + last + b"\n", name)
    assert (counts["long_text"], classifier.asked[-1], len(rows)) == (1, "last", counts["rows"])
    length = 5_001 + len(opening + end)
    reason = f"line of {length:,} characters; at most 2,000 are read; it begins: {opening.decode()}xxx"
    assert rows[-2]["reason"].startswith(reason)
    assert len(rows[-2]["reason"]) < 1_100


def test_a_line_of_any_length_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_CHARACTERS", 100_000)
    monkeypatch.setattr(records, "BLOCK_CHARACTERS", 10_000)
    (tmp_path / "in.csv").write_bytes(b'title\n"opened\n' + b"x" * 20_000_000 + b"\nlast\n")
    tracemalloc.start()
    counts = classify_file(tmp_path / "in.csv", tmp_path / "out.csv", Counting(), two_classes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (counts["unreadable"], counts["long_text"], counts["classified"]) == (1, 1, 1)
    assert peak < 3_000_000


def test_windows_files_are_read(tmp_path: Path) -> None:
    counts, rows, _ = classified(tmp_path, '\ufefftitle,id\r\n"a\r\nb",1\r\nc,2\r\n'.encode())
    assert ([(row["title"], row["id"]) for row in rows], counts["classified"]) == ([("a\r\nb", "1"), ("c", "2")], 2)


def test_cells_that_a_spreadsheet_would_run_are_disarmed_and_numbers_are_not(tmp_path: Path) -> None:
    _, rows, classifier = classified(tmp_path, b'id,title,note\n-1,=cmd(),@x\n2,"+A1",-3.5\n')
    assert [(row["id"], row["title"], row["note"]) for row in rows] == [("-1", "'=cmd()", "'@x"), ("2", "'+A1", "-3.5")]
    assert classifier.asked == ["=cmd()", "+A1"]


def test_columns_that_are_already_there_are_kept_beside_ours(tmp_path: Path) -> None:
    _, rows, _ = classified(tmp_path, b"title,decision,Confidence\nx,theirs,1\n")
    assert (rows[0]["decision"], rows[0]["Confidence"]) == ("theirs", "1")
    assert rows[0]["newsjuice_decision"] == "abstained"
    assert float(rows[0]["newsjuice_confidence"]) > 0.5


def test_json_lines_keep_every_field_letter_by_letter(tmp_path: Path) -> None:
    lines = [
        '{"id": 1.50, "headline": "caf\\u00e9 " , "decision": "theirs"}',
        '{"text": "half \\ud800 a character"}',
        "[1, 2]",
        "{broken",
        '{"headline": 3}',
        "{}",
        "[" * 100_000,
    ]
    content = "\n".join(lines).encode() + b'\n{"headline": "caf\xe9"}\n\n'
    counts, rows, classifier = classified(tmp_path, content, "in.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").startswith(lines[0][:-1].rstrip() + ', "predicted_category": ')
    assert (rows[0]["id"], rows[0]["decision"], rows[0]["newsjuice_decision"]) == (1.5, "theirs", "abstained")
    assert rows[0]["top_3"] == ["LONG", "SHORT"]
    assert classifier.asked == ["café", "half ? a character"]
    assert [row.get("line") for row in rows[2:4]] == lines[2:4]
    assert [row["reason"] for row in rows[:2]] == [None, None]
    assert rows[2]["reason"] == "a list instead of a JSON object"
    assert rows[4] == {"headline": 3, **dict.fromkeys(RESULT_COLUMNS), "reason": "no text"}
    assert rows[5] == {**dict.fromkeys(RESULT_COLUMNS), "reason": "no text"}
    assert rows[6]["line"] == lines[6]
    assert rows[7]["line"] == '{"headline": "caf\\xe9"}'
    assert (counts["rows"], counts["unreadable"], counts["invalid_utf8"], counts["empty_text"]) == (8, 3, 1, 2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_give_a_valid_file_in_which_no_line_is_missing(body: bytes) -> None:
    articles = open_article_file(io.BufferedReader(io.BytesIO(b"id,title\n" + body)), "csv", "in.csv")  # type: ignore[arg-type]
    results = dict.fromkeys(RESULT_COLUMNS, "")
    rows = list(articles.rows())
    text = articles.opening() + "".join(articles.written(row, {**results, "reason": row.reason}) for row in rows)
    back = list(csv.reader(io.StringIO(text.encode().decode(), newline=""), strict=True))
    assert len(back) == len(rows) + 1
    assert all(len(cells) == 2 + len(RESULT_COLUMNS) for cells in back)
    letters = {chr(byte) for byte in body if 97 <= byte <= 122}
    assert letters <= set("".join(cell for cells in back[1:] for cell in cells))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text('ab",\n\r ', max_size=8)] * 2), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_well_quoted_cells_come_back_whatever_they_hold(cells: list[tuple[str, str]], line_end: str) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator=line_end).writerows([("id", "title"), *cells])
    rows = open_article_file(io.BufferedReader(io.BytesIO(stream.getvalue().encode())), "csv", "in.csv").rows()  # type: ignore[arg-type]
    assert [row.held for row in rows] == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "does not begin with a header"),
        (b"id,body\n1,x\n", "needs a column named one of text, headline, title"),
        ("id,title\n1,x\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_an_unusable_file_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ArticleFileError, match=message):
        classified(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("missing.csv", "out.csv", "missing.csv cannot be read: No such file"),
        ("in.csv", "out.jsonl", "different formats"),
        ("in.xlsx", "out.csv", "the suffix must be one of"),
        ("in.csv", "nowhere/out.csv", "cannot be written"),
    ],
)
def test_unusable_paths_are_refused(tmp_path: Path, source: str, target: str, message: str) -> None:
    (tmp_path / "in.csv").write_text("title\nx\n", encoding="utf-8")
    with pytest.raises(ArticleFileError, match=message):
        classify_file(tmp_path / source, tmp_path / target, Counting(), two_classes())


def test_a_failure_in_the_middle_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "CHUNK_ROWS", 2)
    source = tmp_path / "in.csv"
    source.write_text("title\na\nb\nc\n", encoding="utf-8")

    class Failing(Counting):
        def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
            if "c" in texts:
                raise MemoryError
            return super().predict_logits(texts)

    with pytest.raises(MemoryError):
        classify_file(source, source, Failing(), two_classes())
    assert source.read_text(encoding="utf-8") == "title\na\nb\nc\n"
    assert list(tmp_path.iterdir()) == [source]
    classify_file(source, source, Counting(), two_classes())
    assert source.read_text(encoding="utf-8").startswith("title,predicted_category")
    (tmp_path / "ordinary").touch()
    assert source.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "CHUNK_ROWS", 256)

    class Forgetful(Counting):
        def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
            return np.zeros((len(texts), 2))

    peaks, line = [], f"{'word ' * 20}\n"
    for rows in (512, 16 * 512):
        (tmp_path / "in.csv").write_text("title\n" + line * rows, encoding="utf-8")
        tracemalloc.start()
        classify_file(tmp_path / "in.csv", tmp_path / "out.csv", Forgetful(), two_classes())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.4 * len(line) * 15 * 512  # less than the further lines alone would take


def test_a_dash_reads_standard_input_and_writes_standard_output(linear: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from newsjuice_pipelines.classification.serving.classify import *\n"
        "checkpoint, report = map(Path, sys.argv[1:])\n"
        "classify_file('-', '-', load_classifier(checkpoint), read_calibration(report))"
    )
    command = [sys.executable, "-c", code, str(linear.checkpoint), str(linear.evaluation)]
    done = subprocess.run(command, input=f"title\n{CAKE}\ncaf\\xe9\n".encode(), capture_output=True, check=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert (rows[0]["title"], rows[0]["predicted_category"], len(rows)) == (CAKE, labels_of(linear, CAKE)[0], 2)


def test_progress_says_rate_and_remaining_time(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 5.0, 10.0, 20.0])
    with caplog.at_level("INFO", "newsjuice.classification"):
        report = logged_progress(clock=lambda: next(times))
        for rows, share in ((100, 0.1), (200, 0.25), (400, None)):
            report(rows, share)
    assert [record.message for record in caplog.records] == [
        "classifying: 200 rows, 20 rows/s, 25% of the file, 30 s left",
        "classifying: 400 rows, 20 rows/s",
    ]


@pytest.mark.parametrize(
    ("thresholds", "parent"),
    [
        ({"threshold": 0.0}, ("filed", "LONG", "0.8176")),
        ({"threshold": None, "parent_threshold": 0.0, "parents": ("BOTH", "BOTH")}, ("parent", "BOTH", "1.0000")),
        ({"threshold": None}, ("abstained", "", "")),
    ],
)
def test_a_parent_is_given_with_its_own_confidence_where_the_answer_stands_for_it(
    tmp_path: Path, thresholds: dict[str, Any], parent: tuple[str, str, str]
) -> None:
    (tmp_path / "in.csv").write_text("title\nfifteen letters\n", encoding="utf-8")
    classify_file(tmp_path / "in.csv", tmp_path / "out.csv", Counting(), two_classes(**thresholds))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["decision"], row["parent"], row["parent_confidence"]) == parent
    assert (row["predicted_category"], row["confidence"]) == ("LONG", "0.8176")


def test_blank_texts_get_no_answer(linear: Any) -> None:
    found = classify_texts(["", CAKE, " \n"], linear.checkpoint, read_calibration(linear.evaluation))
    assert [answer and answer.label for answer in found] == [None, *labels_of(linear, CAKE), None]


def test_a_calibration_of_other_classes_is_refused(linear: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="evaluation report"):
        classify_texts([CAKE], linear.checkpoint, two_classes())
    with pytest.raises(CheckpointError, match="evaluation report"):
        classify_file(tmp_path / "in.csv", tmp_path / "out.csv", load_classifier(linear.checkpoint), two_classes())


def test_a_headline_is_answered_in_words(linear: Any) -> None:
    said = classify_headlines([CAKE, "", "\x1b[31mSenate\x07 Votes"], linear.checkpoint, linear.evaluation)
    assert said[0].startswith(f"{CAKE}\n  ")
    assert labels_of(linear, CAKE)[0] in said[0]
    assert said[1] == "(an empty headline has no class)"
    assert "\x1b" not in said[2]
    assert "\x07" not in said[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": 0.0}, ": filed, "),
        ({"threshold": None, "top3_threshold": 0.0}, "one of CLASS, "),
        ({"threshold": None, "top3_threshold": None}, "not sure enough to say (best guess CLASS, "),
    ],
)
def test_every_decision_has_its_words(linear: Any, changes: dict[str, Any], words: str) -> None:
    calibration = replace(read_calibration(linear.evaluation), parent_threshold=None, **changes)
    (answer,) = classify_texts([CAKE], linear.checkpoint, calibration)
    assert words.replace("CLASS", *labels_of(linear, CAKE)) in classify._in_words(CAKE, answer)
