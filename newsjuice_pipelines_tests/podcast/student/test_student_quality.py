"""The quality report: systems side by side, on scripts whose faults are known."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import markdown_it
import pandas as pd
import pytest

from newsjuice_pipelines.podcast.judging.evaluate import FAILURE_KINDS
from newsjuice_pipelines.podcast.judging.examples import choose_examples
from newsjuice_pipelines.podcast.judging.quality import (
    QualityConfig,
    QualityError,
    measuring_models,
    quality_report,
    read_original_outputs,
)
from newsjuice_pipelines.podcast.judging.quality_page import CONTENT

ROWS = 12
NO_MODEL = QualityConfig(similarity=False)
SYSTEMS = ["teacher", "base", "student", "lead sentences", "original student"]


def article(number: int) -> str:
    """A made-up article that repeats nothing."""
    return (
        f"The mayor opened bridge number {number + 20} on a wet morning. It spans the river and carries two lanes. "
        "Engineers had planned it for a decade. A school choir sang while ferries blew their horns."
    )


def script_of(text: str) -> str:
    """A script about a made-up article that has no fault."""
    story = (
        "Listeners from all over town heard about it, wrote to the library, and asked what it would cost. The answer came after "
        "twelve days: nothing at all, because a neighbour had paid for everything before anyone thought of asking."
    )
    return f"Welcome back to NewsJuice. {text} {story} That is the story for now."


@pytest.fixture
def student() -> pd.DataFrame:
    """Twelve rows of the test split; the student copies the teacher but for two rows: one is cut off, one is empty."""
    rows = []
    for number in range(ROWS):
        text = article(number) + " It took twelve days."
        taught = script_of(article(number))
        rows.append(
            {
                "chunk_id": f"a{number}:0",
                "article_id": f"a{number}",
                "split": "test",
                "chunk_text": text,
                "gemini_podcast_text": taught,
                "student_podcast_text": taught,
                "finish_reason": "eos",
            }
        )
    table = pd.DataFrame(rows)
    table.loc[3, "student_podcast_text"] = table.loc[3, "gemini_podcast_text"][:-12]
    table.loc[7, ["student_podcast_text", "finish_reason"]] = ["", "error"]
    return table


@pytest.fixture
def untuned(student: pd.DataFrame) -> pd.DataFrame:
    """The base repeats itself and invents a person."""
    looped = "Karl Weiss was there and we saw Karl Weiss there again. " * 12
    return student.drop(columns="student_podcast_text").assign(qwen_podcast_text=looped, finish_reason="length")


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    path = tmp_path / "original.jsonl"
    scripts = ["", "### Response\nHello", "Hello, everyone, and", script_of(article(1)), *["word " * 350] * 4]
    path.write_text("".join(json.dumps({"script": script}) + "\n" for script in scripts), encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_five_systems_stand_side_by_side(student: pd.DataFrame, untuned: pd.DataFrame, originals: Path, out: Path) -> None:
    results = quality_report(student, untuned, out, NO_MODEL, original=originals)

    systems = results["systems"]
    assert list(systems) == SYSTEMS
    assert [entry["scripts"] for entry in systems.values()] == [12, 12, 12, 12, 8]
    assert (results["rows"], results["articles"], results["errors"], results["base_errors"]) == (12, 12, 1, 0)
    assert systems["teacher"]["passes"] == {"value": 1.0, "low": 1.0, "high": 1.0, "scripts": 12}
    assert systems["student"]["cut_off"]["value"] == systems["student"]["empty"]["value"] == pytest.approx(1 / 12)
    assert systems["student"]["passes"]["low"] < 10 / 12 < systems["student"]["passes"]["high"]
    assert systems["base"]["looping"]["value"] == 1
    assert systems["base"]["names_supported"]["value"] == 0
    assert systems["lead sentences"]["copied_5"]["value"] == 1
    assert systems["teacher"]["rouge_l"]["value"] is None
    assert systems["student"]["rouge_l"]["value"] > systems["base"]["rouge_l"]["value"]
    assert json.loads((out / "results.json").read_text()) == results
    assert {file.name for file in out.iterdir()} == {
        "results.json",
        "report.md",
        "failures.png",
        "support.png",
        "scripts_measured.csv",
    }


def test_the_original_student_is_measured_by_its_form_alone(student: pd.DataFrame, originals: Path, out: Path) -> None:
    entry = quality_report(student, None, out, NO_MODEL, original=originals)["systems"]["original student"]

    assert {kind: entry[kind]["value"] for kind in ("empty", "markers", "cut_off", "too_long", "looping", "passes")} == {
        "empty": 1 / 8,
        "markers": 1 / 8,
        "cut_off": 6 / 8,
        "too_long": 4 / 8,
        "looping": 4 / 8,
        "passes": 1 / 8,
    }
    assert {measure for measure in CONTENT if entry[measure]["value"] is None} == {
        "copied_5",
        "longest_copied_words",
        "has_names",
        "has_numbers",
        "names_supported",
        "numbers_supported",
        "quotations_supported",
        "entailed",
        "rouge_l",
        "similarity",
    }


def test_the_first_failures_of_each_system_add_up(
    student: pd.DataFrame, untuned: pd.DataFrame, originals: Path, out: Path
) -> None:
    shares = quality_report(student, untuned, out, NO_MODEL, original=originals)["failures_first"]

    assert all(sum(entry.values()) == pytest.approx(1) for entry in shares.values())
    assert all(list(entry) == ["passes", *FAILURE_KINDS] for entry in shares.values())
    assert shares["student"]["empty"] == shares["student"]["cut_off"] == pytest.approx(1 / 12)


def test_what_is_missing_is_said_to_be_not_measured(student: pd.DataFrame, out: Path) -> None:
    results = quality_report(student, None, out, NO_MODEL)

    page = (out / "report.md").read_text()
    assert results["systems"]["base"] is results["systems"]["original student"] is results["judged"] is None
    assert results["base_errors"] is None
    assert set(results["not_measured"]) == {"similarity", "entailed"}
    assert "the untuned base: it has no scripts" in page
    assert "the original student: no file with its outputs is configured" in page
    assert "| passes | 1 (1 to 1) | not measured | 0.833" in page
    assert "Not measured: no judge was asked for." in page


def test_a_value_of_fewer_scripts_says_of_how_many(student: pd.DataFrame, out: Path) -> None:
    quality_report(student, None, out, NO_MODEL)

    assert "| numbers supported | 1 (1 to 1) | not measured | 1 (1 to 1), of 11 |" in (out / "report.md").read_text()


def test_the_student_is_set_against_the_teacher_row_by_row(student: pd.DataFrame, out: Path) -> None:
    invented = student["student_podcast_text"].str.replace("That is the story", "We met Karl Weiss. That is the story")

    differences = quality_report(student.assign(student_podcast_text=invented), None, out, NO_MODEL)["differences"]

    names = differences["names_supported"]["student_minus_teacher"]
    numbers = differences["numbers_supported"]["student_minus_teacher"]
    # The teacher's scripts hold no name inside a sentence but the show's, so that nothing is to be compared.
    assert names == {"value": None, "low": None, "high": None, "scripts": 0}
    assert numbers["value"] == pytest.approx(-1 / 12), "the empty script has none of its teacher's numbers"
    assert numbers["scripts"] == 12


def test_a_script_that_drops_the_names_of_the_teachers_counts_as_supported_in_none(student: pd.DataFrame, out: Path) -> None:
    named = student.assign(
        chunk_text=student["chunk_text"] + " Ana Lopez was there.",
        gemini_podcast_text=student["gemini_podcast_text"] + " We met Ana Lopez.",
        student_podcast_text=student["student_podcast_text"] + " We met Ana Weiss.",
    )
    named.loc[0, "student_podcast_text"] = script_of("Nobody was met.")

    names = quality_report(named, None, out, NO_MODEL)["differences"]["names_supported"]["student_minus_teacher"]

    assert names["value"] == pytest.approx((-0.5 * 11 - 1) / 12)
    assert names["scripts"] == 12


def test_a_student_that_names_nobody_is_no_better_than_its_teacher(student: pd.DataFrame, out: Path) -> None:
    named = student.assign(
        chunk_text=student["chunk_text"] + " Ana Lopez was there.",
        gemini_podcast_text=student["gemini_podcast_text"] + " We met Ana Lopez.",
    )

    results = quality_report(named, None, out, NO_MODEL)

    assert results["differences"]["names_supported"]["student_minus_teacher"]["value"] == -1
    assert results["systems"]["student"]["has_names"]["value"] == 0
    assert results["systems"]["teacher"]["has_names"]["value"] == 1
    assert results["systems"]["student"]["names_supported"]["value"] is None


def test_ten_identical_articles_give_no_interval(student: pd.DataFrame, out: Path) -> None:
    same = student.head(10).assign(chunk_text="The mayor opened a new bridge. It is long.")

    results = quality_report(same, None, out, NO_MODEL)

    assert results["articles"] == 1
    assert results["systems"]["student"]["passes"] == {"value": 0.8, "low": None, "high": None, "scripts": 10}


def test_every_script_can_be_looked_at_with_its_measures(student: pd.DataFrame, originals: Path, out: Path) -> None:
    quality_report(student, None, out, NO_MODEL, original=originals)

    table = pd.read_csv(out / "scripts_measured.csv", keep_default_na=False)
    assert table["system"].value_counts().to_dict() == {
        "teacher": 12,
        "student": 12,
        "lead sentences": 12,
        "original student": 8,
    }
    cut = table[(table["system"] == "student") & (table["chunk_id"] == "a3:0")].iloc[0]
    assert (cut["first_failure"], cut["failures"]) == ("cut_off", "cut_off")
    assert cut["script"] == student.loc[3, "student_podcast_text"]
    assert table["chunk_id"].iloc[-1] == "original-8"


def test_twice_the_same_report_is_the_same(student: pd.DataFrame, originals: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        quality_report(student, None, folder, NO_MODEL, original=originals)

    for name in ("results.json", "report.md", "failures.png", "support.png", "scripts_measured.csv"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_scripts_of_error_rows_may_be_missing_values(student: pd.DataFrame, out: Path) -> None:
    student.loc[7, "student_podcast_text"] = None

    assert quality_report(student, None, out, NO_MODEL)["failures_first"]["student"]["empty"] == pytest.approx(1 / 12)


def test_base_scripts_of_other_rows_are_refused(student: pd.DataFrame, untuned: pd.DataFrame, out: Path) -> None:
    with pytest.raises(QualityError, match=r"1 rows of test have no base script, such as a0:0: .* row_limit"):
        quality_report(student, untuned.iloc[1:], out, NO_MODEL)


@pytest.mark.parametrize("column", ["chunk_text", "gemini_podcast_text"])
def test_base_scripts_of_another_data_set_are_refused(
    student: pd.DataFrame, untuned: pd.DataFrame, out: Path, column: str
) -> None:
    untuned.loc[4, column] += " An addition."

    with pytest.raises(QualityError, match=f"a4:0 and of 0 further rows is from another data set \\({column}"):
        quality_report(student, untuned, out, NO_MODEL)


def test_a_base_script_of_another_split_is_none(student: pd.DataFrame, untuned: pd.DataFrame, out: Path) -> None:
    untuned.loc[4, "split"] = "train"

    with pytest.raises(QualityError, match="1 rows of test have no base script, such as a4:0"):
        quality_report(student, untuned, out, NO_MODEL)


def test_rows_without_an_article_id_are_told_apart_by_their_text(student: pd.DataFrame, out: Path) -> None:
    ids = [None, float("nan"), "", " "] * 3

    assert quality_report(student.assign(article_id=ids), None, out, NO_MODEL)["articles"] == ROWS


def test_what_measures_is_known_beyond_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = QualityConfig(entailment_model=str(tmp_path))
    before = measuring_models(folder)
    (tmp_path / "config.json").write_text("{ }")

    assert measuring_models(folder)["entailment"] not in {before["entailment"], None}
    assert before["minilm"] is not None
    assert measuring_models(QualityConfig(similarity=False, entailment_model="a/b@c")) == {"entailment": "a/b@c", "minilm": None}


def test_base_scripts_are_found_by_row_and_not_by_order(student: pd.DataFrame, untuned: pd.DataFrame, out: Path) -> None:
    untuned["qwen_podcast_text"] = student["gemini_podcast_text"]
    shuffled = untuned.sample(frac=1, random_state=1)

    assert quality_report(student, shuffled, out, NO_MODEL)["systems"]["base"]["rouge_l"]["value"] == 1


def test_a_split_without_scripts_is_refused(student: pd.DataFrame, out: Path) -> None:
    with pytest.raises(QualityError, match="no student script belongs to train"):
        quality_report(student, None, out, QualityConfig(splits=("train",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"script": "a"}\n{"text": "b"}\n', "line 2 of"),
        (b'{"script": 3}\n', "line 1 of"),
        (b"[1]\n", "line 1 of"),
        (b"no json\n", "line 1 of"),
        (b"\n", "holds no script"),
        (b"\xff\n", "cannot be read"),
    ],
)
def test_a_file_of_outputs_with_a_slip_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "outputs.jsonl"
    path.write_bytes(content)

    with pytest.raises(QualityError, match=message):
        read_original_outputs(path)


def test_a_missing_file_of_outputs_is_an_error_and_not_a_gap(student: pd.DataFrame, tmp_path: Path, out: Path) -> None:
    with pytest.raises(QualityError, match="cannot be read"):
        quality_report(student, None, out, NO_MODEL, original=tmp_path / "nowhere.jsonl")


def test_the_outputs_of_the_original_student_are_read(real_data: Path) -> None:
    path = real_data / "original_student_outputs.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {real_data}")

    assert len(read_original_outputs(path)) == 485


@pytest.mark.parametrize(
    "wrong", [{"splits": ()}, {"splits": ("tests",)}, {"examples": -1}, {"judged_pairs": 0}, {"entailment_model": " "}]
)
def test_a_setting_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QualityConfig(**wrong)


def test_text_of_articles_and_scripts_cannot_break_out_of_the_page(student: pd.DataFrame, out: Path) -> None:
    hostile = "<script>alert(1)</script>\n# Heading\n![x](http://evil) | a | b |\n\n---\n> quote `code`"

    quality_report(
        student.assign(student_podcast_text=hostile, chunk_text=hostile, chunk_id=[f"<b>{row}" for row in student.index]),
        None,
        out,
        NO_MODEL,
    )

    page = (out / "report.md").read_text()
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or []]
    assert not [
        token for token in [*tokens, *inline] if token.type in {"html_block", "html_inline", "link_open", "hr", "code_inline"}
    ]
    assert {child.attrs["src"] for child in inline if child.type == "image"} == {"failures.png", "support.png"}
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert "Heading" not in headings


@pytest.mark.parametrize("sign", ["# ", "- ", "+ ", "~~~", "> ", "1. ", "12) ", "* ", "=== "])
def test_a_text_that_begins_like_markdown_stays_a_paragraph(student: pd.DataFrame, out: Path, sign: str) -> None:
    quality_report(student.assign(student_podcast_text=f"{sign}Hello, everyone."), None, out, NO_MODEL)

    tokens = markdown_it.MarkdownIt("commonmark").parse((out / "report.md").read_text())
    before = [token.type for token, inline in pairwise(tokens) if "Hello, everyone." in inline.content]
    assert set(before) == {"paragraph_open"}
    assert not any(token.type in {"fence", "bullet_list_open", "ordered_list_open"} for token in tokens)


def test_a_long_text_is_shown_with_both_its_ends(student: pd.DataFrame, out: Path) -> None:
    middle = "word " * 1000
    quality_report(student.assign(student_podcast_text=f"It begins. {middle} It ends."), None, out, NO_MODEL)
    page = (out / "report.md").read_text()
    assert page.count("It begins.") == page.count("It ends.") == page.count(" […] ") == ROWS

    quality_report(student.assign(student_podcast_text=f"{'word ' * 500}It ends."), None, out, NO_MODEL)
    assert " […] " not in (out / "report.md").read_text()


def test_twenty_different_rows_are_shown_with_the_reason_why(out: Path) -> None:
    rows = [
        {
            "chunk_id": f"c{number}",
            "article_id": f"a{number}",
            "split": "test",
            "chunk_text": article(number),
            "gemini_podcast_text": script_of(article(number)),
            "student_podcast_text": script_of(article(number))[: -number * 7 or None],
            "finish_reason": "eos",
        }
        for number in range(30)
    ]

    quality_report(pd.DataFrame(rows), None, out, NO_MODEL)

    headings = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("### Example ")]
    assert len(headings) == 20
    for place, measure in enumerate(("format failures", "numbers supported", "rouge l", "copied 5")):
        for turn in range(3):
            assert f" by {measure} (" in headings[4 * turn + place]


def test_the_ends_and_the_middle_of_every_measure_are_shown_even_if_that_is_more_than_asked_for(out: Path) -> None:
    measures = {"a": [float(row) for row in range(30)], "b": [float(-row) for row in range(30)]}

    def headings(count: int) -> list[str]:
        table = pd.DataFrame(
            {
                "chunk_id": [f"c{number}" for number in range(30)],
                "article_id": [f"a{number}" for number in range(30)],
                "split": "test",
                "chunk_text": [article(number) for number in range(30)],
                "gemini_podcast_text": [script_of(article(number)) for number in range(30)],
                "student_podcast_text": [script_of(article(number))[: -number * 7 or None] for number in range(30)],
                "finish_reason": "eos",
            }
        )
        quality_report(table, None, out, QualityConfig(similarity=False, examples=count))
        return [line for line in (out / "report.md").read_text().splitlines() if line.startswith("### Example ")]

    assert len(headings(1)) == 3 * 4, "format failures, numbers, ROUGE-L and copies are known"
    assert headings(0) == []
    assert len(choose_examples(measures, 30, 6)) == 6


def test_examples_are_ranked_by_their_quotations_as_well(student: pd.DataFrame, out: Path) -> None:
    said = student["student_podcast_text"] + " She said: “We saw it all.”"

    quality_report(student.assign(student_podcast_text=said), None, out, NO_MODEL)

    assert "one of 12 equal by quotations supported (0)" in (out / "report.md").read_text()


def test_a_row_already_shown_makes_room_for_the_next_which_says_so() -> None:
    chosen = choose_examples({"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5], "c": [7, 7, 7, 7, 7]}, 5, 5)

    assert [(example.row, example.measure, example.rank) for example in chosen] == [
        (0, "a", "worst"),
        (1, "b", "2nd worst"),
        (2, "c", "one of 5 equal"),
        (3, "a", "next to the median"),
        (4, "b", "next to the median"),
    ]


def test_one_of_several_best_rows_says_so() -> None:
    ranks = [example.rank for example in choose_examples({"a": [1, 3, 3]}, 3, 3)]

    assert ranks == ["worst", "median, one of 2 equal", "best, one of 2 equal"]


def test_examples_are_the_ends_and_the_middle_of_each_measure() -> None:
    chosen = choose_examples({"a": [5, 1, 4, 2, 3, None], "b": [None, None, None, None, None, 1]}, 6, 4)

    assert [(example.row, example.rank, example.measure) for example in chosen] == [
        (1, "worst", "a"),
        (5, "worst", "b"),
        (4, "median", "a"),
        (0, "best", "a"),
    ]


@pytest.mark.parametrize(("rows", "count", "expected"), [(3, 20, 3), (0, 20, 0), (5, 0, 0), (5, 2, 2)])
def test_there_are_no_more_examples_than_rows(rows: int, count: int, expected: int) -> None:
    for goodness in ({}, {"a": [1.0] * rows}, {"a": [None] * rows}):
        chosen = choose_examples(goodness, rows, count)

        assert len({example.row for example in chosen}) == len(chosen) == expected


def test_a_report_can_be_made_anew_in_an_empty_folder(student: pd.DataFrame, out: Path) -> None:
    quality_report(student, None, out, NO_MODEL)
    shutil.rmtree(out)
    out.mkdir()

    assert quality_report(student, None, out, NO_MODEL)["rows"] == ROWS
