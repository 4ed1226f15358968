"""Where answers end. Oracle: the rules of the two engines, written out case by case (torchspec/chat/stops.py names their sources)."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.chat.format import ChatFormat
from torchspec.chat.stops import stop_ids
from torchspec.decode import sequence as decode
from torchspec.regenerate.turns import Sampling, Turns

OWN = 2  # <|im_end|>, the tokenizer's eos


@pytest.fixture
def tokenizer(small_folder):
    return AutoTokenizer.from_pretrained(small_folder)


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        ({"eos_token_id": OWN}, {"eos_token_id": OWN}, {OWN}),
        ({"eos_token_id": 0}, {"eos_token_id": 0}, {0, OWN}),  # as after many fine-tunings: <|endoftext|>
        ({"eos_token_id": 0}, {"eos_token_id": [5, 6]}, {0, 5, 6, OWN}),
        ({"eos_token_id": [7, 8]}, None, {7, 8, OWN}),
        ({"text_config": {"eos_token_id": 9}}, {"eos_token_id": None}, {9, OWN}),
        ({"text_config": None}, {}, {OWN}),
        (None, None, {OWN}),
    ],
)
def test_every_place_that_an_engine_reads(tokenizer, tmp_path, config, generation, stops):
    for name, values in (("config.json", config), ("generation_config.json", generation)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    assert stop_ids(tmp_path, tokenizer) == stops


def test_the_list_that_sglang_adds(tokenizer, tmp_path):
    tokenizer.add_tokens(["<|eom_id|>", "<|eot_id|>"], special_tokens=True)
    assert stop_ids(tmp_path, tokenizer) == {OWN, tokenizer.convert_tokens_to_ids("<|eom_id|>")}


def test_a_tokenizer_without_eos(tokenizer, tmp_path):
    tokenizer.eos_token = None
    assert stop_ids(tmp_path, tokenizer) == set()


def test_training_regeneration_and_evaluation_stop_at_the_same_ids(tiny_folder, small_folder, tmp_path):
    for file in [*tiny_folder.iterdir(), *(f for f in small_folder.iterdir() if "token" in f.name or "template" in f.name)]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    capture, chat = HFCapture(CaptureSpec(tmp_path, (1,), torch.float32)), ChatFormat.load(tmp_path, None, False)
    assert chat.stop_ids == decode.stop_ids(capture) == Turns(chat, Sampling(1, (0.0,), 0)).stop == {0, 2, 5}
