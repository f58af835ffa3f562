"""The demo corpus, written for this project: campus-news articles of a fictional university, and news headlines.

`articles.jsonl` is loaded into the embedded database; `headlines.jsonl` has the layout of `News_Category_Dataset_v3.json`.
"""

from pathlib import Path

DEMO_ARTICLES = Path(__file__).parent / "articles.jsonl"
DEMO_HEADLINES = Path(__file__).parent / "headlines.jsonl"
