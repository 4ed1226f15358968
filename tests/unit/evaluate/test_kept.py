"""What is taken over from an earlier evaluation: rows of the very same making, whole ones, and nothing else."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.importers.foreign import DFLASH_SHAPES, ZLAB, tensors, write
from tests.unit.tiny import write_target
from torchspec.decode.pair import load_pair
from torchspec.errors import ContractError, UserError
from torchspec.evaluate.run import Settings, _made_from, _protocol, evaluate_draft
from torchspec.files.kept import Kept
from torchspec.records import Prompt
from torchspec.report.results import PARTS, read_results, write_results

PROMPT = Prompt(0, torch.arange(5, 11), torch.arange(6) > 2)


def test_what_was_measured_is_kept_for_the_same_protocol_only(tmp_path):
    measured, file = [], tmp_path / "measured.jsonl"

    def measure() -> dict:
        measured.append(1)
        return {"tau": 1.5}

    assert Kept(file, {"temperature": 0}).get_or("a", measure) == {"tau": 1.5}
    file.write_text(file.read_text() + '{"key": "b", "val')  # cut by a kill
    again = Kept(file, {"temperature": 0})
    assert again.get_or("a", measure) == {"tau": 1.5} and len(measured) == 1
    again.get_or("b", measure)
    assert len(measured) == 2 and len(file.read_text().splitlines()) == 3
    Kept(file, {"temperature": 1}).get_or("a", measure)
    assert len(measured) == 3 and len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["[1, 2]\n", "\0\0\0\0\n", '{"key": "a"}\n', '{"key": "a", "val'])
def test_a_line_that_is_no_row_is_measured_again(tmp_path, line):
    file = tmp_path / "measured.jsonl"
    Kept(file, {}).get_or("b", lambda: 1)
    file.write_text(file.read_text() + line)
    assert Kept(file, {}).rows == {"b": 1} and len(file.read_text().splitlines()) == 2


def test_a_row_depends_on_everything_that_it_was_made_from(tmp_path):
    """Every change of one file or setting makes another key, and undoing it the first one again."""
    draft, target = write(tmp_path / "draft", ZLAB, tensors(DFLASH_SHAPES)), write_target(tmp_path / "target")
    pair, settings = load_pair(draft, str(target), "float32", "cpu", False), Settings(decode=0, max_new_tokens=8)

    opened = {"data": SimpleNamespace(manifest=SimpleNamespace(thinking=None, template_hash="hash"))}

    def made(settings=settings, prompt=PROMPT) -> dict:
        return _made_from(pair, _protocol(pair, opened, {"data": [prompt]}, settings), settings)

    first = made()
    for file, change in [
        (draft / "config.json", lambda text: text.replace(b"10000.0", b"20000.0") + b" "),
        (draft / "model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (target / "config.json", lambda text: text + b" "),
        (target / "model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (target / "generation_config.json", lambda text: text + b" "),
    ]:
        before = file.read_bytes()
        file.write_bytes(change(before))
        assert made() != first, file
        file.write_bytes(before)
        assert made() == first
    for change in ({"seed": 1}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"decode": 1}, {"batch_size": 2}):
        assert made(replace(settings, **change)) != first
    assert made(prompt=replace(PROMPT, ids=PROMPT.ids.flip(0))) != first
    assert made(prompt=replace(PROMPT, loss_mask=torch.arange(6) > 3)) != first  # another part of the same text is the answer
    assert made(prompt=replace(PROMPT, index=5)) == first
    for out in (draft, target):
        with pytest.raises(UserError, match="is the folder of what is measured"):
            evaluate_draft(pair, {}, out, settings)


@pytest.mark.parametrize("name", ["norm.weight", "layers.1.mlp.up_proj.weight"])
def test_a_draft_with_a_weight_that_is_no_number_is_refused(tmp_path, tiny_folder, name):
    weights = tensors(DFLASH_SHAPES)
    weights[name].view(-1)[3] = float("nan")
    draft = write(tmp_path, ZLAB, weights)
    with pytest.raises(ContractError, match=f"model.safetensors: NaN or infinity in {name};"):
        load_pair(draft, str(tiny_folder), "float32", "cpu", False)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.4.mlp.up_proj.weight"])
def test_a_target_with_a_weight_that_is_no_number_is_refused(tmp_path, name):
    draft, target = write(tmp_path / "draft", ZLAB, tensors(DFLASH_SHAPES)), write_target(tmp_path / "target")
    weights = load_file(target / "model.safetensors")
    weights[name].view(-1)[3] = float("inf")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(ContractError, match=f"target.*: NaN or infinity in {name};"):
        load_pair(draft, str(target), "float32", "cpu", False)


def test_results_that_are_no_numbers_are_neither_written_nor_read(tmp_path):
    results, file = dict.fromkeys(PARTS, {}) | {"offline": {"tau": 1.5}, "break_even": [{"tau": 2.0}]}, tmp_path / "results.json"
    write_results(results, file)
    before = file.read_bytes()
    assert read_results(file) == results
    broken = results | {"break_even": [{"tau": float("nan")}]}
    with pytest.raises(ContractError, match="break_even.0.tau came out as NaN or infinity"):
        write_results(broken, file)
    assert file.read_bytes() == before
    file.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="holds numbers that are none .break_even.0.tau.; evaluate again"):
        read_results(file)
