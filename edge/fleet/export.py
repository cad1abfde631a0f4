"""The fleet for programs: what --json prints, and /api/fleet answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format

from edge.fleet.row import Row, reason_of, state_of
from edge.fleet.source import Source


def snapshot_json(source: Source) -> str:
    """The fleet as one line of JSON."""
    now = source.clock()
    return "".join(fleet_pieces(source.snapshot(), now, source.wall()))


def fleet_pieces(rows: Iterable[Row], now: float, wall: float) -> Iterator[str]:
    """The same of these nodes, a node at a time; `now` by the clock of their times, `wall` by the wall clock."""
    yield f'{{"time": {json.dumps(round(wall, 3))}, "nodes": ['
    comma = ""
    for row in rows:
        yield comma + json.dumps(row_json(row, now))
        comma = ", "
    yield "]}"


def row_json(row: Row, now: float) -> dict[str, Any]:
    """One node; its messages in protobuf's JSON mapping with the proto's own field names."""
    state, info = state_of(row, now), row.info
    return {
        "node_id": row.node_id,
        **({"server": row.server} if row.server else {}),
        "hostname": info.hostname,
        "state": state.value,
        "reason": reason_of(row, state, now),
        "heartbeat_age_seconds": round(max(now - row.heartbeat_at, 0), 3),  # it may have come since `now`
        **({"token": row.token_id} if row.token_id else {}),
        "sample_age_seconds": None if row.sample_at is None else round(max(now - row.sample_at, 0), 3),
        **({} if row.vitals.energy_joules is None else {"energy_joules": row.vitals.energy_joules}),
        "info": json_format.MessageToDict(info, preserving_proto_field_name=True),
        "sample": json_format.MessageToDict(row.sample, preserving_proto_field_name=True),
    }
