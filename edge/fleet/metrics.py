"""The metrics: everything that the screen knows of a reading stands in one line of METRICS. Here is where another one is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from edge import history
from edge.drawing import Column, heat_style
from edge.fleet.entry import Entry
from edge.fleet.row import Vitals
from edge.history import WHOLE_NODE
from edge.text import fraction, show_celsius, show_percent, show_watts


class Metric(NamedTuple):
    """A reading that nodes are sorted, filtered and coloured by: larger is busier, fuller, hotter, more."""

    name: str  # what the table is sorted by, and the grid coloured by
    column: Column  # its own in the table
    word: str  # what a filter calls it; more letters may follow, so none may begin with another's
    units: Mapping[str, float]  # that may follow a number in a filter, in the unit of `value`
    value: Callable[[Vitals], float | None]
    text: Callable[[Vitals], str]  # the value with its unit, a dash where it is not reported
    style: Callable[[Vitals], str]  # of its meter and sparkline
    meter: Callable[[Vitals], float | None] | None  # in the table, 0 to 1; None: it has no meter
    full: Callable[[Entry], float | None]  # the value that fills a cell of the grid
    full_text: str  # the same in words
    example: str  # of a filter, for the help
    history: int | None  # its column of the history, which its sparkline and a device's value come from; None: it has none
    needs_word: bool = False  # beside its number: the unit does not tell which metric it is
    colours_number: bool = False  # by `style`, as its meter is

    def of(self, entry: Entry) -> float | None:
        """Its value; a device's comes from the newest frame of the history, to the percent: no message is parsed for it."""
        if entry.id.device == WHOLE_NODE or self.history is None:
            return self.value(entry.vitals)
        return history.newest(entry.row.vitals.frame, entry.id.device, self.history)

    def part(self, entry: Entry) -> float | None:
        """How much of a cell of the grid it fills, 0 to 1."""
        return fraction(self.value(entry.vitals), self.full(entry))


def percent(part: float | None) -> float | None:
    """A share as a percentage."""
    return None if part is None else 100 * part


def power_limit_watts(entry: Entry) -> float:
    """What all the entry's devices may draw together; 0 is not known."""
    limits = [device.power_limit_milliwatts for device in entry.devices]
    return sum(limits) / 1000 if all(limits) and not is_partial(entry.vitals) else 0


def is_partial(vitals: Vitals) -> bool:
    """Whether the power is the sum of some devices only."""
    return 0 < vitals.with_power < vitals.devices


def power_text(vitals: Vitals) -> str:
    """At least that much, where some devices do not report it."""
    text = show_watts(vitals.milliwatts)
    return f"≥{text.replace(' ', '')}" if is_partial(vitals) else text


METRICS = (
    Metric(
        "utilization", Column("UTIL", 5, 1, ">"), "util", {"": 1, "%": 1},
        value=lambda vitals: percent(vitals.utilization),
        text=lambda vitals: show_percent(vitals.utilization),
        style=lambda _: "green",
        meter=lambda vitals: vitals.utilization,
        full=lambda _: 100, full_text="100%", example="util<10",
        history=history.UTILIZATION, needs_word=True,
    ),
    Metric(
        "memory", Column("MEM", 5, 3, ">"), "mem", {"": 1, "%": 1},
        value=lambda vitals: percent(vitals.memory),
        text=lambda vitals: show_percent(vitals.memory),
        style=lambda _: "cyan",
        meter=lambda vitals: vitals.memory,
        full=lambda _: 100, full_text="100%", example="mem>90%",
        history=history.MEMORY, needs_word=True,
    ),
    Metric(
        "temperature", Column("TEMP", 6, 1, ">"), "temp", {"": 1, "c": 1, "°c": 1},
        value=lambda vitals: vitals.celsius,
        text=lambda vitals: show_celsius(vitals.celsius, vitals.limit_celsius),
        style=lambda vitals: heat_style(vitals.celsius, vitals.limit_celsius),
        meter=lambda vitals: fraction(vitals.celsius, vitals.limit_celsius or 100),
        full=lambda _: 100, full_text="100°C", example="temp>80",
        history=history.TEMPERATURE, colours_number=True,
    ),
    Metric(
        "power", Column("POWER", 7, 5, ">"), "power", {"": 1, "w": 1, "kw": 1000},
        value=lambda vitals: None if vitals.milliwatts is None else vitals.milliwatts / 1000,
        text=power_text,
        style=lambda _: "",
        meter=None,
        full=power_limit_watts, full_text="100% of its limit", example="power>1.5kW",
        history=None,
    ),
)  # fmt: skip
METRIC_NAMED = {metric.name: metric for metric in METRICS}


def metric_after(name: str) -> str:
    """The next metric's name, round and round."""
    names = list(METRIC_NAMED)
    return names[(names.index(name) + 1) % len(names)]
