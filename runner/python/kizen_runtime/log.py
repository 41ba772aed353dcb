"""`outputs.log`: the messages of an execution, within its limits."""

import posix
from _thread import RLock  # type: ignore[attr-defined]

from .protocol import Channel
from .redact import Redactor


class Counter:
    """Counts dropped items. Reports the count to the sidecar after 1, 2, 4, 8, ... items, so that the count survives a
    sudden end of the process.

    A forked child ends without a final report and loses the items since its last one. With `each`, it reports every
    item.
    """

    def __init__(self, channel: Channel, kind: str, each: bool = False) -> None:
        self._channel = channel
        self._kind = kind
        self._each = each
        self._count = self._unreported = 0
        posix.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._count = self._unreported = 0  # the parent reports its own items

    def add(self) -> None:
        """Counts one item."""
        self._count += 1
        self._unreported += 1
        if self._count & (self._count - 1) == 0 or self._each and not self._channel.owned:
            self.send()

    def send(self) -> None:
        """Reports the count to the sidecar, if it is not zero."""
        count, self._unreported = self._unreported, 0
        if count:
            self._channel.send(self._kind, c=count)


class Log:
    """Redacts, truncates and sends each message. Drops and counts messages over the total.

    Each process keeps its own total; the sidecar keeps the total over all processes.
    """

    def __init__(self, channel: Channel, redactor: Redactor, message_bytes: int, total_bytes: int) -> None:
        self._channel = channel
        self._redactor = redactor
        self._message_bytes = message_bytes
        self._left = total_bytes
        self.dropped = Counter(channel, "logs_dropped")
        self._unlock()
        posix.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        # Reentrant, because a signal handler may log during a log call. New after a fork, because another thread may
        # have held the lock in the parent, and nothing would release it.
        self._lock = RLock()

    def __call__(self, message: str) -> None:
        with self._lock:
            if self._left <= 0:
                self.dropped.add()
                return
            kept = self._redactor.cut(message, min(self._message_bytes, self._left))
            self._left -= max(1, len(kept.encode()))
            self._channel.send("log", m=kept, x=self._lost(message, kept))

    def _lost(self, message: str, kept: str) -> int:
        """Returns how many characters were cut. In a text over the limit, each secret counts with its own length."""
        if len(message) <= self._message_bytes:
            message = self._redactor(message)
        return max(0, len(message) - len(kept))
