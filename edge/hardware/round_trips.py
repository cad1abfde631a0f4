"""How long a sample takes to its acknowledgement."""

from __future__ import annotations

import threading


class RoundTrips:
    """Times from sending a sample to its acknowledgement. The heartbeat thread sends, the acknowledgements' thread hears."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent_at: dict[int, float] = {}  # by the sample's sequence, of what is not acknowledged yet
        self._untold_microseconds = 0

    def sent(self, sequence: int, now: float) -> None:
        """A sample goes out, by the monotonic clock in seconds."""
        with self._lock:
            self._sent_at[sequence] = now

    def heard(self, sequence: int, now: float) -> float | None:
        """Seconds since this sample was sent; None: it was not, or has been acknowledged before."""
        with self._lock:
            sent_at = self._sent_at.get(sequence)
            for earlier in [other for other in self._sent_at if other <= sequence]:
                del self._sent_at[earlier]
            if sent_at is None:
                return None
            self._untold_microseconds = max(round((now - sent_at) * 1e6), 1)
            return now - sent_at

    def take_microseconds(self) -> int:
        """The newest, to tell the server; 0 when it has been told."""
        with self._lock:
            untold, self._untold_microseconds = self._untold_microseconds, 0
            return untold
