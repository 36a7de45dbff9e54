"""Signals that end a run, heard between two steps."""

from __future__ import annotations

import logging
import signal

logger = logging.getLogger(__name__)


class Interrupt:
    """Remembers SIGTERM and SIGINT, so that the loop can save at the next step's end; a second signal ends at once."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if self.received:
            raise SystemExit(self.exit_code)
        self.received = number
        logger.warning("signal %d: saving a checkpoint, then stopping", number)

    @property
    def exit_code(self) -> int:
        """As a shell tells it: 128 plus the signal."""
        return 128 + self.received
