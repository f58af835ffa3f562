"""Progress lines for long work: done, rate and remaining time, at most one line every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("newsjuice.progress")


class Progress:
    """Logs `what: done/total unit, rate, remaining time` to the `newsjuice` logger, which Dagster captures.

    The rate covers this process's own work, so a resumed job that starts at `done` does not report a flattering speed. It is
    given by the second, or by the minute for work slower than one unit a second and where `per_minute` asks for it.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        per_minute: bool = False,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._first = done
        self._per_minute, self._interval_s, self._clock = per_minute, interval_s, clock
        self._start = self._last_line = clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; log a line when one is due, and always at the end."""
        self.done += count
        now = self._clock()
        if now - self._last_line >= self._interval_s or self.done >= self.total:
            self._last_line = now
            logger.info(self.line(now, note))

    def line(self, now: float, note: str = "") -> str:
        """The progress line as of `now` (seconds on the clock of this object)."""
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._first) / elapsed
        text = f"{self.what}: {self.done}/{self.total} {self.unit}, {self._rate(rate)}"
        if self.done < self.total and rate > 0:
            text += f", {format_duration((self.total - self.done) / rate)} left"
        elif self.done >= self.total:
            text += f", done in {format_duration(elapsed)}"
        return f"{text}, {note}" if note else text

    def _rate(self, per_second: float) -> str:
        slow = self._per_minute or 0 < per_second < 1
        return f"{_three_digits(60 * per_second)} {self.unit}/min" if slow else f"{_three_digits(per_second)} {self.unit}/s"


def _three_digits(value: float) -> str:
    """`0.0123`, `4.56`, `789` or `12,345`: never an exponent, which `.3g` would give from 1,000 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
