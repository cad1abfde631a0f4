"""What the devices have used since the agent started."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.protocol import reported

MAX_MILLIWATTS = 10**7  # of a device: a counter that runs faster has jumped


class Meter(NamedTuple):
    """A device as it was read."""

    at: float = 0.0  # when its counter was read, in seconds
    millijoules: int | None = None  # that the counter said; of a device that does not answer, what it said last
    milliwatts: int | None = None
    estimated: float = 0.0  # millijoules that were added by its power since


class Energy:
    """Adds up what devices use: by a device's own counter; where it has none, by the mean of its power at both samples."""

    def __init__(self) -> None:
        self._meters: list[Meter] = []
        self._at = 0.0  # of the sample before
        self._millijoules: float | None = None

    def add(self, now: float, devices: Sequence[pb.DeviceSample], counters: Sequence[int | None]) -> int | None:
        """One more sample, at `now` in seconds, with the devices' own counters in millijoules. Returns joules of all devices since
        the first sample; None while none has said anything of its power."""
        before = self._meters if len(self._meters) == len(devices) else [Meter()] * len(devices)
        seconds, self._at, self._meters = now - self._at, now, []
        for last, device, counter in zip(before, devices, itertools.chain(counters, itertools.repeat(None)), strict=False):
            milliwatts = reported(device, "power_milliwatts")
            used = 0.0
            counted = -1 if counter is None or last.millijoules is None else counter - last.millijoules
            if 0 <= counted <= MAX_MILLIWATTS * (now - last.at):
                used = max(counted - last.estimated, 0.0)  # it has counted these, too
            elif milliwatts is not None and last.milliwatts is not None:
                used = (milliwatts + last.milliwatts) / 2 * seconds
            if milliwatts is not None or counter is not None:
                self._millijoules = (self._millijoules or 0) + used
            if counter is None:
                self._meters.append(last._replace(milliwatts=milliwatts, estimated=last.estimated + used))
            else:
                self._meters.append(Meter(now, counter, milliwatts))
        return None if self._millijoules is None else int(self._millijoules / 1000)
