"""The language of `/`: words, state:WORD and comparisons, all of which must hold."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edge.fleet.entry import Entry
from edge.fleet.metrics import METRICS
from edge.fleet.row import State

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq,
}  # fmt: skip
Test = Callable[[Entry], bool]


class Quantity(NamedTuple):
    """What may be compared with a number."""

    units: Mapping[str, float]  # that may follow the number: how much of the value's own unit each is
    value: Callable[[Entry], float | None]


QUANTITIES = {metric.word: Quantity(metric.units, metric.of) for metric in METRICS} | {
    "age": Quantity({"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}, lambda entry: entry.heartbeat_age_seconds)
}
COMPARISON = re.compile(rf"({'|'.join(QUANTITIES)})[a-z]*(<=|>=|<|>|=)(\d+(?:\.\d+)?)(\D*)", re.IGNORECASE | re.ASCII)


def parse_filter(text: str) -> tuple[list[Test], list[str]]:
    """What must hold of an entry, all of it; and the terms that can't be read.

    These restrict nothing, and the table says so: one may only be half typed.
    """
    tests = {term: parse_term(term) for term in text.lower().split()}
    return [test for test in tests.values() if test], [term for term, test in tests.items() if not test]


def parse_term(term: str) -> Test | None:
    """One word of a filter. None: a comparison or a state that can't be read."""
    if match := COMPARISON.fullmatch(term):
        return parse_comparison(*match.groups())
    if term.startswith("state:"):
        wanted = [state for state in State if state.value.lower().startswith(term[6:])]
        return (lambda entry: entry.state in wanted) if wanted else None
    if set("<>=") & set(term):
        return None
    return lambda entry: term in searched_text(entry)


def parse_comparison(word: str, sign: str, number: str, unit: str) -> Test | None:
    """`util<10`, in its parts. None: no such unit. What is not reported is neither more nor less than anything."""
    quantity, compare = QUANTITIES[word], COMPARE[sign]
    if unit not in quantity.units:
        return None
    limit = float(number) * quantity.units[unit]

    def compared(entry: Entry) -> bool:
        value = quantity.value(entry)
        return value is not None and compare(value, limit)

    return compared


def searched_text(entry: Entry) -> str:
    """What a word of a filter is looked for in."""
    info, row = entry.info, entry.row
    return " ".join(
        (row.node_id, info.hostname, row.address, info.host.model, *(device.name for device in entry.devices))
    ).lower()
