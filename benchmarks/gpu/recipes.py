"""Does each Qwen3-8B recipe fit into this GPU? One optimizer step at its largest micro-batch, beside as much memory as the target takes."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from gpu.place import GIB, Place
from gpu.steps import TINY, new
from train_step import SHAPES

from torchspec.config import RunConfig
from torchspec.launch.memory import rank_memory

CONFIGS = Path(__file__).parents[2] / "configs"
TARGET_BYTES = 16_400_000_000  # Qwen3-8B in bfloat16, as the capture holds it
SECOND_TABLE = 151_936 * 4096 * 2  # embedding and head differ; the benchmark's target has one table for both


def memory(place: Place, method: str) -> dict:
    config = RunConfig.model_validate_json(json.dumps(yaml.safe_load((CONFIGS / f"hf_qwen3_8b_{method}.yaml").read_text())))
    training, length = config.training, config.dataset.max_length
    documents = min(training.micro_batch_size, training.max_batch_tokens // length)
    shape = replace(SHAPES["qwen3-8b-512"], anchors=config.draft.num_anchors, lengths=(length,) * documents, **_draft(config))
    ours = new(place, place.pick(shape, TINY), method, compile=True)
    per_sample = length * len(ours.method.layer_ids) * shape.hidden * 2
    ahead = training.prefetch_depth * per_sample  # captured, not yet trained on
    ballast = torch.empty(place.pick(TARGET_BYTES + SECOND_TABLE + ahead, 1), dtype=torch.uint8, device=place.device)
    elsewhere = config.model_copy(update={"inference": config.inference.model_copy(update={"num_workers": 1})})  # the ballast is its target
    parts = rank_memory(elsewhere, ours.method, documents, documents * length, length, place.device)
    planned = (sum(parts.values()) + TARGET_BYTES + SECOND_TABLE) / GIB
    ours.step(0)  # the optimizer's moments exist from here on
    place.forget_peak()
    for seed in range(training.draft_accumulation_steps):
        ours.gradients(seed)
    ours.update()
    place.synchronize()
    row = {
        "ok": None,
        "planned_gib": planned,
        "parts_gib": {name: size / GIB for name, size in parts.items()},
        "documents": documents,
        "tokens": sum(ours.shape.lengths),
        "beside_gib": ballast.numel() / GIB,
        **place.peak(),
    }
    if not place.cuda:
        return row
    expandable = any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
    row["ok"] = abs(row["peak_gib"] - planned) <= 0.1 * planned
    return row | {"free_gib": torch.cuda.mem_get_info()[0] / GIB, "expandable_segments": expandable}


def _draft(config: RunConfig) -> dict:
    draft = config.draft
    if draft.method == "dflash":
        return {"layers": draft.num_layers, "block": draft.block_size}
    return {"block": draft.ttt_length + 1, "draft_vocabulary": draft.draft_vocab_size}
