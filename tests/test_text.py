"""Values and foreign text in plain words."""

from __future__ import annotations

import pytest

from edge.text import MISSING, fraction, of, show_bytes, show_celsius, show_energy, show_percent, show_seconds, show_watts, visible


def test_numbers_have_three_digits_and_what_is_missing_is_a_dash() -> None:
    assert [show_bytes(count) for count in (None, 0, 1023, 1024, 2**30 * 45.2, 143771 * 2**20, 2**50)] == [
        "—", "0 B", "1.0 KiB", "1.0 KiB", "45.2 GiB", "140 GiB", "1.0 PiB",
    ]  # fmt: skip
    assert [show_watts(milliwatts) for milliwatts in (None, 0, 9_400, 700_000, 5_600_000, 4_100_000_000)] == [
        "—", "0 W", "9 W", "700 W", "5.6 kW", "4.1 MW",
    ]  # fmt: skip
    assert [show_energy(joules) for joules in (None, 0, 3600, 90_000, 12.3e6, 3.6e10)] == [
        "—",
        "0 Wh",
        "1 Wh",
        "25 Wh",
        "3.4 kWh",
        "10.0 MWh",
    ]
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


@pytest.mark.parametrize(
    "character",
    [
        "\ufe0f", "\u200d", "\U0001f1e9", "\U0001f3fd", "\u3164", "\u115f", "\u1160", "\uffa0", "\u2800", "\u00ad", "\u200b",
        "\u2060", "\ufeff", "\U000e0041", "\U000e0101", "\u034f", "\u180e", "\u20e3", "\u0903", "\u094d", "\u2630",
        "\u4dc0", "\u3000", "\u00a0", "\U0001d159",
    ],
    ids=lambda character: f"{ord(character):x}",
)  # fmt: skip
def test_what_terminals_disagree_on_or_nobody_sees_is_not_shown(character: str) -> None:
    assert visible(f"a{character}b") == "a�b"


def test_text_of_other_scripts_is_shown() -> None:
    for text in ("日本語ノード", "한글", "Zoë", "Ελλάδα", "Москва", "עברית", "ภาษาไทย", "🚀 rocket", "❤ ☀", "⣿⣀"):
        assert visible(text) == text
    assert visible("Zoe\u0308 \u1112\u1161\u11ab") == "Zoë 한"  # put together: a letter and its mark, the parts of a syllable
    assert visible("👩‍🚀 👍🏽 🇩🇪 ❤\ufe0f 1\ufe0f\u20e3") == "👩�🚀 👍� �� ❤� 1��"
    assert visible("x" + "\u0335" * 9) == "x" + "\u0335" * 3 + "�" * 6
    assert len(visible("क्षि" * 100)) == 200


def test_degrees_below_and_at_zero_are_degrees() -> None:
    assert [show_celsius(degrees, 90) for degrees in (None, -12, 0, 90)] == ["—", "-12°C ", "0°C ", "90°C!"]
    assert [show_celsius(degrees, 0) for degrees in (-1, 0)] == ["-1°C ", "0°C!"]
    assert [show_celsius(degrees, None) for degrees in (0, 200)] == ["0°C ", "200°C "]
