"""The computed numbers of docs/guide.md follow from the functions of `torchspec plan` and from what an H100 measured."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from tests.cuda.runs import method_of
from torchspec.config import load_config
from torchspec.launch.measure import best_split
from torchspec.launch.memory import rank_memory

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
QWEN3_8B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128,
)  # fmt: skip
WEIGHTS = 2 * 8_190_735_360  # bytes in bfloat16
CAPTURE = 25_000  # tok/s, assumed: docs/disaggregated.md
HOURS = re.findall(r"^\| ([\d,]+) conversations, (\d) epochs, (\d) GPUs? \| ([\d.]+) h \| ([\d.]+) h \|", GUIDE, re.MULTILINE)
MEMORY = re.findall(r"^\| `(\w+_qwen3_8b_\w+)` \| (?:`([^`]*)`)? ?\| ([\d.]+) \|", GUIDE, re.MULTILINE)


def seconds_of_one() -> list[tuple[float, float]]:
    """(capture, training) of a conversation in each of the two columns."""
    lines = (ROOT / "benchmarks" / "results" / "h100-gpu_check-2.jsonl").read_text().splitlines()
    checks = {row["check"]: row for row in map(json.loads, lines)}
    measured = checks["speed compiled dflash, one shape"]["ms_per_sample"] / 1000
    return [(768 / CAPTURE, measured), (2048 / CAPTURE, 69.3e12 / (0.62 * 776e12))]


@pytest.mark.parametrize("row", HOURS, ids=" ".join)
def test_hours_follow_from_the_measured_step(row):
    conversations, epochs, devices = (int(value.replace(",", "")) for value in row[:3])
    for (capture, train), told in zip(seconds_of_one(), row[3:], strict=True):
        busy = [seconds * conversations * epochs for seconds in (capture, train)]
        workers, split = best_split(*busy, devices) if devices > 1 else (0, sum(busy))
        assert f"{split / 3600:.1f}" == told
        assert devices == 1 or workers == 3


@pytest.mark.parametrize(("recipe", "overrides", "told"), MEMORY)
def test_memory_is_the_sum_that_the_plan_prints(recipe, overrides, told):
    chosen = [] if "eagle3" in recipe else ["draft.mask_token_id=151935"]  # not looked for among all tokens
    config = load_config(str(ROOT / "configs" / f"{recipe}.yaml"), [*overrides.split(), *chosen])
    table = torch.empty(151936, 4096, dtype=torch.bfloat16, device="meta")
    method, documents = method_of(config, QWEN3_8B, table, table.clone()), config.training.micro_batch_size
    length = min(config.dataset.max_length, config.training.max_batch_tokens // documents)
    elsewhere = config.model_copy(update={"inference": config.inference.model_copy(update={"num_workers": 1})})
    parts = rank_memory(elsewhere, method, documents, documents * length, length, torch.device("cuda"))  # no file of the target is here
    total = sum(parts.values()) + (0 if config.inference.num_workers else WEIGHTS)
    assert f"{total / 2**30:.1f}" == told


def test_the_tables_are_found():
    assert len(HOURS) == 6
    assert len(MEMORY) == 8
