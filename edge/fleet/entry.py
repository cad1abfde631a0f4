"""An entry of the screen: what a line of the table, or a cell of the grid, stands for. A node, or one of its devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.fleet.intake import device_vitals
from edge.fleet.row import Row, State, Vitals, hanging_seconds, state_of
from edge.history import WHOLE_NODE


class EntryId(NamedTuple):
    """Names an entry: it stays the same while rows come and go."""

    node_id: str
    device: int = WHOLE_NODE  # its place among the node's devices


def name_of(entry_id: EntryId) -> str:
    """The node's id, and the place of its device."""
    return entry_id.node_id if entry_id.device == WHOLE_NODE else f"{entry_id.node_id} {entry_id.device}"


class Messages:
    """A row's messages, each parsed once, and only if somebody asks for it: the entries of one node share them."""

    __slots__ = ("_info", "_processes", "_row", "_sample")

    def __init__(self, row: Row) -> None:
        self._row = row
        self._info: pb.NodeInfo | None = None
        self._sample: pb.Sample | None = None
        self._processes: Sequence[pb.Process] | None = None

    @property
    def info(self) -> pb.NodeInfo:
        """What is static."""
        if self._info is None:
            self._info = self._row.info
        return self._info

    @property
    def sample(self) -> pb.Sample:
        """The newest readings."""
        if self._sample is None:
            self._sample = self._row.sample
        return self._sample

    @property
    def processes(self) -> Sequence[pb.Process]:
        """What runs on all of the node's devices."""
        if self._processes is None:
            self._processes = self._row.processes
        return self._processes


class Entry:
    """One entry at one moment: made once a frame, and once for each look through the whole fleet. It parses what one asks for."""

    __slots__ = ("_messages", "_searched_text", "_state", "_vitals", "id", "now", "row")

    def __init__(self, entry_id: EntryId, row: Row, messages: Messages, now: float) -> None:
        self.id = entry_id
        self.row = row
        self.now = now  # by the registry's clock
        self._messages = messages
        self._vitals: Vitals | None = row.vitals if entry_id.device == WHOLE_NODE else None
        self._state: State | None = None
        self._searched_text: str | None = None

    @property
    def name(self) -> str:
        """The node's id, and the place of its device."""
        return name_of(self.id)

    @property
    def info(self) -> pb.NodeInfo:
        """Of the node, also where the entry is one of its devices."""
        return self._messages.info

    @property
    def sample(self) -> pb.Sample:
        """The newest of the node, also where the entry is one of its devices."""
        return self._messages.sample

    @property
    def processes(self) -> Sequence[pb.Process]:
        """On all of the node's devices, or on the one that the entry stands for."""
        processes = self._messages.processes
        return processes if self.id.device == WHOLE_NODE else [one for one in processes if one.device_index == self.id.device]

    @property
    def devices(self) -> Sequence[pb.DeviceInfo]:
        """All of the node, or the one that the entry stands for."""
        return self.info.devices if self.id.device == WHOLE_NODE else self.info.devices[self.id.device : self.id.device + 1]

    @property
    def searched_text(self) -> str:
        """What a word of a filter is looked for in, in lower case."""
        if self._searched_text is None:
            info, row, names = self.info, self.row, (device.name for device in self.devices)
            self._searched_text = " ".join((row.node_id, info.hostname, row.address, info.host.model, *names)).lower()
        return self._searched_text

    @property
    def vitals(self) -> Vitals:
        """Those of the node, or of its device."""
        if self._vitals is None:
            one = slice(self.id.device, self.id.device + 1)
            self._vitals = device_vitals(self.row.capacities.devices[one], self._messages.sample.devices[one])
        return self._vitals

    @property
    def state(self) -> State:
        """Of the node, at this moment."""
        if self._state is None:
            self._state = state_of(self.row, self.now)
        return self._state

    @property
    def hanging_seconds(self) -> float | None:
        """Age of its newest readings, where the node is online and its sensors hang."""
        return hanging_seconds(self.row, self.now) if self.state is State.ONLINE else None

    @property
    def is_stale(self) -> bool:
        """Whether its readings are old: they are shown in grey."""
        return self.state is not State.ONLINE or self.hanging_seconds is not None

    @property
    def heartbeat_age_seconds(self) -> float:
        """How long ago the node was last heard."""
        return self.now - self.row.heartbeat_at


def ids_of(row: Row, by_gpu: bool) -> list[EntryId]:
    """The entries of a node: itself, or its devices where there are any."""
    if by_gpu and row.capacities.devices:
        return [EntryId(row.node_id, index) for index in range(len(row.capacities.devices))]
    return [EntryId(row.node_id)]


def make_entries(pairs: Iterable[tuple[EntryId, Row]], now: float) -> list[Entry]:
    """The entries of a moment, those of one node after the other."""
    entries: list[Entry] = []
    known: dict[str, Messages] = {}
    for entry_id, row in pairs:
        if (messages := known.get(row.node_id)) is None:
            messages = known[row.node_id] = Messages(row)
        entries.append(Entry(entry_id, row, messages, now))
    return entries
