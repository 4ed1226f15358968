"""What the documentation says is what the package has."""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.families import FAMILIES, REMOTE
from tests.unit.tiny import LAYERS, random_prompt
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import check_features
from torchspec.config import RunConfig
from torchspec.records import Prompt

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_is_up_to_date():
    write = runpy.run_path(str(ROOT / "scripts" / "write_configuration.py"))
    assert write["FILE"].read_text() == write["document"](), "run python scripts/write_configuration.py"


def test_the_page_of_targets_is_up_to_date():
    write = runpy.run_path(str(ROOT / "scripts" / "write_targets.py"))
    assert write["FILE"].read_text() == write["document"](), "run python -m scripts.write_targets"


def test_every_family_is_on_the_page_and_an_engine_knows_most_of_their_architectures():
    page, engines = (ROOT / "docs" / "targets.md").read_text(), json.loads((ROOT / "docs" / "engines.json").read_text())
    for name, family in FAMILIES.items():
        assert f"| `{name}` | {family.examples} |" in page
    known = {architecture for engine in engines.values() for architecture in engine["architectures"]}
    unknown = {family.architecture for family in FAMILIES.values()} - known
    assert unknown == {"MinistralForCausalLM", "HeliumForCausalLM"}  # a name that Transformers alone uses would be a dash everywhere


def test_models_with_code_of_their_own_have_none_in_transformers():
    assert not REMOTE.keys() & CONFIG_MAPPING_NAMES.keys()


@pytest.mark.parametrize(
    ("engine", "architecture", "expected"),
    [
        ("vllm", "Gemma3ForCausalLM", {"model": "gemma3", "states": False}),
        ("vllm", "Qwen3_5ForConditionalGeneration", {"model": "qwen3_5", "states": True}),  # by inheritance
        ("vllm", "Olmo2ForCausalLM", {"model": "transformers", "states": True}),
        ("sglang", "Qwen2ForCausalLM", {"model": "qwen2", "dflash": False, "eagle3": True}),
        ("sglang", "Qwen3_5ForConditionalGeneration", {"model": "qwen3_5", "dflash": True, "eagle3": True}),
        ("llama.cpp", "GptOssForCausalLM", {"model": "openai_moe", "states": True}),  # another name in the converter than in the graphs
        ("llama.cpp", "HunYuanDenseV1ForCausalLM", {"model": "hunyuan_dense", "states": True}),  # by another model's graph
        ("llama.cpp", "DeepseekV3ForCausalLM", {"model": "deepseek2", "states": False}),
    ],
)
def test_what_was_read_of_engines_is_what_a_person_reads_there(engine, architecture, expected):
    engines = json.loads((ROOT / "docs" / "engines.json").read_text())
    assert engines[engine]["architectures"][architecture] == expected


def test_every_key_of_the_config_is_on_the_page():
    """Oracle: a whole config, key by key."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    config = RunConfig(output_dir="o", model={"target_model_path": "t"}, dataset={"train_data_path": "d"})
    keys = list(leaves(config))
    assert len(keys) > 40
    for key in keys:
        assert f"| `{key}` |" in page


def leaves(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for key, value in section:
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_backend_of_the_documentation_conforms(tiny_folder, tiny_oracle):
    page = (ROOT / "docs" / "adding_a_backend.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    backend = names["PlainCapture"](CaptureSpec(tiny_folder, LAYERS, torch.float32))
    prompt = Prompt(0, random_prompt(0, 20), torch.arange(20) > 5)
    check_features(backend.capture(prompt), tiny_oracle)
    backend.verify([prompt])
