"""The node's id."""

from __future__ import annotations

import random

from edge.hardware.identity import Identity, machine_digits


def test_node_ids_are_the_same_after_a_restart_and_other_for_each_attempt() -> None:
    drawn = [machine_digits(attempt) for attempt in range(8)]
    assert drawn == [machine_digits(attempt) for attempt in range(8)]
    assert len(set(drawn)) == 8
    assert [len(digits) for digits in drawn] == [4, 4, 4, 5, 5, 5, 6, 6]
    identity = Identity(None, None)
    assert identity.node_id == f"Node-{drawn[0]}"
    assert identity.redraw() == f"Node-{drawn[1]}"
    simulated = [Identity(None, random.Random(seed)) for seed in range(50)]
    assert len({identity.node_id for identity in simulated}) > 40
    assert Identity(None, random.Random(7)).node_id == simulated[7].node_id
    assert simulated[7].redraw() != Identity(None, random.Random(7)).node_id


def test_the_users_own_id_is_kept() -> None:
    identity = Identity("box-1", None)
    assert (identity.given, identity.node_id) == ("box-1", "box-1")
    assert Identity(None, None).given is None
