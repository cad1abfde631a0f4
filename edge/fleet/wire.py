"""Rows as messages, and back: what Watch sends, and what the journal keeps. A row that comes back is checked as a heartbeat is."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.message import DecodeError

import node_pb2 as pb
from edge import history
from edge.event_log import Event
from edge.fleet.checks import check_info
from edge.fleet.intake import MAX_JOULES, MAX_KEPT_BYTES, MAX_MILLIWATTS, capacities_of, labels_of, vitals_from, vitals_of
from edge.fleet.row import Capacities, Refused, Row, Session, Vitals
from edge.fleet.source import Readings
from edge.program import version_numbers
from edge.protocol import MAX_DEVICES, MAX_NODE_ID, MAX_TEXT, check_node_id
from edge.text import MAX_SENTENCE, visible

HERE = Session(pb.HeartbeatRequest(), "", None)  # of a row that has a session with another server
MEBIBYTE = 2**20
DECIWATT, KILOJOULE = 100, 1000  # in milliwatts, in joules
KELVIN = 101  # what is added to a temperature, so that the lowest is 1
MOST = {  # of each column of Beats
    "number_steps": 2**32,
    "heartbeat_age_milliseconds": 2**32,
    "sample_lag_milliseconds": 2**32,
    "utilization_permille": 1000 + 1,
    "memory_permille": 10**6 + 1,
    "memory_used_mebibytes": 2**40,
    "temperature_celsius": 500 + KELVIN,
    "power_deciwatts": MAX_MILLIWATTS // DECIWATT + 1,
    "cpu_percent": 100 + 1,
    "energy_kilojoules": MAX_JOULES // KILOJOULE + 1,
    "round_trip_microseconds": 2**32,
    "hottest_device": MAX_DEVICES,
}
MAX_CACHED_BYTES = 4096  # of an info: 80 MB of those that are kept
MAX_EXTREMES_BYTES = 4096  # of a node
LAST_SECOND = 250_000_000_000  # of what can be shown of a time, in the year 9892: a clock that is told goes on from there
NEW_SAMPLE_SECONDS = 0.05  # by which a sample is another one than before; less is what clocks and roundings make


def summary_of(vitals: Vitals) -> pb.Summary:
    """What a node's sums are on the wire; of a row of any origin."""
    partial = vitals.with_memory < vitals.devices
    return pb.Summary(
        utilization_permille=None if vitals.utilization is None else round(1000 * vitals.utilization),
        memory_permille=None if vitals.memory is None else most(1000 * vitals.memory),
        memory_used_bytes=vitals.memory_used_bytes,
        memory_total_bytes=vitals.memory_total_bytes if partial else 0,
        temperature_celsius=None if vitals.celsius is None else round(vitals.celsius),
        hottest_device=vitals.hottest,
        power_milliwatts=vitals.milliwatts,
        failed_devices=vitals.errors,
        without_utilization=max(vitals.devices - vitals.with_utilization, 0),
        without_memory=max(vitals.devices - vitals.with_memory, 0),
        without_power=max(vitals.devices - vitals.with_power, 0),
        readings=vitals.frame[len(history.COLUMNS) :],
        cpu_percent=vitals.cpu_percent,
        energy_joules=vitals.energy_joules,
    )


def node_row(
    number: int, row: Row, now: float, before: Row | None = None, details: bool = False, processes: bool = False
) -> pb.NodeRow:
    """A row, whole; `now` by the clock of its times. `details`: with its newest sample, and the history of its devices;
    `processes`: and with those.

    `before`: as the reader knows it already, with its info and history, so that these need not be said again.
    """
    trip, sample_at = row.round_trip_seconds, row.sample_at
    return pb.NodeRow(
        number=number,
        node_id=row.node_id,
        address=row.address,
        has_session=row.session is not None,
        left=row.left,
        reason=row.reason,
        token_id=row.token_id,
        interval_milliseconds=round(1000 * row.interval_seconds),
        heartbeat_age_milliseconds=milliseconds(now - row.heartbeat_at),
        sample_age_milliseconds=None if sample_at is None else milliseconds(now - sample_at),
        round_trip_microseconds=None if trip is None else round(1e6 * trip),
        info=b"" if before and before.packed_info is row.packed_info else row.packed_info,
        sample=row.packed_sample if details else b"",
        processes=row.packed_processes if processes else b"",
        summary=summary_of(row.vitals),
        readings=row.history if details and not before else b"",
        node_readings=b"" if details or before else history.without_devices(row.history, len(row.capacities.devices)),
        extremes=row.extremes,
        awaited_milliseconds=milliseconds(row.awaited_until - now),
    )


def row_of(message: pb.NodeRow, made_at: float, before: Row | None = None, server: str = "") -> Row:
    """A row from what node_row made; its ages are as of `made_at`, by the reader's clock. `before`: what the reader knows of it,
    and the message leaves out. `server`: where it comes from, if that is to be shown.

    Raises Refused for what no server of ours would send.
    """
    try:
        node_id = check_node_id(message.node_id)
        if before and not message.info:
            packed_info, capacities, labels, version = before.packed_info, before.capacities, before.labels, before.version
        else:
            facts = facts_of if len(message.info) <= MAX_CACHED_BYTES else facts_of.__wrapped__
            packed_info, capacities, labels, version = facts(small(message.info, "info"))
        vitals, sample_at = vitals_from(capacities, message.summary), None
        if message.HasField("sample_age_milliseconds"):
            sample_at = made_at - message.sample_age_milliseconds / 1000
    except (ValueError, DecodeError) as error:  # UnicodeDecodeError, of protobuf in pure Python, is a ValueError
        raise Refused(f"a node that can't be: {error}") from error
    own = message.node_readings[len(message.node_readings) % len(history.COLUMNS) :][-len(history.COLUMNS) * history.SAMPLES :]
    frames = frames_of(message.readings or history.with_devices(own, len(capacities.devices)), capacities)
    if before and not message.readings and not own and before.capacities == capacities:
        frames = history_after(before, sample_at, vitals.frame)
    trip = message.round_trip_microseconds / 1e6 if message.HasField("round_trip_microseconds") else None
    return Row(
        node_id=node_id,
        address=visible(message.address, MAX_TEXT),
        session=HERE if message.has_session else None,
        interval_seconds=message.interval_milliseconds / 1000,
        sample_at=sample_at,
        packed_info=packed_info,
        packed_sample=small(message.sample, "sample") or (before.packed_sample if before else b""),
        packed_processes=small(message.processes, "processes") or (before.packed_processes if before else b""),
        capacities=capacities,
        vitals=vitals,
        history=frames,
        round_trip_seconds=trip,
        left=message.left,
        reason=visible(message.reason, MAX_SENTENCE),
        token_id=visible(message.token_id, MAX_NODE_ID),
        labels=labels,
        version=version,
        extremes=message.extremes[:MAX_EXTREMES_BYTES],
        server=server,
        awaited_until=made_at + message.awaited_milliseconds / 1000 if message.awaited_milliseconds else 0.0,
        heartbeat_at=made_at - message.heartbeat_age_milliseconds / 1000,
    )


def is_only_a_beat(before: Row, row: Row) -> bool:
    """Whether Beats say all that a viewer without details wants to know of a row since `before`."""
    old, new = before.vitals, row.vitals
    return (
        before.packed_info is row.packed_info
        and row.sample_at is not None
        and (before.session is None, before.address, before.left, before.reason, before.token_id, before.interval_seconds)
        == (row.session is None, row.address, row.left, row.reason, row.token_id, row.interval_seconds)
        and (before.extremes, before.awaited_until) == (row.extremes, row.awaited_until)
        and (old.errors, old.with_utilization, old.with_memory, old.with_power, old.memory_total_bytes)
        == (new.errors, new.with_utilization, new.with_memory, new.with_power, new.memory_total_bytes)
    )


def beats_of(pairs: Iterable[tuple[int, Row]], now: float) -> pb.Beats:
    """The readings of these rows, by their numbers in rising order; each has sent a sample."""
    numbers, rows = zip(*pairs, strict=True)
    vitals = [row.vitals for row in rows]
    return pb.Beats(
        number_steps=[number - before for number, before in zip(numbers, (0, *numbers), strict=False)],
        heartbeat_age_milliseconds=[milliseconds(now - row.heartbeat_at) for row in rows],
        sample_lag_milliseconds=[milliseconds(row.heartbeat_at - (row.sample_at or 0)) for row in rows],
        utilization_permille=[0 if one.utilization is None else 1 + round(1000 * one.utilization) for one in vitals],
        memory_permille=[0 if one.memory is None else most(1000 * one.memory + 1) for one in vitals],
        memory_used_mebibytes=[min(one.memory_used_bytes // MEBIBYTE, 2**32 - 1) for one in vitals],
        temperature_celsius=[0 if one.celsius is None else KELVIN + round(one.celsius) for one in vitals],
        power_deciwatts=[0 if one.milliwatts is None else 1 + one.milliwatts // DECIWATT for one in vitals],
        cpu_percent=[0 if one.cpu_percent is None else 1 + one.cpu_percent for one in vitals],
        energy_kilojoules=[0 if one.energy_joules is None else 1 + one.energy_joules // KILOJOULE for one in vitals],
        round_trip_microseconds=[0 if row.round_trip_seconds is None else most(1e6 * row.round_trip_seconds + 1) for row in rows],
        hottest_device=[one.hottest for one in vitals],
    )


@functools.lru_cache(maxsize=20_000)
def facts_of(packed_info: bytes) -> tuple[bytes, Capacities, tuple[tuple[str, str], ...], tuple[int, ...]]:
    """An info, and what rows have of it. Kept, since most that come are known: those of a moment of the past, from now.

    Raises ValueError, or DecodeError.
    """
    info = pb.NodeInfo.FromString(packed_info)
    check_info(info)
    return packed_info, capacities_of(info), labels_of(info), version_numbers(info.agent_version)


def rows_after(beats: pb.Beats, made_at: float, rows: Mapping[int, Row]) -> Iterator[tuple[int, Row]]:
    """What these beats make of rows, by their numbers. Raises Refused for what no server of ours would send."""
    columns = [list(getattr(beats, name)) for name in MOST]
    if len({len(column) for column in columns}) > 1:
        raise Refused("beats are in columns of different lengths")
    for (name, most), column in zip(MOST.items(), columns, strict=True):
        if column and max(column) > most:
            raise Refused(f"beats.{name} is {max(column)}: it must be at most {most}")
    if 0 in columns[0][1:]:  # of one node, beats would be as many rows as a message has room for
        raise Refused("beats are not in the order of their numbers")
    number = 0
    for step, age, lag, busy, full, used, heat, power, cpu, energy, trip, hottest in zip(*columns, strict=True):
        number += step
        if (row := rows.get(number)) is None:
            raise Refused(f"a beat is of node {number}, which was not told")
        heartbeat_at = made_at - age / 1000
        celsius = heat - KELVIN if heat else None
        node = history.encode(((busy - 1) / 10 if busy else None, min((full - 1) / 10, 100) if full else None, celsius))
        old = row.vitals
        vitals = Vitals(  # _replace, in half of its time
            (busy - 1) / 1000 if busy else None, (full - 1) / 1000 if full else None, used * MEBIBYTE, old.memory_total_bytes,
            celsius, None if celsius is None else limit_of(row.capacities, hottest),
            (power - 1) * DECIWATT if power else None, old.errors,
            node + old.frame[len(node) :],  # what devices report is as it was, until their details come
            old.devices, old.with_utilization, old.with_memory, old.with_power, hottest,
            cpu - 1 if cpu else None, (energy - 1) * KILOJOULE if energy else None,
        )  # fmt: skip
        sample_at = heartbeat_at - lag / 1000
        frames = history_after(row, sample_at, node.ljust(row.capacities.frame_bytes, bytes([history.NOT_REPORTED])))
        round_trip = (trip - 1) / 1e6 if trip else None
        yield number, row.beat(round_trip, row.packed_sample, vitals, frames, sample_at, heartbeat_at)


def limit_of(capacities: Capacities, device: int) -> int | None:
    """The slowdown temperature of a device, where it is known."""
    return (capacities.devices[device][1] or None) if device < len(capacities.devices) else None


def history_after(row: Row, sample_at: float | None, frame: bytes) -> bytes:
    """With one frame more, where the sample is another one than before."""
    if sample_at is None or (row.sample_at is not None and sample_at - row.sample_at < NEW_SAMPLE_SECONDS):
        return row.history
    return history.extend(row.history, frame)


def row_with(details: pb.NodeDetails, row: Row, told: bytes) -> Row:
    """A row with its details. `told`: its history as of the details before, since each beat between has added what it knows.

    Raises Refused for what no server of ours would send.
    """
    new, width, frames, vitals = frames_of(details.readings, row.capacities), row.capacities.frame_bytes, row.history, row.vitals
    if details.sample:
        row = row._replace(packed_sample=small(details.sample, "sample"))
        vitals = vitals._replace(frame=vitals_of(row.capacities, row.sample).frame)
        frames = frames[:-width] + vitals.frame
    if new:
        is_whole = len(new) > width and new.startswith(told)
        frames = new if is_whole else (told + new)[-width * history.SAMPLES :]
    return row._replace(
        packed_processes=small(details.processes, "processes") if details.HasField("processes") else row.packed_processes,
        vitals=vitals,
        history=frames,
    )


def graph_of(message: pb.Graph, steps: int) -> Readings:
    """Readings over a time. Raises Refused for what no server of ours would send."""
    size = steps * len(history.COLUMNS) * (1 + message.devices)
    if message.devices > MAX_DEVICES or len(message.lowest) != size or len(message.highest) != size:
        raise Refused(f"a graph of {message.devices} devices has {len(message.lowest)} and {len(message.highest)} bytes")
    return Readings(message.devices, message.lowest, message.highest)


def event_of(message: pb.FleetEvent) -> Event:
    """An event as it can be shown. Raises Refused for a time that can't be."""
    return Event(
        seconds_of(message.unix_milliseconds),
        visible(message.kind, 16),
        visible(message.node_id, MAX_NODE_ID),
        visible(message.text, MAX_SENTENCE),
    )


def seconds_of(unix_milliseconds: int) -> float:
    """By the wall clock. Raises Refused for a time that can't be shown."""
    if not 0 <= unix_milliseconds <= 1000 * LAST_SECOND:
        raise Refused(f"{unix_milliseconds} is no time from 1970 to 9892")
    return unix_milliseconds / 1000


def frames_of(readings: bytes, capacities: Capacities) -> bytes:
    """The last whole frames of a node."""
    width = capacities.frame_bytes
    return readings[len(readings) % width :][-width * history.SAMPLES :]


def small(packed: bytes, what: str) -> bytes:
    """A message within a message. Raises Refused for one that is larger than any that a node may send."""
    if len(packed) > MAX_KEPT_BYTES:
        raise Refused(f"{what} has {len(packed)} bytes: it may have {MAX_KEPT_BYTES}")
    return packed


def milliseconds(seconds: float) -> int:
    """Of a time that is over, as far as a message can say it: never less, an age that is too young is none."""
    return max(most(math.ceil(1000 * seconds)), 0)


def most(value: float) -> int:
    """A number, rounded, as far as a message can say it: a node may report a memory of one byte, and a million times its use."""
    return min(round(value), 2**32 - 1)
