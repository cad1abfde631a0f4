"""Values and foreign text in plain words."""

from __future__ import annotations

from edge.text import MISSING, fraction, of, show_bytes, show_celsius, show_percent, show_seconds, show_watts, visible


def test_numbers_have_three_digits_and_what_is_missing_is_a_dash() -> None:
    assert [show_bytes(count) for count in (None, 0, 1023, 1024, 2**30 * 45.2, 143771 * 2**20, 2**50)] == [
        "—", "0 B", "1.0 KiB", "1.0 KiB", "45.2 GiB", "140 GiB", "1.0 PiB",
    ]  # fmt: skip
    assert [show_watts(milliwatts) for milliwatts in (None, 0, 9_400, 700_000, 5_600_000, 4_100_000_000)] == [
        "—", "0 W", "9 W", "700 W", "5.6 kW", "4.1 MW",
    ]  # fmt: skip
    assert [show_seconds(seconds) for seconds in (-1, 7.9, 200, 18_120, 1_047_600)] == ["0s", "7s", "3m20s", "5h02m", "12d03h"]
    assert show_celsius(None, 87) == "—"
    assert show_celsius(87, 87) == "87°C!"


def test_a_share_needs_both_its_part_and_its_whole() -> None:
    assert fraction(1, 4) == 0.25
    assert fraction(0, 4) == 0
    assert fraction(None, 4) is fraction(1, None) is fraction(1, 0) is None
    assert [show_percent(part) for part in (None, 0, 0.534, 1)] == [MISSING, "0%", "53%", "100%"]
    assert of("45.2 GiB", "140 GiB") == "45.2 GiB of 140 GiB"
    assert of("45.2 GiB", MISSING) == "45.2 GiB"
    assert of(MISSING, "140 GiB") == MISSING


def test_text_from_outside_can_not_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\nc\u202ed\x00\x9b") == "a�[2Jb�c�d��"
    assert visible("Müller 機 [red]") == "Müller 機 [red]"
    assert visible("x" * 1000) == "x" * 200
