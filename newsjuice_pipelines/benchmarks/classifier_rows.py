"""The rows of the classifier's benchmarks: where real headlines lie, and as many made-up ones as are asked for.

What is measured on them is in `classifier_runs.py` and `classifier_defect_runs.py`.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost
from newsjuice_pipelines.demo import DEMO_ARTICLES, DEMO_HEADLINES

HEADLINES_FILES = ("huffpost_sample.jsonl", "News_Category_Dataset_v3.json")
EXTERNAL_FILE = "harvard_external.csv"
EXTERNAL_COLUMNS = ("id", "title", "content", "summary")

# Of the whole data set: its lengths in words, and how many of its rows have a description.
HEADLINE_WORDS, DESCRIPTION_WORDS = (4, 15), (5, 34)
DESCRIBED_SHARE = 0.9
PHRASE_WORDS = (2, 5)
NEARLY_REPEATED_SHARE = 0.02  # with one word changed
REPEATED_SHARE = 0.005


def headlines_file(data: Path | None) -> Path:
    """The labelled headlines in a folder, or those of the demo.

    Raises:
        ValueError: the folder has none.
    """
    if data is None:
        return DEMO_HEADLINES
    for name in HEADLINES_FILES:
        if (data / name).is_file():
            return data / name
    raise ValueError(f"there is no {' or '.join(HEADLINES_FILES)} in {data}: give a folder that has one, or leave --data out.")


def external_rows(data: Path | None) -> tuple[Any, str]:
    """Articles of another source with `id, title, content, summary`, and what to call them: of the folder, else of the demo."""
    import pandas as pd

    if data is not None and (data / EXTERNAL_FILE).is_file():
        return pd.read_csv(data / EXTERNAL_FILE, dtype=str, keep_default_na=False, encoding="utf-8"), EXTERNAL_FILE
    articles = [json.loads(line) for line in DEMO_ARTICLES.read_text(encoding="utf-8").splitlines()]
    summaries = [json.dumps({"category": article["category"]}) for article in articles]
    cells = [
        (article["article_id"], article["title"], article["content"], summary)
        for article, summary in zip(articles, summaries, strict=True)
    ]
    return pd.DataFrame(cells, columns=list(EXTERNAL_COLUMNS)), "demo articles"


def write_made_up_rows(source: Path, rows: int, out: Path, seed: int = 42) -> None:
    """Write a file of `rows` headlines in the layout of the whole data set, made of phrases of the real ones in `source`.

    A row strings together phrases of two to five words that its section has used, so that sections keep their words and rows
    share runs of characters as real ones do. Some rows repeat an earlier one, exactly or with one word changed.
    """
    chooser = random.Random(seed)
    words = _words_by_section(source)
    sections, sizes = list(words), [len(found) for found in words.values()]
    earlier: list[dict[str, str]] = []
    with out.open("w", encoding="utf-8") as stream:
        for number, section in enumerate(chooser.choices(sections, sizes, k=rows)):
            dice = chooser.random()
            if earlier and dice < REPEATED_SHARE:
                row = chooser.choice(earlier)
            elif earlier and dice < REPEATED_SHARE + NEARLY_REPEATED_SHARE:
                row = _one_word_changed(chooser.choice(earlier), chooser.choice(words[section]), chooser)
            else:
                row = _made_up(section, words[section], chooser, number)
            if number % 10 == 0:  # enough to repeat from, without keeping two million rows
                earlier.append(row)
            stream.write(json.dumps(row) + "\n")


def _words_by_section(source: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    table = load_huffpost(source).rows
    for section, text in zip(table["category"], table["text"], strict=True):
        found[section] += text.split()
    return dict(found)


def _made_up(section: str, words: list[str], chooser: random.Random, number: int) -> dict[str, str]:
    described = chooser.random() < DESCRIBED_SHARE
    return {
        "link": f"https://headlines.example/{number}",
        "headline": " ".join(_phrases(words, chooser.randint(*HEADLINE_WORDS), chooser)),
        "category": section,
        "short_description": " ".join(_phrases(words, chooser.randint(*DESCRIPTION_WORDS), chooser)) if described else "",
        "authors": "",
        "date": f"{chooser.randint(2012, 2022)}-{chooser.randint(1, 12):02d}-{chooser.randint(1, 28):02d}",
    }


def _phrases(words: list[str], count: int, chooser: random.Random) -> Iterator[str]:
    while count > 0:
        length = min(count, chooser.randint(*PHRASE_WORDS))
        start = chooser.randrange(max(1, len(words) - length))
        yield from words[start : start + length]
        count -= length


def _one_word_changed(row: dict[str, str], word: str, chooser: random.Random) -> dict[str, str]:
    headline = row["headline"].split()
    headline[chooser.randrange(len(headline))] = word
    return {**row, "headline": " ".join(headline)}
