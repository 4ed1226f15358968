"""Conversations in the wanted languages: what is clearly in another one is left out, by what the user says before the first answer.

A few words or a line of code are in no language for certain: py3langid gives each of its 142 about the same chance, and they stay.
"""

from collections.abc import Sequence

from torchspec.errors import UserError
from torchspec.extras import need
from torchspec.hints import did_you_mean
from torchspec.rows.formats import Row

LEAST = 1e-3  # chance of all wanted languages together; a blind guess gives each 7e-3, a sentence in another one 1e-5


class Languages:
    """wanted: codes of ISO 639, such as en; none: all."""

    def __init__(self, wanted: Sequence[str]):
        self.wanted = wanted
        if wanted:
            self._identifier = _identifier(wanted)
            self._check_known()

    def problem(self, row: Row) -> str | None:
        """Why the row is left out."""
        if not self.wanted or row.opening is None:
            return None
        chances = self._identifier.rank(row.opening)  # of every language, the most likely first
        if sum(chance for name, chance in chances if name in self.wanted) >= LEAST:
            return None
        return f"in another language: {chances[0][0]} and not {' or '.join(self.wanted)}"

    def _check_known(self) -> None:
        known = self._identifier.labels
        for name in self.wanted:
            if name not in known:
                raise UserError(f"--language {name} is not known, give codes such as en, zh or de{did_you_mean(name, known, ', ')}")


ALL = Languages(())


def _identifier(wanted: Sequence[str]):
    need(f"--language {wanted[0]}", "language")
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
