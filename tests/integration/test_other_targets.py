"""A target with recurrent layers that also sees, and a Gemma, through every command that makes and uses a draft."""

import json

import pytest

from tests.families import FAMILIES, write_family
from tests.integration.test_cli import torchspec
from tests.tiny import DFLASH, EAGLE3, recipe, write_chats

CASES = [("qwen3_5", {**DFLASH, "loss_negatives": None}), ("gemma3_text", {**EAGLE3, "draft_vocab_size": 40})]


def succeeds(*arguments) -> str:
    result = torchspec(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(("name", "draft"), CASES, ids=["qwen3_5-dflash", "gemma3_text-eagle3"])
def test_a_draft_is_trained_exported_evaluated_and_used(tmp_path, name, draft):
    """`eval` fails by itself where the decoded text is not the target's own."""
    target = write_family(FAMILIES[name], tmp_path / "target")
    train, held_out = write_chats(tmp_path / "train.jsonl", 12), write_chats(tmp_path / "heldout.jsonl", 4, first=100)
    recipe(tmp_path / "run.yaml", target, train, held_out, draft, max_steps=4)
    succeeds("train", "-c", tmp_path / "run.yaml")
    succeeds("export", "--checkpoint", tmp_path / "run" / "checkpoints", "-o", tmp_path / "draft")
    pair = ("-d", tmp_path / "draft", "-t", target, "--dtype", "float32", "--max-new-tokens", "12")
    succeeds("eval", *pair, "--data", held_out, "--decode", "2", "-o", tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["decode"]["identical"] == 2 and results["decode"]["mismatches"] == 0
    assert "tokens, τ" in succeeds("generate", "Well?", *pair)
