"""The language of `/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fixtures.examples import example_registry, example_row
from tests.fixtures.screens import Screen


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("state:lost", {11}),
        ("state:l", {6, 11, 17}),
        ("edge-03", {3}),
        ("10.0.0.127", {27}),
        ("RTX edge-1", {10, 13, 16, 19}),
        ("age>20", {11}),
        ("nothing-like-this", set()),
        ("temp>", set(range(28))),
        ("state:foo edge-03", {3}),
    ],
)
def test_filters(text: str, wanted: set[int]) -> None:
    screen = Screen(example_registry()).press("/", *text, "enter")
    assert screen.nodes() == [f"Node-{1000 + index}" for index in sorted(wanted)]


def test_filters_compare_readings() -> None:
    rows = {f"Node-{1000 + index}": example_row(index).vitals for index in range(28)}
    cases: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("temp>=80", lambda vitals: vitals.celsius >= 80),
        ("util<10", lambda vitals: vitals.utilization * 100 < 10),
        ("mem>90", lambda vitals: vitals.memory * 100 > 90),
        ("power>3000 temp<80", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.celsius < 80),
        ("power>3kW mem>=50%", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.memory >= 0.5),
    )
    for text, wanted in cases:
        assert Screen(example_registry()).press("/", *text).nodes() == [name for name, vitals in rows.items() if wanted(vitals)]


@pytest.mark.parametrize("term", ["temp>", "power>1kg", "state:foo", "speed>3", "age>1m>2"])
def test_a_term_that_cannot_be_read_restricts_nothing_and_is_named(term: str) -> None:
    screen = Screen(example_registry()).press("/", *f"{term} edge-03", "enter")
    assert screen.nodes() == ["Node-1003"]
    assert f"not understood: {term} " in screen.text()


def test_ages_in_other_units() -> None:
    assert Screen(example_registry()).press("/", *"age>0.5m").nodes() == ["Node-1011"]
    assert Screen(example_registry()).press("/", *"age>1h").nodes() == []
