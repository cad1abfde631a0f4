"""What programs read of a fleet: one line, the same by --json and by /api/fleet."""

from __future__ import annotations

import json

from edge.fleet.export import fleet_pieces, snapshot_json
from edge.fleet.source import Moment
from tests.fixtures.examples import NOW, WALL, example_registry, example_row, shared_registry


def test_a_fleet_is_one_line_with_each_node() -> None:
    registry = shared_registry()
    registry.wall = lambda: WALL + 0.12345
    text = snapshot_json(registry)
    told = json.loads(text)
    assert "\n" not in text
    assert told["time"] == WALL + 0.123
    assert [node["node_id"] for node in told["nodes"]] == [row.node_id for row in registry.snapshot()]
    assert text == json.dumps(told)  # as a program would write it


def test_a_fleet_without_a_node_is_an_empty_list() -> None:
    assert json.loads(snapshot_json(Moment(NOW, WALL, (), ()))) == {"time": WALL, "nodes": []}


def test_a_node_is_told_by_its_messages_and_by_what_time_makes_of_it() -> None:
    nodes = {node["node_id"]: node for node in json.loads(snapshot_json(example_registry()))["nodes"]}
    lost = nodes["Node-1011"]
    assert (lost["state"], lost["reason"], lost["heartbeat_age_seconds"]) == ("LOST", "no heartbeat for 31s", 31.0)
    assert lost["info"]["hostname"] == "edge-11"
    assert len(lost["sample"]["devices"]) == len(lost["info"]["devices"])
    assert nodes["Node-1017"]["state"] == "LEFT"


def test_a_piece_is_a_node_at_most() -> None:
    pieces = list(fleet_pieces(map(example_row, range(5)), NOW, WALL))
    assert len(pieces) == 5 + 2
