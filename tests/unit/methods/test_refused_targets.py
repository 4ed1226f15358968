"""Targets and drafts that would be computed otherwise somewhere, in silence: each is one sentence, before anything is trained."""

import pytest

from tests.unit.tiny import make_eagle3, make_method
from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.methods.base import check_served
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.format import sglang_traps


def test_one_captured_layer_is_refused_with_the_config():
    with pytest.raises(ValueError, match="names one layer"):
        Eagle3Config(target_layer_ids=(3,))


def test_a_run_that_serves_with_sglang_refuses_what_sglang_ignores():
    values = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d", "eval_data_path": "e"}}
    draft = {"method": "eagle3", "norm_before_residual": True}
    with pytest.raises(ValueError, match="evaluation.served=sglang ignores draft.norm_before_residual"):
        RunConfig(**values, draft=draft, evaluation={"served": "sglang"})
    assert RunConfig(**values, draft=draft, evaluation={"served": "vllm"}).draft.norm_before_residual


@pytest.mark.parametrize(
    ("target", "first", "shifted"),
    [("deepseek_v3", 2, True), ("deepseek_v3", 1, False), ("kimi_k2", 0, True), ("glm4_moe_lite", 2, True), ("llama", 2, False)],
)
def test_layer_ids_that_sglang_would_shift(tiny_target, target, first, shifted):
    config = make_eagle3(tiny_target, target_layer_ids=(first, 3)).config
    assert bool(sglang_traps(config, target)) == shifted
    assert bool(sglang_traps(config, None)) == (first != 1)  # at export, where nobody knows the target's type


def test_a_draft_that_sglang_computes_otherwise_is_not_served_there(tiny_target):
    method = make_eagle3(tiny_target, norm_before_residual=True)
    with pytest.raises(UserError, match="cannot be served with sglang: SGLang ignores norm_before_residual; serve it with vllm"):
        check_served("sglang", method)
    check_served("vllm", method)
    check_served("sglang", make_eagle3(tiny_target))
    check_served("sglang", make_method(tiny_target))
