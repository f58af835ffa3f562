"""What a model writes into a script or around it that cannot be aired: markup, stage directions, speaker labels, remarks.

English patterns. What becomes of such a script is not decided here.
"""

from __future__ import annotations

import re

_PREAMBLE = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay)\b[^.!?\n]{0,40}!|"
    r"(?:(?:sure|certainly|of course|absolutely|okay)\b[,.:]?\s+)?"
    r"(?:here(?:'s|’s| is| are)|below is|i(?:'ve|’ve| have) (?:written|prepared|created))\b[^.!?\n]{0,60}"
    r"\b(?:script|transcript|draft|rewrite)\b|"
    r"(?:podcast |episode )?(?:script|transcript|title)\s*:)",
    re.IGNORECASE,
)
_REMARK_BEHIND = re.compile(
    r"\b(?:let me know if you(?:['’]d|\s+would|\s+want|\s+need)|would you like me to|i hope this (?:script|helps)|word count|"
    r"feel free to (?:adjust|edit|change))\b",
    re.IGNORECASE,
)
_REMARK_REACH = 200  # characters from the end in which a remark behind the script begins
_MARKUP = re.compile(
    r"\*\*|__|```|<\|[^|]*\|>|</?[a-z][^<>]*>|"
    r"^[^\S\n]*#{1,6}\s|^[^\S\n]*[-*•]\s|"  # headings, lists
    r"https?://|\bwww\.\w|\w@\w+\.\w|"
    r"\*\w[^*\n]{0,60}\*|"  # emphasis
    r"\[[^\]]{0,80}\]|"
    r"[(*][^()*]{0,40}\b(?:music|jingle|sound effect|pauses?|sfx|applause|intro|outro|laughs|chuckles|sighs|whoosh)\b"
    r"[^()*]{0,40}[)*]|"
    r"^[^\S\n]*(?:host|narrator|speaker|announcer|anchor)(?: \w+)?[^\S\n]*:|(?-i:^[^\S\n]*[A-Z][A-Z .]{2,20}:)|"  # who speaks
    r"[\U0001F300-\U0001FAFF\u2600-\u27BF\u266A-\u266C]",  # emoji, notes
    re.IGNORECASE | re.MULTILINE,
)


def has_markup(text: str) -> bool:
    """Whether `text` holds something that cannot be spoken: markup, a link, a list, a stage direction, a speaker label."""
    return bool(_MARKUP.search(text))


def has_remark(text: str) -> bool:
    """Whether `text` opens or ends with a remark about itself, such as 'Here is your script'."""
    return bool(_PREAMBLE.match(text) or _REMARK_BEHIND.search(text[-_REMARK_REACH:]))
