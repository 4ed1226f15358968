"""The model card and the commands that serve a draft. Oracles: the hub's own reader of cards; what the checks say an engine serves."""

import json
import shlex

import pytest
from huggingface_hub import ModelCard

from tests.unit.export.test_hf_export import save_checkpoint
from tests.unit.methods.cases import CASES
from tests.unit.tiny import FACTS, B, lively
from torchspec.export.card import card
from torchspec.export.commands import serve_commands
from torchspec.export.hf import export_checkpoint
from torchspec.methods.base import traps_of

EVALUATION = {"kind": "eval", "step": 7, "tau": 1.625, "tau_interval": [1.5, 1.75], "steps": 40}
RUN = {"model": {"target_model_path": "Qwen/Qwen3-8B", "dtype": "bfloat16"}, "evaluation": {"max_samples": 64}}
PROVENANCE = {"torchspec": "1", "method": "dflash", "data": FACTS, "run": RUN, "state": {"step": 7, "tokens": 1234}}


@pytest.fixture(scope="module")
def exported(tiny_method, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    rows = [{**EVALUATION, "step": 4}, EVALUATION, {"kind": "train", "step": 7}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "ev')  # killed while it wrote
    checkpoint = save_checkpoint(folder / "checkpoints", tiny_method, lively(tiny_method.skeleton()), "float32")
    return export_checkpoint(checkpoint, folder / "draft")


def test_the_hub_reads_what_the_draft_is(exported, tiny_folder):
    data = ModelCard.load(exported / "README.md").data.to_dict()
    assert data["base_model"] == tiny_folder.name and data["license"] == "other" and "speculative-decoding" in data["tags"]
    protocol = "greedy, offline, at most 64 held-out conversations of beef, float32, thinking off"
    assert data["torchspec"] == {
        "method": "dflash", "draft_tokens": B - 1, "data_fingerprint": "f00d", "tau": 1.625, "tau_interval_95": [1.5, 1.75],
        "protocol": protocol,
    }  # fmt: skip


def test_the_page_says_it_in_words_with_the_commands(exported):
    words = ModelCard.load(exported / "README.md").text
    assert "τ = 1.62 [1.50, 1.75] tokens per target forward" in words and "in brackets" in words and "put its hub id there" in words
    assert "the target's licence says" in words and "{" + "{" not in words
    for start in (
        "vllm serve TARGET ",
        "python -m sglang.launch_server --model-path TARGET ",
        "llama-server --model target.gguf ",
        "torchspec generate ",
    ):
        assert f"\n{start}" in words


def test_what_was_not_measured_is_not_said():
    words = card(15, PROVENANCE, None, {"vllm": "vllm serve"})
    data = ModelCard(words).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-8B" and "put its hub id there" not in words
    assert data["torchspec"].keys() == {"method", "draft_tokens", "data_fingerprint"} and "Not measured while it was trained" in words


@pytest.mark.parametrize("name", CASES)
def test_the_commands_are_of_the_engines_that_serve_it(name, tiny_target):
    method = CASES[name].make(tiny_target)
    commands = serve_commands(method.config, "DRAFT", "TARGET")
    traps = traps_of(type(method), method.config, None)
    assert commands.keys() == {engine for engine, found in traps.items() if not found} | {"transformers"}
    assert type(method).draft_tokens(method.config) == method.block_size - 1
    for engine, line in commands.items():
        words = shlex.split(line)
        assert ("draft.gguf" if engine == "llamacpp" else "DRAFT") in " ".join(words)


def test_the_line_of_the_readme_is_what_is_printed(tiny_method):
    wanted = json.loads(shlex.split(serve_commands(tiny_method.config, "DRAFT", "TARGET")["vllm"])[-1])
    assert wanted == {"method": "dflash", "model": "DRAFT", "num_speculative_tokens": B - 1}
