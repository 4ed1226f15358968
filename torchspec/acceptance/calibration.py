"""How far a draft's confidence may be believed, slot by slot, and the temperatures that mend it.

A confidence c_k says how likely draft token k is accepted if those before it are; their product a_k = c_1 ... c_k is the chance that k
tokens survive, which is what ends a draft early. It is calibrated if, of the steps with a_k near 0.7, k tokens survive in 70%. The
expected calibration error of slot k sorts steps into ten bins by a_k: the mean over steps of |mean a_k of a bin - share that survived|.

Temperatures are fitted one slot after another (DSpark, arXiv 2607.05147, section 3): c_k = sigmoid(logit_k / T_k), and T_k is the one of a
grid with the smallest error of slot k, those of the earlier slots being fixed.
"""

import torch
from torch import Tensor

BINS = 10
GRID = [2 ** (step / 8) for step in range(-24, 25)]  # 1/8 to 8


def survival(logits: Tensor, temperatures: list[float]) -> Tensor:
    """[n, S] -> a_1 .. a_S, float64."""
    return (logits.double() / torch.tensor(temperatures, dtype=torch.float64)).sigmoid().cumprod(1)


def tally(survives: Tensor, right: Tensor, there: Tensor) -> Tensor:
    """[n, S] each, of steps -> [S, BINS, 3]: steps, sum of a_k, steps in which k tokens survived.

    there: the answer has a token for slot k.
    """
    places = (survives * BINS).long().clamp(max=BINS - 1) + BINS * torch.arange(survives.shape[1])
    values = torch.stack((torch.ones_like(survives), survives, right.double()), -1)
    sums = torch.zeros(survives.shape[1] * BINS, 3, dtype=torch.float64)
    return sums.index_add(0, places[there], values[there]).view(-1, BINS, 3)


def errors(counts: Tensor) -> list[float]:
    """[S, BINS, 3] -> the expected calibration error of each slot; 0 where no step had one."""
    steps, said, survived = counts.unbind(-1)
    return ((said - survived).abs().sum(1) / steps.sum(1).clamp(min=1)).tolist()


def fit(logits: Tensor, right: Tensor, there: Tensor) -> list[float]:
    """[n, S] each -> the temperature of each slot. Among equals the one nearest to 1, which changes least."""
    temperatures: list[float] = []
    for slot in range(1, logits.shape[1] + 1):

        def error(temperature: float, slot: int = slot) -> float:
            survives = survival(logits[:, :slot], [*temperatures, temperature])[:, -1:]
            return errors(tally(survives, right[:, slot - 1 : slot], there[:, slot - 1 : slot]))[0]

        temperatures.append(min(sorted(GRID, key=lambda t: max(t, 1 / t)), key=error))
    return temperatures
