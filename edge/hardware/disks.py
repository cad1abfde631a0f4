"""The disks of a box that are written to, and how full the fullest is."""

from __future__ import annotations

import re
import shutil
from typing import NamedTuple

from edge.hardware.base import Readings

BOOT = re.compile(r"/(boot|efi)(/|$)")  # of a fixed size, and filled by kernels alone


class Usage(NamedTuple):
    """A file system's size and use, in bytes."""

    total: int
    used: int


class Disks(NamedTuple):
    """The fullest of those that answer, and of the others a notice each."""

    fullest: Usage | None
    notices: list[str]


def mounted_disks(mountinfo: str) -> list[str]:
    """Where the disks that are written to are mounted, each once, by the text of /proc/self/mountinfo (proc(5)).

    Left out: what is mounted read-only alone (images are always full), what has no disk (memory, the kernel's own), and what is
    elsewhere or behind a program (NFS, FUSE: they may hang, and are not this box's).
    """
    mounts = {}  # by place: what was mounted over another hides it
    for line in filter(None, mountinfo.splitlines()):
        before, _, after = line.partition(" - ")
        place, options = before.split()[4:6]
        kind, source, super_options = (*after.split(), "")[:3]
        mounts[re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place)] = kind, source, f"{options},{super_options}"
    disks: dict[str, str] = {}
    for place, (kind, source, all_options) in mounts.items():
        is_disk = source.startswith("/dev/") and (kind == "fuseblk" or not kind.startswith("fuse"))
        if (is_disk or kind in ("zfs", "ubifs")) and "ro" not in all_options.split(",") and not BOOT.match(place):
            disks.setdefault(source, place)  # bind mounts, and subvolumes, are the same disk
    return list(disks.values())


def is_read_only(mountinfo: str, place: str) -> bool:
    """Whether what is mounted there can't be written to."""
    options = [line.split()[5] for line in mountinfo.splitlines() if f" {place} " in line and line.split()[4] == place]
    return bool(options) and "ro" in options[-1].split(",")


def read_disks(mountinfo: str) -> Disks:
    """Of the disks that are written to; of "/" where there is none (a container's overlay, a box without a disk, no Linux).

    Raises OSError where there is nothing to ask. May hang where a disk does.
    """
    places = mounted_disks(mountinfo)
    if not places and not is_read_only(mountinfo, "/"):
        places = ["/"]
    if not places:
        raise OSError("none is written to")
    readings = Readings()
    usages = [readings.take(f"disk {place}", usage_of, place) for place in places]
    known = [usage for usage in usages if usage and usage.total]
    return Disks(max(known, key=lambda usage: usage.used / usage.total, default=None), readings.notices())


def usage_of(place: str) -> Usage:
    """Of the file system at a place. Raises OSError; ValueError where what it says can't be."""
    usage = Usage(*shutil.disk_usage(place)[:2])
    if not 0 <= usage.used <= usage.total:
        raise ValueError(f"{usage.used} of {usage.total} bytes are used")
    return usage
