"""What the system lets a process have: too little ends both programs with a sentence, before gRPC aborts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from edge import limits
from tests.fixtures.processes import EXECUTE, ROOT, Program, environment

SIMULATED = ("--hardware", "simulated", "--seed", "1", "--headless")
BOTH = pytest.mark.parametrize(
    "program", [("server.py", "--listen", "127.0.0.1:0", "--headless"), ("node.py", *SIMULATED)], ids=["server", "node"]
)


@BOTH
@pytest.mark.parametrize("files", [8, 16, limits.MIN_OPEN_FILES - 1])
def test_too_few_files(program: tuple[str, ...], files: int) -> None:
    done = subprocess.run(
        ["prlimit", f"--nofile={files}", sys.executable, *program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    name = program[0].removesuffix(".py")
    assert done.stderr == (
        f"{name}: only {files} files may be open here, and 32 are needed: "
        "raise what limits them (ulimit -n, a service's LimitNOFILE)\n"
    )
    assert done.returncode == 1
    assert done.stdout == ""


def test_the_least_is_enough_for_both(start: Callable[..., Program]) -> None:
    """And where the soft limit alone is too low, it is raised."""
    server = start(*EXECUTE, "prlimit", "--nofile=32:32", sys.executable, "server.py", "--listen", "127.0.0.1:0", "--headless")
    address = server.line(r"listening on (\S+)")[1]
    node = start(*EXECUTE, "prlimit", "--nofile=16:32", sys.executable, "node.py", "--server", address, *SIMULATED)
    server.line(" joined ")
    assert node.end() == 130
    assert server.end() == 130


def test_too_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.lacking() == ""
    started, start = list[threading.Thread](), threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if len(started) > 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr("threading.Thread.start", start_few)
    assert limits.lacking().startswith("too few threads may be started here, and ")
    assert "ulimit -u" in limits.lacking()
    assert [thread.is_alive() for thread in started] == [False] * 4  # a program that ends at once leaves none behind


def test_a_limit_that_is_reached_later_is_told_as_one() -> None:
    assert limits.reached(RuntimeError("can't start new thread")) == limits.too_few_threads()
    assert limits.reached(OSError(errno.EMFILE, os.strerror(errno.EMFILE))).startswith("no more files may be open here: ")
    assert limits.reached(OSError(errno.ENOENT, "")) == limits.reached(RuntimeError("else")) == ""
