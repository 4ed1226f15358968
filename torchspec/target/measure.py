"""What the target's own forward does around its layers, measured on the model without them.

    row --(embedding scale)--> [no layers] --> final norm --(scale)--> head --(scale, cap)--> logits

Known numbers go in at one place and are read at the next, in float32: no family's config or code has to be understood. The model's
own weights are not touched; constants stand in for them, so that nothing is multiplied by a real head.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from torchspec.errors import UserError
from torchspec.nn.logits import LogitLaw

ROWS = 8  # of a table of tokens or of first positions, where one is asked for
SMALL, LARGE = 2.0**-10, 1e6  # logits of which a tanh would leave the one as it is, and make the other its cap


@dataclass(frozen=True)
class Arithmetic:
    norm: nn.Module  # the final one: [..., H_t] -> [..., E]
    law: LogitLaw  # of the norm's output times the head's rows
    embedding_scale: float | None  # none where the target does more to an embedding's row than scale it


class _Trace:
    """One forward of the model without layers: what went in and out of the modules that ran before the head."""

    def __init__(self, model: PreTrainedModel, normed_by: nn.Module | None = None, from_head: Tensor | None = None):
        self.calls: list[tuple[nn.Module, tuple, Tensor]] = []  # of modules without parts, in the order of their ends
        self.head, self.head_input = model.get_output_embeddings(), None
        self.normed_by, self.from_head = normed_by, torch.zeros(len(self.head.weight)) if from_head is None else from_head
        with ExitStack() as hooks:
            for module in model.modules():
                if not any(True for _ in module.children()):
                    hooks.callback(module.register_forward_hook(self._see).remove)
            ids = torch.zeros(1, 1, dtype=torch.int64)
            with torch.inference_mode():
                output = functional_call(model, _stand_ins(model), (), {"input_ids": ids, "use_cache": False}, tie_weights=False)
        self.logits = output.logits[0, 0]

    def _see(self, module, inputs, output):
        if module is self.head:
            self.head_input = inputs[0][0, 0]
            return self.from_head.expand(*output.shape[:-1], -1)
        if self.head_input is None:
            self.calls.append((module, inputs, output))
        return _ramp(output.shape[-1]).expand_as(output) if module is self.normed_by else None


def measure(model: PreTrainedModel, folder: Path) -> Arithmetic:
    """model: of load_without_layers."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # concerns gradients, and would have to lie among the few rows
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _refused(folder, f"its head is {type(head).__name__}, where drafts share a matrix")
    if head.bias is not None:
        raise _refused(folder, "its head adds a bias, where drafts share a matrix alone")
    module, inputs, output = _Trace(model).calls[-1]
    if module is model.get_input_embeddings() or not isinstance(output, Tensor) or len(inputs) != 1 or output.dim() != 3:
        raise _refused(folder, "no norm of one input stands right before its head")
    before_head = _factor(_Trace(model, normed_by=module).head_input)
    if before_head is None:
        raise _refused(folder, "it does more than scale the output of its final norm before the head")
    after = _law(model, module, folder)
    return Arithmetic(module, LogitLaw(before_head * after.scale, after.cap), _factor(inputs[0][0, 0]))


def _law(model: PreTrainedModel, norm: nn.Module, folder: Path) -> LogitLaw:
    def logits(values: Tensor) -> Tensor:
        return _Trace(model, norm, values).logits

    size = len(model.get_output_embeddings().weight)
    scale, top = float(logits(torch.full((size,), SMALL))[0]) / SMALL, float(logits(torch.full((size,), LARGE))[0])
    law = LogitLaw(scale, None if abs(top - scale * LARGE) <= 1e-4 * abs(top) else top)
    grid = torch.linspace(-100, 100, size)
    found = logits(grid)
    if found.shape != grid.shape or not torch.allclose(found.float(), law.apply_(grid.clone()), rtol=1e-4, atol=1e-4):
        raise _refused(folder, "it does more to its logits than scale them and cap them by a tanh")
    return law


def _stand_ins(model: PreTrainedModel) -> dict[str, Tensor]:
    """Constants in the shapes of the weights that take no memory; tables of a few equal rows, and a head of one row."""
    table, head, values = model.get_input_embeddings(), model.get_output_embeddings(), {}
    for where, module in model.named_modules():
        for name, weight in module.named_parameters(where, recurse=False):
            rows = 1 if module is head else ROWS if isinstance(module, nn.Embedding) else len(weight)
            row = _ramp(weight.shape[1]) if module is table else torch.ones(())
            values[name] = row.expand(rows, *weight.shape[1:])
    return values


def _ramp(size: int) -> Tensor:
    """Numbers that no norm, no shift and no mix of channels would leave in proportion."""
    return torch.linspace(1, 2, size)


def _factor(got: Tensor) -> float | None:
    """s, if what came of the ramp is s times it."""
    ramp = _ramp(got.shape[-1])
    factor = float(got[0] / ramp[0])
    return factor if torch.allclose(got.float(), factor * ramp, rtol=1e-5) else None


def _refused(folder: Path, cause: str) -> UserError:
    return UserError(f"target {folder}: {cause}; this architecture is not supported")
