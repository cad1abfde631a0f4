"""Values and foreign text in plain words: what both programs write, on a screen or in a line."""

from __future__ import annotations

MISSING = "—"  # what a box does not report; never shown as 0


def visible(text: str, limit: int = 200) -> str:
    """`text` from another machine, safe on a terminal: whatever is not printable (ESC, newlines, bidi overrides) becomes �."""
    return "".join(c if c.isprintable() else "�" for c in text[:limit])


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


def show_percent(part: float | None) -> str:
    """A fraction as a whole percentage."""
    return MISSING if part is None else f"{part * 100:.0f}%"


def show_celsius(degrees: float | None, limit: float | None) -> str:
    """Degrees, with a `!` from the limit on: colour never stands alone."""
    return MISSING if degrees is None else f"{degrees:.0f}°C" + ("!" if limit and degrees >= limit else " ")


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
