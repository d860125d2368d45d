"""How the partitions of all logs are shared between hosts: by their numbers, so that no host has to ask another.

The hosts of a project have nothing to say to each other. Each runs a cluster of workers of its own, over its share; what a host that is
gone would have read waits for it, and the others go on. Nothing is counted twice where two have the same share by mistake: whoever writes
to the online store must know where it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from zlib import crc32

from tidemill.errors import TidemillError

from .ends import Part

_FORM = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class Share:
    """Number `index` of `of`, from 0. People write `1/3` for the first of three.

    >>> third = Share.parse("3/3")
    >>> third, str(third), [third.has(("payments", partition)) for partition in range(6)]
    (Share(index=2, of=3), '3/3', [False, False, True, False, False, True])
    """

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """Raises `TidemillError`."""
        found = _FORM.fullmatch(text)
        if not found or int(found[1]) > int(found[2]):
            raise TidemillError(f"a share is this host's number and how many hosts there are, such as 1/3, 2/3 and 3/3; got {text!r}")
        return cls(int(found[1]) - 1, int(found[2]))

    def has(self, part: Part) -> bool:
        """Whether a partition is in it. Sources begin with different hosts: else those of one partition all lay with the first."""
        source, partition = part
        return (crc32(source.encode()) + partition) % self.of == self.index

    def among(self, index: int, of: int) -> Share:
        """The share that worker `index` of this host's `of` has of what everybody can do, such as sweeping shards."""
        return Share(self.index + self.of * index, self.of * of)

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.of}"


WHOLE = Share()
