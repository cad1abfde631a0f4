"""What lines and panels are drawn with: everything has exactly its width."""

from __future__ import annotations

from edge.drawing import (
    Column,
    band,
    bar,
    box,
    cells,
    choose_columns,
    fit,
    fit_line,
    fit_lines,
    fit_parts,
    graph,
    heat_style,
    meter,
    plain,
    sparkline,
    stretched,
    too_small,
)
from edge.history import NOT_REPORTED
from edge.text import visible


def test_bars_have_eighths_and_their_exact_width() -> None:
    assert bar(0, 4) == "····"
    assert bar(0.5, 4) == "██··"
    assert bar(1, 4) == "████"
    assert bar(1 / 32, 4) == "▏···"
    assert bar(None, 4) == "    "
    assert {len(bar(step / 100, 7)) for step in range(-20, 130)} == {7}


def test_wide_characters_take_two_cells() -> None:
    assert fit("機械学習", 5) == "機械…"
    assert cells(fit("機械学習", 6)) == 6
    assert [fit("ab", width) for width in (0, 1, 2, 4)] == ["", "…", "ab", "ab  "]
    assert fit("ab", 4, ">") == "  ab"
    assert {cells(fit("a機b械c", width)) for width in range(1, 12)} == set(range(1, 12))


def test_a_line_is_cut_or_padded_to_its_width_and_keeps_its_styles() -> None:
    line = [("機械", "bold"), ("learning", "red")]
    assert fit_line(line, 7) == [("機械", "bold"), ("le…", "red")]
    assert fit_line(line, 14) == [*line, ("  ", "")]
    assert fit_line(line, 12) is line
    assert plain([fit_line(line, 0)]) == ""


def test_half_a_number_is_left_out() -> None:
    parts = [[("12 GPUs", "")], [(" 53%", "")], [(" 1", "")]]
    assert plain([fit_parts(parts, 11)]) == "12 GPUs 53%"
    assert plain([fit_parts(parts, 10)]) == "12 GPUs   "


def test_a_frame_and_a_box_have_exactly_their_size() -> None:
    lines = [[("機械学習 and more", "")], [("x", "dim")]]
    for width in (6, 7, 20, 40):
        for height in (1, 2, 5):
            assert [cells(line) for line in plain(fit_lines(lines, width, height)).splitlines()] == [width] * height
        assert {sum(cells(text) for text, _ in line) for line in box("機械学習", lines, width)} == {width}
    assert plain(box("Log", lines[1:], 9)) == "╭─ Log ─╮\n│ x     │\n╰───────╯"
    assert plain(too_small(39, 9)).startswith("too small: 39x9, needs 40x10")


def test_columns_are_chosen_by_rank_and_keep_their_order() -> None:
    columns = [Column("A", 5, 2), Column("B", 5, 0), Column("C", 20, 1), Column("D", 2, 3)]
    assert [column.title for column in choose_columns(columns, 80)] == ["A", "B", "C", "D"]
    assert [column.title for column in choose_columns(columns, 12)] == ["A", "B"]
    assert [column.title for column in choose_columns(columns, 26)] == ["B", "C"]


def test_the_empty_part_of_a_meter_is_dim() -> None:
    assert meter(0.5, 4, "green") == [("██", "green"), ("··", "dim")]
    assert plain([meter(None, 4, "green")]) == "    "


def test_sparklines_and_graphs_have_a_fixed_scale_with_the_newest_at_the_right() -> None:
    assert sparkline(bytes([0, 50, 100, 255]), 6) == "  ▁▄█ "
    assert sparkline(bytes(range(100)), 3) == "███"
    assert plain(graph(bytes([0, 50, 100, 255]), 5, 2, "")) == "   █ \n ▁██ "


def test_colour_of_a_temperature_is_against_its_own_limit() -> None:
    assert [heat_style(degrees, 80) for degrees in (None, 71, 72, 80)] == ["dim", "green", "yellow", "bold red"]
    assert [heat_style(degrees, None) for degrees in (80, 81, 90)] == ["green", "yellow", "bold red"]
    assert [heat_style(degrees, limit) for degrees, limit in ((0, 90), (-12, 90), (0, None), (-1, 0), (0, 0))] == [
        "green", "green", "green", "green", "bold red",
    ]  # fmt: skip


def test_a_text_is_cut_and_padded_by_cells_whatever_it_is_made_of() -> None:
    """Of a foreign name, after `visible`: wide and combining characters, flags, skin tones."""
    for name in ("日本語ノード", "Zoe\u0301 e\u0301e\u0301", "👩‍🚀👍🏽🇩🇪", "\u0e01\u0e33\u0e35x", "ㅤa\u2800b", "हिन्दी"):
        shown = visible(name)
        for width in range(1, 16):
            assert cells(fit(shown, width)) == cells(fit(shown, width, ">")) == width
            assert sum(cells(text) for text, _ in fit_line([(shown, "bold"), ("tail", "")], width)) == width
            assert {sum(cells(text) for text, _ in line) for line in box(shown, [[(shown, "")]], width + 8)} == {width + 8}


# ---- Lowest and highest ----


def test_a_spike_of_one_step_is_seen_in_a_graph_of_many() -> None:
    lowest, highest = bytes(2016), bytearray(2016)
    highest[1000] = 100
    lines = plain(band(lowest, bytes(highest), 60, 4, "")).splitlines()
    assert [line.count("░") for line in lines] == [1, 1, 1, 1]
    assert {line.index("░") for line in lines} == {1000 * 60 // 2016}
    assert lines[3].replace("░", "▁") == "▁" * 60  # nothing is nothing, and 0 a thin line


def test_a_graph_is_solid_up_to_the_lowest_and_shaded_up_to_the_highest() -> None:
    assert plain(band(bytes([50] * 8), bytes([100] * 8), 8, 4, "")).split("\n") == ["░" * 8, "░" * 8, "█" * 8, "█" * 8]
    assert plain(band(bytes([40] * 8), bytes([40] * 8), 8, 2, "")).split("\n") == [" " * 8, "▆" * 8]
    assert plain(band(bytes([5] * 8), bytes([40] * 8), 8, 1, "")) == "▃" * 8  # both end in one cell: the highest


def test_a_graph_fills_its_width_whatever_its_steps_and_leaves_out_what_is_not_kept() -> None:
    hole = bytes([NOT_REPORTED])
    for width in (1, 7, 60, 333, 1000):
        for count in (0, 1, 7, 288, 360):
            values = (bytes([30]) + hole)[:count] + bytes([30]) * max(count - 2, 0)
            text = plain(band(values, values, width, 3, ""))
            assert [len(line) for line in text.split("\n")] == [width] * 3
            assert bool(text.strip()) == bool(count)
    assert stretched(bytes([10]) + hole + bytes([30, 20]), 2, min) == bytes([10, 20])
    assert stretched(bytes([10]) + hole + bytes([30, 20]), 2, max) == bytes([10, 30])
    assert stretched(hole * 4, 2, max) == hole * 2
    assert stretched(bytes([1, 2]), 4, max) == bytes([1, 1, 2, 2])
