"""The history of a node: its last readings, a byte each, as one string of frames.

A frame is one sample: three bytes for the node itself, then three for each of its devices, in the order of COLUMNS. All frames of a
history have one length: it starts anew when the number of devices changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

SAMPLES = 120  # two minutes at the usual cadence
NOT_REPORTED = 255
COLUMNS = UTILIZATION, MEMORY, TEMPERATURE = range(3)  # in percent, in percent, in °C
WHOLE_NODE = -1  # in the place of a device: the node itself


class Bytes(dict[float | None, int]):
    """A reading as a byte: a whole number is looked up, since most are; else it is rounded half up, from 0 to 254."""

    def __missing__(self, value: float) -> int:
        if math.isnan(value):
            return NOT_REPORTED
        return 0 if value < 0 else int(value + 0.5) if value < 254 else 254


BYTES = Bytes((value, value) for value in range(NOT_REPORTED))
BYTES[None] = NOT_REPORTED


def encode(readings: Iterable[float | None]) -> bytes:
    """Readings in percent and °C as bytes."""
    return bytes(map(BYTES.__getitem__, readings))


def extend(history: bytes, frame: bytes) -> bytes:
    """The last SAMPLES frames."""
    return (history + frame)[-SAMPLES * len(frame) :]


def without_devices(history: bytes, devices: int) -> bytes:
    """The node's own readings of a history of so many devices."""
    width = len(COLUMNS) * (1 + devices)
    return b"".join([history[start : start + len(COLUMNS)] for start in range(0, len(history), width)])


def with_devices(own: bytes, devices: int) -> bytes:
    """A history again, in which no device has reported anything."""
    nothing = bytes([NOT_REPORTED]) * (len(COLUMNS) * devices)
    return b"".join([own[start : start + len(COLUMNS)] + nothing for start in range(0, len(own), len(COLUMNS))])


def series(history: bytes, devices: int, device: int, column: int) -> bytes:
    """One curve, oldest first, of a history of so many devices. The device may be WHOLE_NODE."""
    width = len(COLUMNS)
    return history[width * (device + 1) + column :: width * (devices + 1)]


def newest(frame: bytes, device: int, column: int) -> int | None:
    """A reading of the newest frame. None: it is not reported, or there is no such device. The device may be WHOLE_NODE."""
    at = len(COLUMNS) * (device + 1) + column
    return None if at >= len(frame) or frame[at] == NOT_REPORTED else frame[at]
