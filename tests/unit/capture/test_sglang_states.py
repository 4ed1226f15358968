"""What SGLang's models do differently, without SGLang: both forms of their states, and which convention a model is asked by."""

import sys

import pytest
import torch

from torchspec.capture.sglang.states import convention, joined
from torchspec.errors import UserError

MODELS = """
class Both:
    def set_dflash_layers_to_capture(self, ids): ...
    def set_eagle3_layers_to_capture(self, ids): ...


class LlamaForCausalLM(Both):
    pass


class Qwen2ForCausalLM(object):
    def set_eagle3_layers_to_capture(self, ids): ...


class BloomForCausalLM(object):
    pass
"""


@pytest.mark.parametrize("asked", [1, 2, 5])
@pytest.mark.parametrize("with_last", [False, True])
def test_a_list_of_layers_and_one_packed_tensor_are_the_same_features(asked, with_last):
    """Oracle: the columns themselves; layer k of token t holds the numbers t, k, 0..H-1 and nothing else does."""
    tokens, width = 7, 3
    values = torch.arange(tokens * (asked + 1) * width, dtype=torch.bfloat16).view(tokens, asked + 1, width)
    layers, last = list(values[:, :asked].unbind(1)), values[:, asked]
    expected = values.flatten(1)[:, : (asked + with_last) * width]
    for form in (layers, torch.cat(layers, dim=-1)):
        assert torch.equal(joined(form, last, asked + with_last), expected)


@pytest.fixture
def models(tmp_path, monkeypatch) -> str:
    package = tmp_path / "some_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "all.py").write_text(MODELS)
    (package / "broken.py").write_text("raise ImportError('a kernel that this machine lacks')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package.name
    for name in [name for name in sys.modules if name.split(".")[0] == package.name]:
        del sys.modules[name]


def test_a_model_is_asked_by_the_convention_that_it_has(models):
    asked = {name: convention(name, models) for name in ("LlamaForCausalLM", "Qwen2ForCausalLM", "OfAnotherPackage", "")}
    assert asked == {"LlamaForCausalLM": "DFLASH", "Qwen2ForCausalLM": "EAGLE3", "OfAnotherPackage": "DFLASH", "": "DFLASH"}
    with pytest.raises(UserError, match="SGLang's BloomForCausalLM hands out no layers' states; set inference.inference_engine_type to"):
        convention("BloomForCausalLM", models)
