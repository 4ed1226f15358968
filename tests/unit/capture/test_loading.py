"""Capture of targets that are not built like Llama: vision-language wrappers by their text, hybrids, decoders under other names."""

import pytest
import torch

from tests.unit.target.families import write_family
from tests.unit.tiny import random_prompt
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.errors import UserError
from torchspec.records import Prompt


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "bamba", "llama4_text"])
def test_padded_prompts_have_the_features_of_each_alone(tmp_path, family):
    """Of all families one by one: test_families.py."""
    oracle = HFCapture(CaptureSpec(write_family(family, tmp_path / "target"), (0, 2), torch.float32))
    prompts = [Prompt(i, random_prompt(i, length), torch.arange(length) > 5) for i, length in enumerate((20, 21))]
    oracle.verify(prompts)
    for features in oracle.capture_batch(prompts):  # one forward, padded
        with torch.inference_mode():
            states = oracle.model(input_ids=features.prompt.ids[None], use_cache=False, output_hidden_states=True).hidden_states
        torch.testing.assert_close(features.context, torch.cat((states[1][0], states[3][0]), dim=-1), rtol=1e-4, atol=1e-4)


def test_layers_that_hand_on_several_rows_per_token_are_refused(tmp_path):
    oracle = HFCapture(CaptureSpec(write_family("gemma3n_text", tmp_path / "target"), (0, 2), torch.float32))
    with pytest.raises(UserError, match=r"layers of Gemma3nForCausalLM hand on states of shape \[4, 1, 20, 32\]"):
        oracle.features(random_prompt(0, 20)[None])


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="nothing is packed here")
def test_a_model_that_reads_its_own_matrices_is_captured_in_bfloat16(tmp_path):
    oracle = HFCapture(CaptureSpec(write_family("jamba", tmp_path / "target"), (0, 2), torch.bfloat16))
    oracle.verify([Prompt(0, random_prompt(0, 20), torch.arange(20) > 5)])
