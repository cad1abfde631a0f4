"""What the system lets a process have. gRPC aborts, without a word, where it gets no file or thread: so we ask first."""

from __future__ import annotations

import errno
import os
import threading

MIN_OPEN_FILES = 32  # that both programs start with; the server has 20 open before the first node comes
# gRPC starts a thread for each processor, 4 to 16, and a few more; the rest are our own.
MIN_THREADS = min(max(os.cpu_count() or 1, 4), 16) + 8
NO_FILES = (errno.EMFILE, errno.ENFILE)


def allow_open_files(wanted: int) -> int:
    """Raise the soft limit on open files, as far as the hard one lets us. Returns how many are allowed, `wanted` at most."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return allowed
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # macOS allows less than its hard limit says
        return soft
    return allowed


def may_start_threads(count: int) -> bool:
    """Try it: what bounds them is the user's, the control group's or memory, and no one place tells of all. Takes a ms or two."""
    gate, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(count):  # all are there at once
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        gate.set()
        for thread in started:
            thread.join()  # one that is still there when Python ends, as it may here at once, may crash it
    return True


def lacking() -> str:
    """What there is too little of to start, in a sentence that names the limit; an empty string if there is enough."""
    if (allowed := allow_open_files(MIN_OPEN_FILES)) < MIN_OPEN_FILES:
        few = f"only {allowed} files may be open here, and {MIN_OPEN_FILES} are needed"
        return f"{few}: raise what limits them (ulimit -n, a service's LimitNOFILE)"
    return "" if may_start_threads(MIN_THREADS) else too_few_threads()


def too_few_threads() -> str:
    """Which limits there are on threads, and what to do."""
    limits = "ulimit -u, a service's TasksMax, a container's pids limit"
    return f"too few threads may be started here, and {MIN_THREADS} are needed: raise what limits them ({limits})"


def reached(error: Exception) -> str:
    """The sentence for an error that is a limit reached; an empty string for any other."""
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return too_few_threads()
    if isinstance(error, OSError) and error.errno in NO_FILES:
        return "no more files may be open here: raise what limits them (ulimit -n, a service's LimitNOFILE)"
    return ""
