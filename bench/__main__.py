"""The program: the sections in their order, and what they are run with."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from bench.abuse import abuse
from bench.agent import agent
from bench.cadence import cadence
from bench.chaos import chaos
from bench.figures import Failed, Figure, print_table, say, show
from bench.journal import journal
from bench.pages import pages
from bench.processes import CORES, LOAD_CORE, SERVER_CORE, raise_open_files
from bench.restart import restart
from bench.rows import rows
from bench.scale import cost, scale
from bench.secure import secure
from bench.soak import soak
from bench.start import start
from bench.watch import watch

NODES = 10_000
Section = Callable[[argparse.Namespace], Iterator[Figure]]
SECTIONS: dict[str, Section] = {
    section.__name__: section
    for section in (scale, cost, watch, pages, restart, rows, journal, agent, cadence, start, abuse, secure, soak, chaos)
}  # fmt: skip
LONG = ("secure", "soak", "chaos")


def measure_all(options: argparse.Namespace) -> Iterator[Figure]:
    """Each section's figures; one that can't be measured says so, and the next goes on."""
    for name in options.names or [name for name in SECTIONS if name not in LONG]:
        started = time.monotonic()
        try:
            yield from SECTIONS[name](options)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            say(f"{name}: {error}")
            yield Figure(name, "measured", None, "", 0, note=str(error))
        say(f"{name}: done in {time.monotonic() - started:.0f} s")


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    about = "\n".join(f"  {name:9}{section.__doc__}" + "  (only by name)" * (name in LONG) for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="bench", description="What a fleet costs, measured.", epilog=f"sections:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="SECTION", help="which to run (default all but the long ones)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--nodes", type=int, default=NODES, metavar="COUNT", help=f"in the fleet, at least 100 (default {NODES})")
    parser.add_argument("--viewers", type=int, default=10, metavar="COUNT", help="of the section watch, 1 to 14 (default 10)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the section soak (default 30)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    if options.nodes < 100:
        parser.error("--nodes must be at least 100")
    if not 1 <= options.viewers <= 14:
        parser.error("--viewers must be from 1 to 14")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; return 1 when a promise is not held."""
    options = parse_options(argv)
    if SERVER_CORE == LOAD_CORE:
        say("one core only: the generator takes what the server needs, and no figure is to be trusted")
    os.sched_setaffinity(0, {LOAD_CORE})
    raise_open_files()
    figures = []
    for figure in measure_all(options):
        figures.append(figure)
        say(f"  {figure.name}: {show(figure.value)} {figure.unit} {figure.verdict()} {figure.note}".rstrip())
    if options.json:
        lines = [figure._asdict() | {"verdict": figure.verdict()} for figure in figures]
        print(json.dumps({"machine": machine(), "figures": lines}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print_table(figures)
    return int(any(figure.verdict() == "MISSED" for figure in figures))


def machine() -> dict[str, Any]:
    """What all this was measured on."""
    model = next((line.partition(": ")[2] for line in read_lines("/proc/cpuinfo") if line.startswith("model name")), "")
    load = f"{os.getloadavg()[0]:.1f}"
    return {"processor": model, "cores": len(CORES), "python": platform.python_version(), "grpcio": grpc.__version__, "load": load}


def read_lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return []


if __name__ == "__main__":
    sys.exit(main())
