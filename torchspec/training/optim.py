"""Optimizers over the draft's parameters, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from torchspec.nn.device import emulates_bfloat16
from torchspec.nn.layers import TokenTable
from torchspec.training.config import TrainingConfig
from torchspec.training.muon import RowMuon


def build_optimizers(model: nn.Module, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and AdamW for all else. Weight decay on matrices and tables of tokens.

    Muon's updates are scaled to AdamW's size (`match_rms_adamw`), so that both read the same learning rates.
    """
    tables = [p for module in model.modules() if isinstance(module, TokenTable) for p in module.parameters(recurse=False)]
    rows_of_tokens = {id(p) for p in tables}
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in rows_of_tokens]
    others = [p for p in model.parameters() if p.dim() != 2]
    decay = training.weight_decay
    if training.optimizer == "muon":
        return [_muon(matrices, training), _adamw(_groups(tables, others, decay), training)]
    return [_adamw(_groups([*matrices, *tables], others, decay), training)]


def _groups(decaying: list[nn.Parameter], others: list[nn.Parameter], decay: float) -> list[dict]:
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _muon(matrices: list[nn.Parameter], training: TrainingConfig) -> torch.optim.Muon:
    """PyTorch's own, where it can be had."""
    rate, decay, rows, emulated = training.learning_rate, training.weight_decay, training.muon_rows, emulates_bfloat16(matrices[0].device)
    if rows is None and not emulated:
        return torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return RowMuon(matrices, rows, torch.float32 if emulated else torch.bfloat16, lr=rate, weight_decay=decay)


def _adamw(groups: list[dict], training: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, training.adam_beta2), fused=True)


def learning_rate(step: int, total: int, training: TrainingConfig) -> float:
    """Rate of the step (0-based): linear warm-up, then constant, cosine, or WSD (stable, then a last share of decay)."""
    peak, floor = training.learning_rate, training.min_lr
    warmup = math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.lr_decay_style == "constant":
        return peak
    if training.lr_decay_style == "cosine":
        return _decay((step - warmup) / max(1, total - warmup), peak, floor, "cosine")
    start = total - math.ceil(training.wsd_decay_ratio * total)
    return peak if step < start else _decay((step - start) / max(1, total - start), peak, floor, training.wsd_decay_style)


def _decay(progress: float, peak: float, floor: float, style: str) -> float:
    left = 1 - progress if style == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (peak - floor) * left
