"""What is promised of the memory that is left. Sans-IO: headroom is passed in; there is no lock and no clock here."""


class Promises:
    """What is promised of the memory that is left; bytes.

    A promise counts until its memory shows in the reading, or it ends. What shows is not told apart by who took it:
    headroom that went since the promises were made is taken as theirs. ``_most`` is what they were made against, and a
    new one is made against what was left then, however long others have been there.
    """

    def __init__(self) -> None:
        self.total = 0
        self._most = self._left = self._headroom = 0

    def left(self, headroom: int) -> int:
        """What of ``headroom`` is not promised; negative when more is."""
        self._most = max(self._most, headroom) if self.total else headroom
        self._headroom = headroom
        self._left = min(headroom, self._most - self.total)
        return self._left

    def unshown(self, more: int = 0) -> int:
        """How much of it did not show in the last reading that :meth:`left` was given, if ``more`` were promised."""
        return min(self.total + more, max(0, self._headroom - self._left + more))

    def make(self, size: int) -> None:
        """Promise ``size`` of what :meth:`left` said a moment ago."""
        self._most = min(self._most, self._left + self.total)
        self.total += size
        self._left -= size

    def end(self, size: int) -> None:
        """Take back ``size`` of what was promised."""
        assert 0 <= size <= self.total
        self.total -= size
        self._left += size

    def take(self, size: int) -> None:
        """Of what was promised ``size`` was taken: that it shows says nothing of the rest."""
        assert 0 <= size <= self.total
        self.total -= size
        self._most -= size

    def give_back(self, size: int) -> None:
        """Nobody holds any more of what was taken."""
        self._most += size

    def forget(self) -> None:
        """Nothing is promised any more: in a child process, which has none of its parent's requests."""
        self.total = 0
