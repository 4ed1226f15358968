"""The real target in bfloat16: its first token has states a hundred times larger than the others, which no random model shows."""

import pytest
import torch
from transformers import AutoTokenizer

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.records import Prompt
from torchspec.target.frozen import FrozenTarget

REAL_LAYERS = (1, 8, 15, 21, 27)
TOKENS = 64  # a CPU without bfloat16 computes slowly in it
TURNS = [
    {"role": "user", "content": "Explain in three sentences why the sky is blue."},
    {
        "role": "assistant",
        "content": "The sky looks blue because air scatters short waves of light much more than long ones. Sunlight holds every "
        "colour, and the blue part of it reaches us from all sides. At dusk the light takes a longer way, the blue is gone, and "
        "red remains.",
    },
]


@pytest.fixture(scope="session")
def real_oracle(target_folder) -> HFCapture:
    return HFCapture(CaptureSpec(target_folder, REAL_LAYERS, torch.bfloat16))


@pytest.fixture(scope="session")
def real_target(target_folder) -> FrozenTarget:
    return FrozenTarget.load(target_folder, torch.bfloat16)


@pytest.fixture(scope="session")
def real_prompt(target_folder) -> Prompt:
    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    ids = torch.tensor(tokenizer(tokenizer.apply_chat_template(TURNS, tokenize=False), add_special_tokens=False).input_ids[:TOKENS])
    return Prompt(0, ids, torch.arange(len(ids)) > 30)


@pytest.fixture(scope="session")
def real_run(real_oracle, real_prompt) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """One plain Transformers forward: hidden_states, N+1 times [L, H_t], the last one behind the final norm; the last layer's output
    before it [L, H_t]; the engine's own logits [L, V]."""
    kept = []
    hook = real_oracle.model.get_decoder().layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.inference_mode():
        output = real_oracle.model(input_ids=real_prompt.ids[None], use_cache=False, output_hidden_states=True)
    hook.remove()
    last = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return tuple(state[0] for state in output.hidden_states), last.view(len(real_prompt.ids), -1), output.logits[0]


@pytest.fixture(scope="session")
def real_states(real_run) -> tuple[torch.Tensor, ...]:
    return real_run[0]
