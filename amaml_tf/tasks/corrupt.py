"""Corrupt rows and images: they are counted, named and left out, up to a limit."""

import logging

from amaml_tf.errors import UsageError

_LOGGER = logging.getLogger(__name__)


class CorruptData:
    """Counts what is left out of a data set because it cannot be read.

    Args:
        what: is counted: "rows" or "images".
        most: how many may be left out.
    """

    def __init__(self, what: str, most: int = 0) -> None:
        if most < 0:
            raise UsageError(
                f"Expected max_corrupt of 0 or more, got {most}; pass the number of corrupt {what} "
                "that may be left out."
            )
        self._what = what
        self._most = most
        #: How many have been left out.
        self.count = 0

    def leave_out(self, where: str, expected: str, came: str) -> None:
        """Leaves out one, and logs a warning that names it.

        Args:
            where: it is: a file, with the line or the number of the record.
            expected: what was expected there.
            came: what is there.

        Raises:
            UsageError: more than `most` are corrupt.
        """
        self.count += 1
        if self.count <= self._most:
            _LOGGER.warning("Left out %s: expected %s, got %s.", where, expected, came)
            return
        if self._most:
            raise UsageError(
                f"Expected at most {self._most} corrupt {self._what}, got more, the last in "
                f"{where} (expected {expected}, got {came}); correct them, or pass a larger "
                "--max_corrupt."
            )
        raise UsageError(
            f"Expected {expected}, got {came} in {where}; correct it, or pass --max_corrupt=N to "
            f"leave out up to N corrupt {self._what}."
        )

    def report(self, total: int) -> None:
        """Logs how many of all there were have been left out, if any."""
        if self.count:
            _LOGGER.warning("Left out %d corrupt of %d %s.", self.count, total, self._what)
