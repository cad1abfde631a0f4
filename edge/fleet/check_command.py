"""`server.pyz --check [FILTER]`: is the fleet well? One line and an exit code, as monitoring plugins give them.

EDGE CRITICAL - 2 of 12 nodes match state:lost: Node-7, Node-9; 10 online | matching=2;;0;0;12 online=10;;;0;12 late=0;;;0;12 …
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from edge import limits
from edge.command_line import Options
from edge.fleet.attach import UNHEARD_SECONDS, Attached, Link, attach
from edge.fleet.columns import natural_id
from edge.fleet.entry import Entry, EntryId, make_entries
from edge.fleet.filters import FIELDS, asks_for_processes, parse_filter
from edge.fleet.lens import Totals, count_totals
from edge.fleet.options import parse_options
from edge.fleet.row import Row, State
from edge.fleet.source import Wants
from edge.program import FAILED, Failure, is_packed, main_of, put
from edge.terminal import Inputs
from edge.text import visible

FILTER = "state:lost"  # where none is given
PATIENCE_SECONDS = 8.0  # with all servers, from the start
LOOK_SECONDS = 0.02
NAMES = 5  # of nodes that are told
MAX_TEXT = 800  # characters of what is told, beside the performance data; some monitors read no more than 1,024


class Level(NamedTuple):
    """What a monitor makes of it."""

    word: str
    code: int


OK, WARNING, CRITICAL, UNKNOWN = Level("OK", 0), Level("WARNING", 1), Level("CRITICAL", 2), Level("UNKNOWN", 3)
# From the Monitoring Plugins' guidelines: 'label'=value[UOM];warn;crit;min;max, and what is not known left out.


class Answer(NamedTuple):
    """What is said."""

    level: Level
    text: str
    figures: str = ""

    def line(self) -> str:
        """One line, whatever names and errors there are in it: what stands behind a | is read as figures."""
        text = visible(" ".join(self.text.split()), MAX_TEXT + 1).replace("|", "¦")
        short = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
        return f"EDGE {self.level.word} - {short}" + f" | {self.figures}" * bool(self.figures)


class CheckOptions(Options):
    """The command line with --check: what is wrong with it is an answer, too."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if status:
            *words, _try_help = (message or "").removeprefix(f"{self.prog}: ").splitlines()
            put(Answer(UNKNOWN, " ".join(words)).line())
        sys.exit(UNKNOWN.code if status else 0)


def main(argv: Sequence[str]) -> int:
    """Run the check; return its exit code: 0, 1, 2, 3."""
    answers: list[Answer] = []
    code = main_of("server", parse, functools.partial(run, answers), argv)
    return code if answers or code != FAILED else UNKNOWN.code  # 1 would be a warning


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 3 when it can't be understood."""
    options = parse_options(argv, CheckOptions)
    if lacking := limits.lacking():
        put(Answer(UNKNOWN, lacking).line())
        sys.exit(UNKNOWN.code)
    return options


def run(answers: list[Answer], options: argparse.Namespace) -> int:
    """Ask, and tell, whatever hangs: a disk, say. `answers`: what was told."""
    logging.getLogger().addHandler(logging.NullHandler())
    patience = threading.Timer(PATIENCE_SECONDS + 1, give_up, [answers])
    patience.daemon = True
    try:
        patience.start()
        check(options, answers)
    except Failure as failure:
        tell(Answer(UNKNOWN, str(failure)), answers)
    except Exception as error:
        if isinstance(error, (ImportError, SyntaxError)) and not isinstance(error, ModuleNotFoundError) and is_packed():
            raise  # a .pyz mends its libraries
        if options.debug:
            traceback.print_exc()
        reason = limits.reached(error) or f"{type(error).__name__} (see --debug, and please report it): {error}"
        tell(Answer(UNKNOWN, reason), answers)
    patience.cancel()
    return answers[0].level.code


def tell(answer: Answer, answers: list[Answer]) -> None:
    """Once. Raises Failure, OutputClosed."""
    put(answer.line())
    answers.append(answer)


def give_up(answers: list[Answer]) -> None:
    """End this process, since what it waits for does not end."""
    try:
        if not answers:
            tell(Answer(UNKNOWN, f"this machine gave no answer within {PATIENCE_SECONDS + 1:g} s"), answers)
    finally:  # also where nobody can be told
        os._exit(answers[0].level.code if answers else UNKNOWN.code)


def check(options: argparse.Namespace, answers: list[Answer]) -> None:
    """Look at all servers until each has told its fleet, and tell what they make of the filter. Raises Failure."""
    started, text = time.monotonic(), options.check.strip() or FILTER
    options.headless, options.record = True, None  # nobody is asked for a token, and no more is fetched than the filter needs
    options.attach = options.attach or []  # this machine's own
    with Inputs(keyboard=False) as inputs, attach(options) as attached:
        attached.want(Wants(processes=asks_for_processes(text)))
        waiting = [Waiting(link, asks_for_processes(text)) for link in attached.links]
        while not inputs.received and time.monotonic() - started < PATIENCE_SECONDS and not all(one.is_over() for one in waiting):
            inputs.wait(LOOK_SECONDS)
        if inputs.received:
            raise Failure(f"stopped by {signal.Signals(inputs.received).name}")
        if attached.failure:
            raise attached.failure
        silent = [why for one in waiting if (why := one.why_silent())]
        if len(silent) < len(waiting):
            answer = judge(attached, text, options.warning, options.critical, silent)
        else:
            answer = Answer(UNKNOWN, "; ".join(silent))
        tell(answer, answers)  # before it goes, which takes its time


class Waiting:
    """For one server's fleet."""

    def __init__(self, link: Link, with_processes: bool) -> None:
        self._link = link
        self._with_processes = with_processes
        self._first = 0  # the version that the fleet came with
        self._reason = ""  # why it could not be asked

    def is_known(self) -> bool:
        """Whether all is there that was asked for: what runs on the nodes comes behind the fleet, and before its next version."""
        mirror = self._link.mirror
        if not mirror.is_known or mirror.clock() - mirror.heard_at > UNHEARD_SECONDS:
            return False
        self._first = self._first or mirror.version
        return not self._with_processes or mirror.version > self._first

    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        self._reason = self._link.reason or self._reason  # it is tried again meanwhile
        return self.is_known() or bool(self._reason)

    def why_silent(self) -> str:
        """Why it has told no fleet; empty: it has."""
        if self.is_known():
            return ""
        name = self._link.name
        return f"{name}: {self._reason.removeprefix(name).lstrip(': ') or f'no answer within {PATIENCE_SECONDS:g} s'}"


def judge(attached: Attached, text: str, warning: int | None, critical: int | None, silent: Sequence[str]) -> Answer:
    """What the fleet, as far as it has told, makes of the filter. `silent`: why some servers have not.

    Raises Failure where the filter can't be read.
    """
    rows, now = attached.snapshot(), attached.clock()
    tests, not_understood = parse_filter(text, {name.lower() for row in rows for name, _ in row.labels})
    if not_understood:
        raise Failure(f"not understood: {' '.join(not_understood)}" + why_not_understood(not_understood))
    entries = make_entries(((EntryId(row.node_id), row) for row in rows), now)
    matching = [entry for entry in entries if all(test(entry) for test in tests)]
    if warning is None and critical is None:
        critical = 0
    level = OK
    if critical is not None and len(matching) > critical:
        level = CRITICAL
    elif silent or not rows:  # it may have lost its fleet, or no node finds it
        level = UNKNOWN
    elif warning is not None and len(matching) > warning:
        level = WARNING
    totals = count_totals(rows, now)
    said = in_words(matching, text, rows, totals, now)
    if silent:  # sums of a part of the fleet would be taken for all of it
        return Answer(level, f"{'; '.join(silent)}; elsewhere {said}" if level is UNKNOWN else f"{said}; {'; '.join(silent)}")
    return Answer(level, said, figures(len(matching), warning, critical, len(rows), totals))


def why_not_understood(terms: Sequence[str]) -> str:
    """Of a label, that none is called so."""
    names = [match[1] for term in terms if (match := re.fullmatch(r"[-!]?([a-z0-9_.-]+)[=:][^|]+", term))]
    unknown = [name for name in names if not any(field.startswith(name) for field in ("state", *FIELDS))]
    return f" (no node has a label {unknown[0]})" if unknown else ""


def in_words(matching: Sequence[Entry], text: str, rows: Sequence[Row], totals: Totals, now: float) -> str:
    """How many match, some of their names, and how many are online."""
    known, online = len(rows), totals.states[State.ONLINE]
    if not known:
        return "0 of 0 nodes: no node has reported to this server yet"
    parts = [f"{online} of {known} nodes online"]
    if matching:
        names = sorted((entry.id.node_id for entry in matching), key=natural_id)
        more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
        verb = "matches" if len(names) == 1 else "match"
        parts = [f"{len(names)} of {known} nodes {verb} {visible(text, 100)}: {', '.join(names[:NAMES])}{more}", f"{online} online"]
    elif text != FILTER:
        parts.append(f"none matches {visible(text, 100)}")
    if awaited := sum(row.session is None and now < row.awaited_until for row in rows):
        parts.append(f"{awaited} not back yet after the server's restart")
    return "; ".join(parts)


def figures(matching: int, warning: int | None, critical: int | None, known: int, totals: Totals) -> str:
    """The performance data: what is matched, the states, and the sums of what is online. What is not reported is not there."""
    thresholds = ";".join("" if one is None else str(one) for one in (warning, critical))
    hottest = totals.hottest and totals.hottest.vitals.celsius
    sums = (
        ("utilization", None if totals.utilization is None else 100 * totals.utilization, "%;;;0;100"),
        ("memory", totals.memory_used_bytes if totals.memory_total_bytes else None, f"B;;;0;{totals.memory_total_bytes}"),
        ("power", None if totals.milliwatts is None else totals.milliwatts / 1000, "W;;;0"),
        ("hottest", hottest, "C"),
    )
    return " ".join([
        f"matching={matching};{thresholds};0;{known}",
        *(f"{state.value.lower()}={count};;;0;{known}" for state, count in totals.states.items()),
        f"gpus={totals.gpus};;;0",
        *(f"{label}={value:.0f}{rest}" for label, value, rest in sums if value is not None),
    ])  # fmt: skip
