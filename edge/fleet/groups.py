"""The table in groups: what has the same value of a label stands together, under a line of its own with what it adds up to."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from edge.fleet.columns import natural
from edge.fleet.entry import Entry, EntryId


def head_of(group: int) -> EntryId:
    """What stands for a group's own line among the entries: no node has such a name."""
    return EntryId("", group)


def is_head(entry_id: EntryId) -> bool:
    """Whether it stands for a group's own line, and for no entry."""
    return not entry_id.node_id


def grouped(order: Sequence[EntryId], entries: Sequence[Entry], label: str) -> tuple[list[EntryId], dict[str, list[Entry]]]:
    """The order with each group together, as people count, and its line before it; and the entries of each in their own order, by
    the label's value. Those without the label come last, under an empty one."""
    members: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in entries:
        members[dict(entry.row.labels).get(label, "")].append(entry)
    groups = {value: members[value] for value in sorted(members, key=lambda value: (not value, natural(value)))}
    group_of = {entry.id: group for group, some in enumerate(groups.values()) for entry in some}
    lines = [*order, *map(head_of, range(len(groups)))]
    lines.sort(key=lambda one: (one.device, False) if is_head(one) else (group_of[one], True))  # else it stays as it was
    return lines, groups
