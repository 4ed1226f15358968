"""Which answers are left out: cut ones, short ones, those in letters of another script than is wanted."""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from torchspec.errors import UserError

CUT = "the answer is cut at max_new_tokens"
FOREIGN = 0.1  # share of an answer's letters: names, and Greek ones of mathematics, stand in every language


@dataclass(frozen=True)
class Drop:
    cut: bool = False
    shorter: int = 0  # than so many tokens
    scripts: tuple[str, ...] = ()  # as Unicode names its letters, in small letters: latin, cyrillic, cjk; none: any

    def __post_init__(self):
        for script in self.scripts:
            if script not in known_scripts():
                raise UserError(f"--script {script} is no script of Unicode's letters; give one as latin, cyrillic, arabic, cjk or hangul")

    def reason(self, ids: list[int], finish: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why an answer is left out, as "what: which"; None keeps it."""
        if self.cut and finish == "length":
            return CUT
        if len(ids) < self.shorter:
            return f"the answer is short: {len(ids)} tokens"
        if self.scripts and (foreign := _foreign(tokenizer.decode(ids, skip_special_tokens=True), self.scripts)):
            return f"the answer is written in another script: {foreign}"
        return None


KEEP_ALL = Drop()


def _foreign(text: str, scripts: tuple[str, ...]) -> str | None:
    """The script that most letters outside of these have, where they are too many."""
    letters = Counter(script_of(letter) for letter in text if letter.isalpha())
    others = {script: count for script, count in letters.items() if script not in scripts}
    return max(others, key=others.__getitem__) if sum(others.values()) > FOREIGN * letters.total() else None


def script_of(letter: str) -> str:
    """The first word of its name in Unicode, in small letters."""
    return unicodedata.name(letter, "").partition(" ")[0].lower()


@cache
def known_scripts() -> frozenset[str]:
    """Of the letters of the first plane, which holds those of every living language."""
    return frozenset(script_of(chr(code)) for code in range(2**16) if chr(code).isalpha())
