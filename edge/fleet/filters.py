"""The language of `/`: words, names with a colon and comparisons, all of which must hold.

h200 rack07         words: both must stand in id, hostname, device or address; "two words" are one in quotes
h200|a100           either; each side may be any term
-h200 !state:lost   not
state:lost,late     one of these; also user:, process:, version:, token:; the beginning of such a name is enough
version<0.2         of the agent, compared by its numbers; one that does not say it is neither older nor newer
util < 10           a comparison; what is not reported is neither more nor less than anything
util<5 for 30m      of a node all this time, to the minute; one that is not online, or was not observed throughout, does not match
rack=a3 team:ml     a label: its value, and a part of it; also user=ada and so on
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from edge.fleet.entry import Entry
from edge.fleet.extremes import MAX_MINUTES, MINUTE_SECONDS, read
from edge.fleet.metrics import METRICS
from edge.fleet.row import State
from edge.history import WHOLE_NODE
from edge.program import version_numbers
from edge.protocol import reported
from edge.text import show_seconds

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
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
ENERGY_UNITS = {"": 3.6e6, "j": 1.0, "wh": 3600, "kwh": 3.6e6, "mwh": 3.6e9}  # in joules


def sample_age_seconds(entry: Entry) -> float | None:
    """Of the newest readings: more than the heartbeat's age where the sensors hang."""
    return None if entry.row.sample_at is None else entry.now - entry.row.sample_at


def memory_used_bytes(entry: Entry) -> float | None:
    """Of all the entry's devices; of the host where the node has none."""
    if entry.id.device == WHOLE_NODE:
        return None if entry.vitals.memory is None else entry.vitals.memory_used_bytes
    device = entry.sample.devices[entry.id.device : entry.id.device + 1]
    used: float | None = reported(device[0], "memory_used_bytes") if device else None
    return used


# By the word that a filter says; where one has several, the unit tells which is meant.
QUANTITIES: dict[str, tuple[Quantity, ...]] = {
    **{metric.word: (Quantity(metric.units, metric.of),) for metric in METRICS},
    "age": (Quantity(DURATIONS, lambda entry: entry.heartbeat_age_seconds),),
    "cpu": (Quantity({"": 1, "%": 1}, lambda entry: entry.row.vitals.cpu_percent),),  # of the host, also for one of its devices
    "energy": (Quantity(ENERGY_UNITS, lambda entry: entry.row.vitals.energy_joules),),  # of the node, the same
    "gpu": (Quantity({"": 1}, lambda entry: len(entry.row.capacities.devices)),),
    "failed": (Quantity({"": 1}, lambda entry: entry.vitals.errors),),
    "sample": (Quantity(DURATIONS, sample_age_seconds),),
}
QUANTITIES["mem"] += (Quantity(BYTE_UNITS, memory_used_bytes),)
ENDINGS = {"cpu": ("",), "gpu": ("", "s")}  # letters that may follow the word; any where it is not here. `cpus` are no percentage
HISTORIES = {metric.word: metric.history for metric in METRICS if metric.history is not None}  # what `for` may be asked of
MOST_SECONDS = MAX_MINUTES * MINUTE_SECONDS  # that it may be
UNITS = sorted({unit for quantities in QUANTITIES.values() for quantity in quantities for unit in quantity.units if unit}, key=len)

FIELDS: dict[str, Callable[[Entry], Iterable[str]]] = {
    "user": lambda entry: (process.user for process in entry.processes),
    "process": lambda entry: (process.name for process in entry.processes),
    "version": lambda entry: (entry.info.agent_version, ".".join(map(str, entry.row.version))),  # 0.2 of 0.2.0
    "token": lambda entry: (entry.row.token_id,),
}


PROCESS_FIELDS = ("user", "process")  # those that what runs on a node is read for


# ---- How it is read ----

SIGN, NUMBER = "|".join(COMPARE), r"-?\d+(?:\.\d+)?"
FOR = rf"for({NUMBER})([smhd])"
COMPARISON = re.compile(rf"({'|'.join(QUANTITIES)})([a-z]*?)({SIGN})({NUMBER})([^\d.-]*?)(?:{FOR})?", re.ASCII)
VERSION = re.compile(r"version(<=|>=|!=|==|<|>)(\d[\d.]*)", re.ASCII)
NAMED_VALUE = re.compile(r"([^=:]+)([=:])(.+)")
BEFORE_SIGN, AFTER_SIGN = re.compile(rf"(?<=[a-z])\s+(?={SIGN})"), re.compile(rf"(?<=[a-z])({SIGN})\s+(?=-?\d)")
BEFORE_UNIT = re.compile(rf"((?:{SIGN}){NUMBER})\s+(?=(?:{'|'.join(map(re.escape, UNITS))})(?:[\s|]|$))")
# Also where it is half typed: then it is no word that is looked for.
BEFORE_FOR = re.compile(rf"((?:{SIGN}){NUMBER}[^\s\d|]*)\s+for(?:\s*({NUMBER}))?(?:\s*([a-z]+))?(?=[\s|]|$)")
SQUEEZED_FOR = re.compile(rf"((?:{SIGN}){NUMBER}[^\s\d|]*?)for({NUMBER}|$)")
AROUND_BAR = re.compile(r"\s*\|\s*")
TERM = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')


def parse_terms(text: str, parse: Callable[[str], Test[T] | None]) -> tuple[list[Test[T]], list[str]]:
    """What must hold, all of it, where `parse` reads one plain term; and the terms that can't be read.

    These restrict nothing, and the screen says so: one may only be half typed.
    """
    text = BEFORE_UNIT.sub(r"\1", AFTER_SIGN.sub(r"\1", BEFORE_SIGN.sub("", AROUND_BAR.sub("|", text.lower()))))
    text = BEFORE_FOR.sub(lambda match: f"{match[1]}for{match[2] or ''}{match[3] or ''}", text)
    tests = {term: parse_term(term, parse) for term in TERM.findall(text)}
    return [test for test in tests.values() if test], [told(term) for term, test in tests.items() if not test]


def told(term: str) -> str:
    """A term that can't be read, as people write it; and what `for` may be asked of, where only that is the matter."""
    match, why = COMPARISON.fullmatch(term.lstrip("-!")), ""
    if match and match[6] and match[1] not in HISTORIES:
        why = f" (for works with {', '.join(HISTORIES)})"
    elif match and match[6] and float(match[6]) * DURATIONS[match[7]] > MOST_SECONDS:
        why = f" (for goes back {show_seconds(MOST_SECONDS)} at most)"
    return SQUEEZED_FOR.sub(r"\1 for \2", term).rstrip() + why


def parse_term(term: str, parse: Callable[[str], Test[T] | None]) -> Test[T] | None:
    """One term: `-` or `!` before it turns it round, `|` in it parts what it may be. None: it can't be read."""
    if signs := len(term) - len(plain := term.lstrip("-!")):
        test = parse_term(plain, parse) if plain else None
        return negated(test) if test and signs % 2 else test
    tests = [parse(part) for part in term.replace('"', "").split("|") if part]
    known = [test for test in tests if test]
    if not known or len(known) < len(tests):
        return None
    return known[0] if len(known) == 1 else lambda subject: any(test(subject) for test in known)


def negated(test: Test[T]) -> Test[T]:
    """Holds where `test` does not."""
    return lambda subject: not test(subject)


def parse_filter(text: str, labels: Collection[str] = ()) -> tuple[list[Test[Entry]], list[str]]:
    """The tests of an entry, and what can't be read. `labels`: the names of those that there are, in lower case."""
    return parse_terms(text, lambda term: parse_plain(term, labels))


def parse_plain(term: str, labels: Collection[str]) -> Test[Entry] | None:
    """A word, a comparison, or a name with its value. None: one of these that can't be read."""
    if match := COMPARISON.fullmatch(term):
        return parse_comparison(*match.groups())
    if match := VERSION.fullmatch(term):
        return parse_version(*match.groups())
    name, sign, wanted = match.groups() if (match := NAMED_VALUE.fullmatch(term)) else (term.partition(":")[0], "", "")
    if sign and (name == "state" or ("state".startswith(name) and name not in labels)):
        states = values_of(wanted, {state.value.lower(): state for state in State})
        return (lambda entry: entry.state in states) if states else None
    field = next((field for field in FIELDS if field.startswith(name)), None)
    parts = parts_of(wanted)
    if sign and parts and (field or name in labels):
        ways: list[Callable[[Entry], Iterable[str]]] = [functools.partial(label_values, name=name)] if name in labels else []
        if field and (name in FIELDS or not ways):  # by its whole name, no label of any box can take its place
            ways.append(FIELDS[field])
        values = functools.partial(values_by, ways)
        if sign == "=":
            return lambda entry: any(value.lower() in parts for value in values(entry))
        return lambda entry: any(part in value.lower() for value in values(entry) for part in parts)
    is_named = ":" in term and name.isalpha() and not wanted.startswith(":")
    if set("<>=") & set(term) or is_named:
        return None
    return lambda entry: term in entry.searched_text


def asks_for_processes(text: str) -> bool:
    """Whether a filter asks for what runs on the nodes."""
    parts = (part.lstrip("-!") for part in re.split(r"[\s|]+", text.lower()))
    names = (match[1] for part in parts if (match := NAMED_VALUE.fullmatch(part)))
    return any(field.startswith(name) for name in names for field in PROCESS_FIELDS)


def asks_for_a_while(text: str) -> bool:
    """Whether a filter asks what has held for some time."""
    return bool(BEFORE_FOR.search(text.lower()))


def label_values(entry: Entry, name: str) -> Iterable[str]:
    """What the box's owner says of it under this name."""
    return (value for label, value in entry.row.labels if label.lower() == name)


def values_by(ways: Iterable[Callable[[Entry], Iterable[str]]], entry: Entry) -> Iterable[str]:
    """What an entry has, in each of these ways."""
    return itertools.chain.from_iterable(way(entry) for way in ways)


def parts_of(wanted: str) -> list[str]:
    """What stands between commas."""
    return [part for part in wanted.split(",") if part]


def values_of(wanted: str, known: Mapping[str, T]) -> list[T]:
    """Those of a few values that are asked for, by the beginnings of their names; none where one of these names nothing."""
    parts = parts_of(wanted)
    if not all(any(name.startswith(part) for name in known) for part in parts):
        return []
    return [value for name, value in known.items() if name.startswith(tuple(parts))]


def parse_version(sign: str, number: str) -> Test[Entry] | None:
    """`version<0.2`, in its parts. None: no such version."""
    compare, wanted = COMPARE[sign], version_numbers(number)
    return (lambda entry: entry.row.version != () and compare(entry.row.version, wanted)) if wanted else None


def parse_comparison(
    word: str, more: str, sign: str, number: str, unit: str, duration: str | None, duration_unit: str
) -> Test[Entry] | None:
    """`util<10`, in its parts. None: no such unit, or no such word. What is not reported is neither more nor less than anything."""
    quantity = next((quantity for quantity in QUANTITIES[word] if unit in quantity.units), None)
    if not quantity or more not in ENDINGS.get(word, (more,)):
        return None
    compare, limit = COMPARE[sign], float(number) * quantity.units[unit]

    def compared(entry: Entry) -> bool:
        value = quantity.value(entry)
        return value is not None and compare(value, limit)

    if duration is None:
        return compared
    column, seconds = HISTORIES.get(word), float(duration) * DURATIONS[duration_unit]
    if column is None or quantity is not QUANTITIES[word][0] or compare is operator.ne or not 0 < seconds <= MOST_SECONDS:
        return None

    def compared_for(entry: Entry) -> bool:
        if entry.is_stale or not compared(entry):
            return False
        seen = read(entry.row.extremes)[1][column].within(seconds)
        return seen is not None and all(compare(value, limit) for value in seen)

    return compared_for
