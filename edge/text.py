"""Values and foreign text in plain words: what both programs write, on a screen or in a line."""

from __future__ import annotations

import math
import re
import unicodedata

MISSING = "—"  # what a box does not report; never shown as 0
MAX_SENTENCE = 500  # characters of what another machine says in words: no sentence of our own is longer

# Printable, says Unicode, and not to be seen: fillers, joiners, selectors of a character's variant.
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)
# These, and those that are as wide as each terminal pleases: a row that has one does not keep its columns.
DISPUTED = re.compile(
    f"{INVISIBLE.pattern}|["
    "\u1161-\u11ff\ud7b0-\ud7ff\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff"  # parts of Hangul syllables, flags, skin tones
    "\u2630-\u2637\u268a-\u268f\u4dc0-\u4dff\U0001d300-\U0001d376"  # one cell until Unicode 16, two since
    "]"
)
DISPUTED_CATEGORIES = {"Mc", "Me"}  # combining characters that take room of their own, or surround another one
VIRAMA = 9  # the class of combining characters that melt two letters of an Indic script into one
MAX_MARKS = 3  # on one character: a pile of them is painted over the lines above and below


def encodable(text: str) -> str:
    """`text` that the system named by bytes: those that are no UTF-8, which Python keeps as lone surrogates, become �."""
    return re.sub("[\ud800-\udfff]+", "�", text)


def visible(text: str, limit: int = 200) -> str:
    """`text` from another machine, safe on a terminal, and as wide there as `cells` says.

    What is not printable (ESC, newlines, bidi overrides, joiners) and what terminals disagree on becomes �.
    """
    text = text[:limit]
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for c in DISPUTED.sub("�", unicodedata.normalize("NFC", text)):
        combining = unicodedata.combining(c)
        marks = marks + 1 if combining else 0
        is_disputed = combining == VIRAMA or unicodedata.category(c) in DISPUTED_CATEGORIES or marks > MAX_MARKS
        shown.append(c if c.isprintable() and not is_disputed else "�")
    return "".join(shown)


def fraction(part: float | None, whole: float | None) -> float | None:
    """part / whole, where both are reported."""
    return None if part is None or not whole else part / whole


def of(value: str, whole: str) -> str:
    """ "45.2 GiB of 140 GiB", where the whole is known."""
    return value if MISSING in (value, whole) else f"{value} of {whole}"


def show_bytes(count: float | None) -> str:
    """Three digits and an IEC unit: "45.2 GiB"."""
    if count is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 999.5 or unit == "PiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 99.95 or unit == "B" else f"{count:.1f} {unit}"


def show_watts(milliwatts: float | None) -> str:
    """Three digits and a unit: "412 W", "5.6 kW"."""
    if milliwatts is None:
        return MISSING
    watts = milliwatts / 1000
    for unit in ("W", "kW", "MW"):
        if watts < 999.5 or unit == "MW":
            break
        watts /= 1000
    return f"{watts:.0f} {unit}" if watts >= 99.95 or unit == "W" else f"{watts:.1f} {unit}"


def show_energy(joules: float | None) -> str:
    """Three digits and a unit: "41.2 Wh", "3.4 kWh"."""
    return MISSING if joules is None else f"{show_watts(joules / 3.6)}h"  # as many watts for an hour


def show_percent(part: float | None) -> str:
    """A fraction as a whole percentage, rounded half up, as the history rounds it."""
    return MISSING if part is None else f"{math.floor(part * 100 + 0.5 + 1e-9)}%"  # 0.145 * 100 is 14.499999999999998


def show_celsius(degrees: float | None, limit: float | None) -> str:
    """Degrees, with a `!` from the limit on: colour never stands alone."""
    return MISSING if degrees is None else f"{degrees:.0f}°C" + ("!" if limit is not None and degrees >= limit else " ")


def show_seconds(seconds: float) -> str:
    """A duration in its one or two largest units: "7s", "3m20s", "5h02m", "12d03h"."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"
