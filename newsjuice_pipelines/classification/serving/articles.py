"""The text that a classifier reads of an article, the same for files, databases and headlines that are typed in."""

from __future__ import annotations

from newsjuice_pipelines.classification.corpus.huffpost import join_text

LEAD_WORDS = 60
# Far more than 60 words need, so that a very long content is not divided into words as a whole.
LEAD_CHARACTERS = 4_000


def article_text(title: str, content: str) -> str:
    """The title with the first 60 words of the content: what the training texts, headline and description, look like."""
    return join_text(_clean(title), " ".join(_clean(content[:LEAD_CHARACTERS]).split()[:LEAD_WORDS]))


def _clean(text: str) -> str:
    """Without NUL characters, which some tokenizers end a text at."""
    return text.replace("\x00", " ")
