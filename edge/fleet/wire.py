"""Rows as messages, and back: what Watch sends, and what the journal keeps. A row that comes back is checked as a heartbeat is."""

from __future__ import annotations

from collections.abc import Iterable

import node_pb2 as pb
from edge import history
from edge.fleet.checks import check_info
from edge.fleet.intake import capacities_of, labels_of, vitals_from
from edge.fleet.row import Row, Session, Vitals
from edge.protocol import MAX_NODE_ID, MAX_TEXT, check_node_id
from edge.text import visible

HERE = Session(pb.HeartbeatRequest(), "", None)  # of a row that has a session with another server
MEBIBYTE = 2**20
KELVIN = 101  # what is added to a temperature, so that the lowest is 1


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
    """A row, whole; `now` by the clock of its times. `details`: with its newest sample; `processes`: and with those.

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
        readings=b"" if before else row.history,
        extremes=row.extremes,
        awaited_milliseconds=milliseconds(row.awaited_until - now),
    )


def row_of(message: pb.NodeRow, made_at: float, before: Row | None = None) -> Row:
    """A row from what node_row made; its ages are as of `made_at`, by the reader's clock. `before`: what the reader knows of it,
    and the message leaves out.

    Raises Refused, or ValueError, for what no server of ours would send.
    """
    if before and not message.info:
        packed_info, capacities, labels = before.packed_info, before.capacities, before.labels
    else:
        packed_info, info = message.info, pb.NodeInfo.FromString(message.info)
        check_info(info)
        capacities, labels = capacities_of(info), labels_of(info)
    width = len(history.COLUMNS) * (1 + len(capacities.devices))
    frames = message.readings[len(message.readings) % width :][-width * history.SAMPLES :]
    if before and not message.readings and before.capacities == capacities:
        frames = before.history
    trip = message.round_trip_microseconds / 1e6 if message.HasField("round_trip_microseconds") else None
    return Row(
        node_id=check_node_id(message.node_id),
        address=visible(message.address, MAX_TEXT),
        session=HERE if message.has_session else None,
        interval_seconds=message.interval_milliseconds / 1000,
        sample_at=made_at - message.sample_age_milliseconds / 1000 if message.HasField("sample_age_milliseconds") else None,
        packed_info=packed_info,
        packed_sample=message.sample or (before.packed_sample if before else b""),
        packed_processes=message.processes or (before.packed_processes if before else b""),
        capacities=capacities,
        vitals=vitals_from(capacities, message.summary),
        history=frames,
        round_trip_seconds=trip,
        left=message.left,
        reason=visible(message.reason, 500),
        token_id=visible(message.token_id, MAX_NODE_ID),
        labels=labels,
        extremes=message.extremes,
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
        and (old.errors, old.with_utilization, old.with_memory, old.with_power, old.hottest, old.memory_total_bytes)
        == (new.errors, new.with_utilization, new.with_memory, new.with_power, new.hottest, new.memory_total_bytes)
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
        power_milliwatts=[0 if one.milliwatts is None else 1 + one.milliwatts for one in vitals],
        cpu_percent=[0 if one.cpu_percent is None else 1 + one.cpu_percent for one in vitals],
        energy_joules=[0 if one.energy_joules is None else 1 + one.energy_joules for one in vitals],
        round_trip_microseconds=[0 if row.round_trip_seconds is None else most(1e6 * row.round_trip_seconds + 1) for row in rows],
    )


def milliseconds(seconds: float) -> int:
    """Of a time that is over, as far as a message can say it."""
    return max(most(1000 * seconds), 0)


def most(value: float) -> int:
    """A number, rounded, as far as a message can say it: a node may report a memory of one byte, and a million times its use."""
    return min(round(value), 2**32 - 1)
