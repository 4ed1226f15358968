"""One answer, written with and without the draft, as a reader sees it: every step in time, and both texts at one moment."""

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Step:
    """Tokens that one forward of the target committed; place and width are shares of the longer run."""

    start: float
    width: float
    tokens: int


@dataclass(frozen=True)
class Run:
    name: str
    steps: list[Step]
    seconds: float  # until its last token
    tokens: int
    written: list[list[str]]  # [text, source] of the tokens that stand at the moment shown
    missing: str  # what is not written yet

    @property
    def most(self) -> int:
        """Tokens of the largest step."""
        return max(step.tokens for step in self.steps)


@dataclass(frozen=True)
class Picture:
    prompt: str
    whole: bool  # or the beginning of a longer answer
    outcome: str
    moment: float  # seconds: the end of the run that is done first
    runs: list[Run]  # without the draft, with it


def picture_of(results: dict) -> Picture | None:
    shown = results["decode"] and results["decode"]["picture"]
    if not shown:
        return None
    sides = {"Without the draft": shown["plain"], "With the draft": shown["draft"]}
    ends = [side["seconds"][-1] for side in sides.values()]
    runs = [_run(name, side, min(ends), max(ends)) for name, side in sides.items()]
    return Picture(shown["prompt"], shown["whole"], shown["outcome"], min(ends), runs)


def _run(name: str, side: dict, moment: float, longest: float) -> Run:
    """Tokens of one step have one time."""
    pieces, seconds, steps, before = side["pieces"], side["seconds"], [], 0.0
    for time, tokens in groupby(seconds):
        steps.append(Step(before / longest, (time - before) / longest, len(list(tokens))))
        before = time
    count = sum(time <= moment for time in seconds)
    return Run(name, steps, seconds[-1], len(pieces), pieces[:count], "".join(text for text, _ in pieces[count:]))
