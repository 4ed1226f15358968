"""Held-out text, split off by what its conversations open with.

The opening is what a user says before the first answer, as words without case, blanks and signs; of a row that holds token ids alone it
is the prompt's. Its hash decides, whatever the file, the place in it and the rows around: equal prompts lie on one side, and what a share
holds out, a larger one does too.
"""

import hashlib
import re
from dataclasses import dataclass

from torchspec.rows.formats import Row


@dataclass(frozen=True)
class Split:
    share: float  # of the openings that are held out
    held_out: bool  # these, or the others

    def has(self, row: Row) -> bool:
        """A row that cannot be read is one of the others, which count it."""
        if row.problem:
            return not self.held_out
        opening = str(row.prompt_ids) if row.opening is None else row.opening
        return (fraction(opening) < self.share) == self.held_out


def fraction(opening: str) -> float:
    """In [0, 1), evenly."""
    words = " ".join(re.findall(r"\w+", opening.casefold())) or opening
    return int.from_bytes(hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=6).digest()) / 2**48
