"""The recipes for Qwen3-8B fit their card, by what is alive at the fullest moment of a step; `--plan` says so within a tenth."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

from tests.cuda.h100 import MEMORY
from tests.cuda.pretended import DEVICE
from tests.cuda.runs import batch_of, method_of, run_of, width_of
from tests.cuda.stand_ins import LOSSES_IN_PLACE, empty_flex, kernels_replaced
from tests.cuda.unknown import DeviceWithoutFloats
from torchspec.config import RunConfig, load_config
from torchspec.launch.memory import rank_memory
from torchspec.nn.logits import AS_THEY_COME
from torchspec.nn.losses import Correction, Teacher, head_losses, loss_values
from torchspec.records import Batch
from torchspec.training.build import Run
from torchspec.training.loop import Window

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*qwen3_8b*.yaml"))
QWEN3_8B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128,
)  # fmt: skip
NOT_COMPILED = ["training.compile=false"]  # which keeps more
WEIGHTS, PROMPT, GIB = 8_190_735_360, 128, 2**30
LIMIT = 70 * GIB  # the rest: what the allocator cannot use between blocks, and libraries that allocate for themselves


@pytest.fixture
def device(monkeypatch) -> DeviceWithoutFloats:
    kernels_replaced(monkeypatch, empty_flex, LOSSES_IN_PLACE)
    with torch.autograd.set_multithreading_enabled(False), DeviceWithoutFloats() as device:
        yield device


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_step_fits(device, recipe):
    """One rank holds all of the draft here; sharded over several ranks it holds less. With capture workers the target is elsewhere."""
    config = load_config(str(recipe), NOT_COMPILED)
    target = unknown(0 if config.inference.num_workers else WEIGHTS)
    run = unknown_run(config, recipe)
    ahead = unknown(config.training.prefetch_depth * config.dataset.max_length, width_of(run.method))
    held, window = device.live, Window()
    for seed in range(2):  # the second has the sums of the first
        batch = fullest_batch(run)
        window.backward(run, batch, seed, 0.0)
    print(f"{recipe.stem}: {held / GIB:.1f} GiB between steps, {device.peak / GIB:.1f} GiB at the peak")
    assert held > 12 * sum(map(torch.numel, run.model.parameters()))  # masters and two moments, in float32
    assert device.peak < LIMIT < MEMORY
    planned = sum(rank_memory(alone(config), run.method, len(batch.lengths), len(batch.ids), max(batch.lengths), DEVICE).values())
    planned += 0 if config.inference.num_workers else 2 * WEIGHTS
    assert abs(planned - device.peak) < 0.1 * device.peak, f"--plan says {planned / GIB:.1f} GiB"
    del target, ahead


@pytest.mark.parametrize("factor", [0, 256], ids=["plain", "corrected"])
def test_the_losses_take_what_the_plan_counts(device, factor):
    """Of Qwen3-8B's head and a target, beside the rows that the plan of the draft counts."""
    rows, width, size = 3000, QWEN3_8B.hidden_size, QWEN3_8B.vocab_size
    head, hidden, states = unknown(size, width), unknown(rows, width).requires_grad_(), unknown(100, width)
    correction = Correction(unknown(rows, factor).requires_grad_(), unknown(size, factor).requires_grad_()) if factor else None
    held, teacher = device.live - 2 * rows * (width + factor), Teacher(states, torch.arange(rows) % 100, AS_THEY_COME)
    head_losses(hidden, head, None, {"tv": 1.0}, teacher=teacher, correction=correction).loss.sum().backward()
    planned = 2 * loss_values(rows, width, size, laws=2, factor=factor)
    assert abs(device.peak - held - planned) < 0.03 * planned, f"{(device.peak - held) / GIB:.2f} GiB, planned {planned / GIB:.2f}"


def alone(config: RunConfig) -> RunConfig:
    """One rank, with the target elsewhere: its files are not here to be counted."""
    training, inference = config.training.model_copy(update={"num_ranks": 1}), config.inference.model_copy(update={"num_workers": 1})
    return config.model_copy(update={"training": training, "inference": inference})


def unknown(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.bfloat16, device=DEVICE)


def unknown_run(config: RunConfig, recipe: Path) -> Run:
    """After its first step: gradients are set to none, the optimizer has its moments."""
    if config.draft.method != "eagle3":
        config = load_config(str(recipe), [*NOT_COMPILED, "draft.mask_token_id=151935"])  # not looked for among all tokens
    size = (QWEN3_8B.vocab_size, QWEN3_8B.hidden_size)
    method = method_of(config, QWEN3_8B, unknown(*size), unknown(*size))
    with DEVICE:
        run = run_of(config, method, method.skeleton(), DEVICE)
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in run.optimizers:
        optimizer.step()
    run.model.zero_grad()
    return run


def fullest_batch(run: Run) -> Batch:
    training, documents = run.config.training, run.config.training.micro_batch_size
    length = min(run.config.dataset.max_length, training.max_batch_tokens // documents)
    return batch_of(run.method, (length,) * documents, PROMPT, unknown(documents * length, width_of(run.method)))
