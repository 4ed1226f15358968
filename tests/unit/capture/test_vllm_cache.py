"""vLLM's cache of hidden states without vLLM: a prompt's rows in it, the layout of other versions, and an engine that does not fit."""

import sys

import pytest
import torch

from tests.unit.tiny import LAYERS
from torchspec.capture.base import CaptureSpec, open_capture
from torchspec.capture.vllm.cache import check_layout, prompt_states
from torchspec.errors import UserError

BLOCKS, STATES, SIZE, WIDTH = 9, 3, 4, 2


def test_a_prompts_rows_come_from_its_blocks_in_order():
    """Written slot by slot, as vLLM writes: token t lies in place t % SIZE of the block t // SIZE of its prompt."""
    rows, cache, blocks = torch.randn(10, STATES, WIDTH), torch.full((BLOCKS, STATES, SIZE, WIDTH), torch.nan), [7, 0, 4]
    for t, row in enumerate(rows):
        cache[blocks[t // SIZE], :, t % SIZE] = row
    check_layout(cache, STATES, "0.32.0")
    assert torch.equal(prompt_states(cache, blocks, len(rows)), rows)


def test_the_layout_of_an_older_version_is_named_with_the_fix():
    old = torch.zeros(BLOCKS, SIZE, STATES, WIDTH)
    sentence = (
        r"vLLM 0.28.0 keeps hidden states as \[9, 4, 3, 2\] and not as \[blocks, 3, .*needs vLLM 0.29 or newer: pip install --upgrade"
    )
    with pytest.raises(ValueError, match=sentence):
        check_layout(old, STATES, "0.28.0")


def engine(folder, version: str) -> None:
    """An installed vLLM that has the package and not what capture imports from it."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\nLLM = SamplingParams = None\n")


@pytest.fixture
def no_engine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or name.startswith("torchspec.capture.vllm.")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, r"inference.inference_engine_type=vllm needs vllm: pip install 'torchspec\[vllm\]'"),
        (
            "0.19.1",
            r"inference_engine_type=vllm: vllm 0.19.1 does not fit \(No module named 'vllm.config'\): pip install --upgrade vllm",
        ),
    ],
)
def test_an_engine_that_is_missing_or_too_old_is_one_sentence(no_engine, tiny_folder, version, sentence):
    if version is not None:
        engine(no_engine, version)
    with pytest.raises(UserError, match=sentence):
        open_capture("vllm", CaptureSpec(tiny_folder, LAYERS, torch.float32))
