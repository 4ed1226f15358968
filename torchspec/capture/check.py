"""Truth checks at the border between target and draft: each names the likely cause when it fires."""

from collections.abc import Sequence

import torch

from torchspec.capture.hf import HFCapture
from torchspec.errors import ContractError
from torchspec.records import Features, Prompt
from torchspec.target import FrozenTarget

ROUNDING = {
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
}  # relative error that another order of additions explains


@torch.inference_mode()
def check_target(oracle: HFCapture, target: FrozenTarget, prompt: Prompt) -> None:
    """Final norm + head, as this project reads them, over the last layer's output reproduce the engine's own next tokens."""
    kept = []
    hook = (
        oracle.model.get_decoder()
        .layers[-1]
        .register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    )
    try:
        logits = oracle.model(input_ids=prompt.ids.to(oracle.device)[None], use_cache=False).logits
    finally:
        hook.remove()
    check_next_tokens(target, kept[0][0], logits[0].argmax(-1), oracle.producer)


def check_next_tokens(target: FrozenTarget, last_state: torch.Tensor, engine_tokens: torch.Tensor, producer: str) -> None:
    """last_state [L, H_t] before the final norm, engine_tokens [L]: the engine's argmax after each prefix."""
    agreement = float((target.logits(last_state.to(target.head.dtype)).argmax(-1) == engine_tokens).float().mean())
    if agreement < 0.95:  # ties in bfloat16 cost a few percent at most; a wrong norm, head or layer costs far more
        raise ContractError(
            f"final norm and head over the last state agree with {producer}'s own next token on {agreement:.0%} of the positions; "
            "the likely cause is a state taken after the final norm or from the layer below, or a head that is not the target's"
        )


@torch.inference_mode()
def check_features(features: Features, oracle: HFCapture) -> None:
    """A backend's features equal hidden_states[z+1] of one plain Transformers forward; a shifted layer id is named."""
    output = oracle.model(input_ids=features.prompt.ids.to(oracle.device)[None], use_cache=False, output_hidden_states=True)
    states = output.hidden_states  # N+1 times [1, L, H_t]; the last one is normed
    for layer_id, got in zip(features.layer_ids, features.context.chunk(len(features.layer_ids), dim=-1), strict=True):
        if _error(got, states[layer_id + 1][0]) <= ROUNDING[got.dtype]:
            continue
        shifted = [z for z in range(-1, len(states) - 1) if _error(got, states[z + 1][0]) <= ROUNDING[got.dtype]]
        cause = f"they are the output of layer {shifted[0]}, so the layer-id convention is off" if shifted else "no layer's output matches"
        raise ContractError(
            f"features of layer {layer_id} captured by {features.producer} differ from Transformers by "
            f"{_error(got, states[layer_id + 1][0]):.2g} (relative); {cause}"
        )


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def capture_checks(oracle: HFCapture, target: FrozenTarget, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        check_target(oracle, target, prompt)
        check_features(oracle.capture(prompt), oracle)
