"""The language of `/`: words, names with a colon and comparisons, all of which must hold.

h200 rack07         words: both must stand in id, hostname, device or address; "two words" are one in quotes
h200|a100           either; each side may be any term
-h200 !state:lost   not
state:lost,late     one of these; also user:, process:, version:, token:; the beginning of such a name is enough
util < 10           a comparison; what is not reported is neither more nor less than anything
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from edge.fleet.entry import Entry
from edge.fleet.metrics import METRICS
from edge.fleet.row import State
from edge.history import WHOLE_NODE
from edge.protocol import reported

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq,
    "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
T = TypeVar("T")
Test = Callable[[T], bool]


# ---- What may be asked ----


class Quantity(NamedTuple):
    """What may be compared with a number."""

    units: Mapping[str, float]  # that may follow the number: how much of the value's own unit each is
    value: Callable[[Entry], float | None]


BYTE_UNITS = {  # kib and k are 1024 bytes, kb is 1000
    f"{letter}{unit}": float(base**power)
    for power, letter in enumerate("kmgt", 1)
    for unit, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


DURATIONS = {"": 1.0, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def sample_age_seconds(entry: Entry) -> float | None:
    """Of the newest readings: more than the heartbeat's age where the sensors hang."""
    return None if entry.row.sample_at is None else entry.now - entry.row.sample_at


def memory_used_bytes(entry: Entry) -> float | None:
    """Of all the entry's devices; of the host where the node has none."""
    if entry.row.capacities.devices and entry.id.device == WHOLE_NODE:
        return None if entry.vitals.memory is None else entry.vitals.memory_used_bytes
    sample, device = entry.sample, entry.id.device
    if device != WHOLE_NODE and device >= len(sample.devices):
        return None
    used: float | None = reported(sample.host if device == WHOLE_NODE else sample.devices[device], "memory_used_bytes")
    return used


def cpu_percent(entry: Entry) -> float | None:
    """Of the host, also where the entry is one of its devices."""
    percent: float | None = reported(entry.sample.host, "cpu_percent")
    return percent


# By the word that a filter says; where one has several, the unit tells which is meant.
QUANTITIES: dict[str, tuple[Quantity, ...]] = {
    **{metric.word: (Quantity(metric.units, metric.of),) for metric in METRICS},
    "age": (Quantity(DURATIONS, lambda entry: entry.heartbeat_age_seconds),),
    "cpu": (Quantity({"": 1, "%": 1}, cpu_percent),),
    "gpu": (Quantity({"": 1}, lambda entry: len(entry.row.capacities.devices)),),
    "failed": (Quantity({"": 1}, lambda entry: entry.vitals.errors),),
    "sample": (Quantity(DURATIONS, sample_age_seconds),),
}
QUANTITIES["mem"] += (Quantity(BYTE_UNITS, memory_used_bytes),)
ENDINGS = {"cpu": ("",), "gpu": ("", "s")}  # letters that may follow the word; any where it is not here. `cpus` are no percentage
UNITS = sorted({unit for quantities in QUANTITIES.values() for quantity in quantities for unit in quantity.units if unit}, key=len)

FIELDS: dict[str, Callable[[Entry], Iterable[str]]] = {
    "user": lambda entry: (process.user for process in entry.processes),
    "process": lambda entry: (process.name for process in entry.processes),
    "version": lambda entry: (entry.info.agent_version,),
    "token": lambda entry: (entry.row.token_id,),
}


def searched_text(entry: Entry) -> str:
    """What a word of a filter is looked for in."""
    info, row = entry.info, entry.row
    return " ".join((row.node_id, info.hostname, row.address, info.host.model, *(device.name for device in entry.devices))).lower()


# ---- How it is read ----

SIGN, NUMBER = "|".join(COMPARE), r"-?\d+(?:\.\d+)?"
COMPARISON = re.compile(rf"({'|'.join(QUANTITIES)})([a-z]*?)({SIGN})({NUMBER})([^\d.-]*)", re.ASCII)
BEFORE_SIGN, AFTER_SIGN = re.compile(rf"(?<=[a-z])\s+(?={SIGN})"), re.compile(rf"(?<=[a-z])({SIGN})\s+(?=-?\d)")
BEFORE_UNIT = re.compile(rf"((?:{SIGN}){NUMBER})\s+(?=(?:{'|'.join(map(re.escape, UNITS))})(?:[\s|]|$))")
AROUND_BAR = re.compile(r"\s*\|\s*")
TERM = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')


def parse_terms(text: str, parse: Callable[[str], Test[T] | None]) -> tuple[list[Test[T]], list[str]]:
    """What must hold, all of it, where `parse` reads one plain term; and the terms that can't be read.

    These restrict nothing, and the screen says so: one may only be half typed.
    """
    text = BEFORE_UNIT.sub(r"\1", AFTER_SIGN.sub(r"\1", BEFORE_SIGN.sub("", AROUND_BAR.sub("|", text.lower()))))
    tests = {term: parse_term(term, parse) for term in TERM.findall(text)}
    return [test for test in tests.values() if test], [term for term, test in tests.items() if not test]


def parse_term(term: str, parse: Callable[[str], Test[T] | None]) -> Test[T] | None:
    """One term: `-` or `!` before it turns it round, `|` in it parts what it may be. None: it can't be read."""
    if term[0] in "-!":
        test = parse_term(term[1:], parse) if len(term) > 1 else None
        return negated(test) if test else None
    tests = [parse(part) for part in term.replace('"', "").split("|") if part]
    known = [test for test in tests if test]
    if not known or len(known) < len(tests):
        return None
    return known[0] if len(known) == 1 else lambda subject: any(test(subject) for test in known)


def negated(test: Test[T]) -> Test[T]:
    """Holds where `test` does not."""
    return lambda subject: not test(subject)


def parse_filter(text: str) -> tuple[list[Test[Entry]], list[str]]:
    """The tests of an entry, and what can't be read."""
    return parse_terms(text, parse_plain)


def parse_plain(term: str) -> Test[Entry] | None:
    """A word, a comparison, or a name with a colon. None: one of these that can't be read."""
    if match := COMPARISON.fullmatch(term):
        return parse_comparison(*match.groups())
    name, colon, wanted = term.partition(":")
    if colon and name and "state".startswith(name):
        states = values_of(wanted, {state.value.lower(): state for state in State})
        return (lambda entry: entry.state in states) if states else None
    if colon and (field := next((field for field in FIELDS if name and field.startswith(name)), None)):
        values, parts = FIELDS[field], parts_of(wanted)
        return (lambda entry: any(part in value.lower() for value in values(entry) for part in parts)) if parts else None
    if set("<>=") & set(term) or (colon and name.isalpha() and not wanted.startswith(":")):
        return None
    return lambda entry: term in searched_text(entry)


def parts_of(wanted: str) -> list[str]:
    """What stands between commas."""
    return [part for part in wanted.split(",") if part]


def values_of(wanted: str, known: Mapping[str, T]) -> list[T]:
    """Those of a few values that are asked for, by the beginnings of their names; none where one of these names nothing."""
    parts = parts_of(wanted)
    if not all(any(name.startswith(part) for name in known) for part in parts):
        return []
    return [value for name, value in known.items() if name.startswith(tuple(parts))]


def parse_comparison(word: str, more: str, sign: str, number: str, unit: str) -> Test[Entry] | None:
    """`util<10`, in its parts. None: no such unit, or no such word. What is not reported is neither more nor less than anything."""
    quantity = next((quantity for quantity in QUANTITIES[word] if unit in quantity.units), None)
    if not quantity or more not in ENDINGS.get(word, (more,)):
        return None
    compare, limit = COMPARE[sign], float(number) * quantity.units[unit]

    def compared(entry: Entry) -> bool:
        value = quantity.value(entry)
        return value is not None and compare(value, limit)

    return compared
