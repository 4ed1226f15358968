"""Oracle: the lengths that the models' own cards state for these configs."""

import json

import pytest

from torchspec.target.language_config import positions

CONFIGS = {
    "Qwen3-8B": ({"max_position_embeddings": 40960, "rope_scaling": None}, 40960),
    "Qwen3-8B with YaRN": (
        {"max_position_embeddings": 40960, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        131072,
    ),
    "Llama-3.1": ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
    "a wrapper": ({"text_config": {"max_position_embeddings": 4096}}, 4096),
    "linear": ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
    "null factor": ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": None}}, 2048),
    "none": ({}, None),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_positions(config, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert positions(tmp_path) == expected
