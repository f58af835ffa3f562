"""Telling people: a line in the log, and a post to the webhook of `NEWSJUICE_WEBHOOK_URL` when one is set.

What is worth telling is decided in `sensors.py`. The address is a secret, and no error of a webhook leaves this module.
"""

import logging
import threading

from newsjuice_pipelines.settings import load_settings

logger = logging.getLogger("newsjuice.notifications")

LONGEST_CHARACTERS = 1500
OPERATION_TIMEOUT_S = 5.0
# Over all: a server that sends a byte now and then never runs into the time-out of one operation.
DEADLINE_S = 15.0


def tell(text: str) -> str:
    """Log a text and post it as JSON (`{"text": …}`); returns what became of that, and never raises.

    Args:
        text: plain words; shortened to `LONGEST_CHARACTERS`, on one line, without markup that would mention people.
    """
    said = plain(text)
    logger.warning("%s", said)
    url = load_settings().webhook_url
    if url is None:
        return "Logged; no webhook is set (NEWSJUICE_WEBHOOK_URL)."
    outcome = _post(url.get_secret_value(), said)
    if outcome:
        logger.warning("the webhook was not told: %s. Check NEWSJUICE_WEBHOOK_URL.", outcome)
        return f"Logged; the webhook was not told: {outcome}."
    return "Logged, and told to the webhook."


def plain(text: str) -> str:
    """One line that chat programs show as it is: no control characters, no markup, no mention of everybody, not too long."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(line) > LONGEST_CHARACTERS:
        line = line[: LONGEST_CHARACTERS - 1] + "…"
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("@", "@\u200b")  # a zero-width space: nobody is paged by the words of an error


def _post(url: str, text: str) -> str:
    """An empty string when the webhook took the text, else why not, without its address."""
    outcome = [f"no answer within {DEADLINE_S:.0f} s"]
    sender = threading.Thread(target=_send, args=(url, text, outcome), name="webhook", daemon=True)
    sender.start()
    sender.join(DEADLINE_S)
    return outcome[0]


def _send(url: str, text: str, outcome: list[str]) -> None:
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs the address of each request
    try:
        with httpx.stream("POST", url, json={"text": text}, timeout=OPERATION_TIMEOUT_S) as answer:
            outcome[0] = "" if answer.is_success else f"it answered with HTTP {answer.status_code}"
    except Exception as error:  # whatever it is, the run that is told about is more important; messages may hold the address
        outcome[0] = type(error).__name__
