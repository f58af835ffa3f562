"""Cells that a spreadsheet must not run. Reading and writing files is `article_files.py`'s and `external.py`'s business."""

from __future__ import annotations

import re

# A formula starts with one of these, in some locales with their full-width forms; a tab or a line break in front is skipped.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*([eE][+-]?\d+)?")


def spreadsheet_safe(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that starts like a formula gets an apostrophe in front.

    Plain numbers, such as -5 or +1.5e3, are no formulas and stay as they are.
    """
    if value.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value
