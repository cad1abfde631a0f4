"""The section start: the packed programs beside the same scripts in a plain virtual environment."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from bench.figures import Figure, say
from bench.processes import ROOT


def start(_options: argparse.Namespace) -> Iterator[Figure]:
    """The packed programs against the same scripts in a plain virtual environment: interleaved, median."""
    dist = ROOT / "dist"
    if not (dist / "server.pyz").exists():
        say("start: packing")
        subprocess.run([sys.executable, "build.py"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = getattr(sys, "_base_executable", sys.executable)
    for name in ("server", "node"):
        say(f"start: {name}.pyz")
        packed, plain = dist / f"{name}.pyz", ROOT / f"{name}.py"
        with tempfile.TemporaryDirectory() as cache:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"EDGE_CACHE": cache}
            cold = statistics.median(cold_start(base, packed, environment) for _ in range(3))
            warms, plains = [], []
            for _ in range(15):
                warms.append(run_seconds([base, packed, "--version"], environment))
                plains.append(run_seconds([sys.executable, plain, "--version"], environment))
            update = statistics.median(start_new_version(base, packed, environment) for _ in range(5))
        warm, venv = statistics.median(warms), statistics.median(plains)
        yield Figure("start", f"{name}.pyz: size", packed.stat().st_size / 1e6, "MB")
        yield Figure("start", f"{name}.pyz: warm", 1000 * warm, "ms", note=f"plain virtual environment {1000 * venv:.0f} ms")
        yield Figure("start", f"{name}.pyz: warm, of the plain environment's", warm / venv, "x", 1.05)
        yield Figure("start", f"{name}.pyz: cold, beyond warm", cold - warm, "s", 1.0)
        yield Figure("start", f"{name}.pyz: a new version of it, of warm", update / warm, "x", 2.0)


def cold_start(python: str, packed: pathlib.Path, environment: dict[str, str]) -> float:
    """A first start on a box."""
    shutil.rmtree(pathlib.Path(environment["EDGE_CACHE"], "edge-compute-node"), ignore_errors=True)
    return run_seconds([python, packed, "--version"], environment)


def start_new_version(python: str, packed: pathlib.Path, environment: dict[str, str]) -> float:
    """A first start where another version has left the libraries."""
    for program in pathlib.Path(environment["EDGE_CACHE"], "edge-compute-node").glob(f"{packed.stem}-*"):
        shutil.rmtree(program)
    return run_seconds([python, packed, "--version"], environment)


def run_seconds(command: Sequence[str | pathlib.Path], environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    return time.monotonic() - started
