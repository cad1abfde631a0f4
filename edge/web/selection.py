"""Which nodes a filter chooses: the language of the screen's `/`, a little at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from edge.fleet.entry import EntryId, make_entries
from edge.fleet.filters import parse_filter
from edge.fleet.row import Row
from edge.text import visible
from edge.web.site import Fleet
from edge.web.slices import sliced

MAX_WORDS = 100  # of a filter, those between commas among them: each may be asked of each node


class Selection(NamedTuple):
    """The nodes that match, in the order of their names."""

    rows: Sequence[Row]
    not_understood: Sequence[str]  # terms of the filter, which restrict nothing; or why nothing was looked for

    @property
    def why_not(self) -> str:
        """For who is not answered, since something was not understood."""
        told = ", ".join(map(visible, self.not_understood))
        return f"the filter can't be read at: {told}; the help of the screen, by ? after /, tells how it is written"


async def select(fleet: Fleet, text: str) -> Selection:
    """All of the fleet, where the filter is empty."""
    text = " ".join(text.split())
    if len(re.split(r"[\s|,]+", text)) > MAX_WORDS:
        return Selection((), (f"a filter of more than {MAX_WORDS} words",))
    rows, now = fleet.snapshot(), fleet.clock()
    labels = {name.lower() for labels in {row.labels for row in rows} for name, _ in labels}  # boxes with equal labels share them
    tests, not_understood = parse_filter(text, labels)
    chosen = []
    async for row in sliced(rows):
        (entry,) = make_entries([(EntryId(row.node_id), row)], now)
        if all(test(entry) for test in tests):
            chosen.append(row)
    return Selection(sorted(chosen, key=lambda row: row.node_id), not_understood)
