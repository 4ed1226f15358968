"""Assistant turns -> samples: one for the whole conversation where that is exact, else one per turn; each compared with its turns."""

from dataclasses import dataclass
from itertools import groupby

from torchspec.chat.pieces import Piece, PieceIds
from torchspec.rows.conversation import BadRow


@dataclass(frozen=True)
class Encoded:
    ids: list[int]  # [L]
    loss_mask: list[bool]  # [L]

    def spans(self) -> list[tuple[int, int]]:
        """Half-open [start, end) ranges of consecutive supervised tokens."""
        runs = [list(run) for supervised, run in groupby(range(len(self.ids)), self.loss_mask.__getitem__) if supervised]
        return [(run[0], run[-1] + 1) for run in runs]


@dataclass(frozen=True)
class TurnText:
    """An assistant turn as the template renders it."""

    message: int  # its number in the conversation
    prompt: Piece  # P_i
    full: Piece  # F_i


@dataclass(frozen=True)
class Turn:
    prompt_ids: PieceIds
    answer: list[int]  # what the target would have generated, end of turn included

    @property
    def prompt(self) -> list[int]:
        """What the server sees; made when asked for, since the prompts of a conversation hold one another."""
        return self.prompt_ids.list()

    def encoded(self) -> Encoded:
        return Encoded(self.prompt + self.answer, [False] * len(self.prompt) + [True] * len(self.answer))


def samples(turns: list[Turn]) -> list[Encoded]:
    """One sample for the whole conversation where that is exact, otherwise one sample per assistant turn."""
    whole = _whole(turns)
    return [whole] if whole else [turn.encoded() for turn in turns]


def check_mask(encoded: list[Encoded], turns: list[Turn]) -> None:
    """Every supervised span must be an answer that follows exactly the prompt a server would see."""
    spans = [(sample.ids, start, end) for sample in encoded for start, end in sample.spans()]
    if len(spans) != len(turns):
        raise BadRow(f"the loss mask disagrees with the chat template: {len(spans)} spans for {len(turns)} assistant turns")
    for number, ((ids, start, end), turn) in enumerate(zip(spans, turns, strict=True)):
        if ids[:start] != turn.prompt or ids[start:end] != turn.answer:
            raise BadRow(f"the loss mask disagrees with the chat template: span {number} covers [{start}, {end})")


def _whole(turns: list[Turn]) -> Encoded | None:
    """The last turn's sample with all turns supervised, if it holds every earlier prompt and answer token by token. It does not
    when the template rewrites its history (Qwen3 drops old thoughts) or when a prompt's last space merges with the answer."""
    ids = turns[-1].encoded().ids
    loss_mask = [False] * len(ids)
    for turn in turns:
        start, end = len(turn.prompt), len(turn.prompt) + len(turn.answer)
        if ids[:start] != turn.prompt or ids[start:end] != turn.answer:
            return None
        loss_mask[start:end] = [True] * len(turn.answer)
    return Encoded(ids, loss_mask)
