"""Truth checks at the border between target and draft: each names the likely cause when it fires."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from torchspec.capture.base import CaptureSpec
from torchspec.errors import EngineMismatch
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget
from torchspec.target.model import decoder_of

CHECK_EVERY = 1000  # prompts. One product with the head of Qwen3-8B is 190 ms of a core, and an engine captures 45 prompts in a second

# Largest relative error of a token's state that another order of additions explains. Token by token, since the first token of a
# text is a hundred times larger than the others in real targets and would hide them all. Seen in bfloat16: 0.023 with vLLM, 0.08 to 0.13
# with SGLang from CPU to CPU; a layer off by one: 0.29.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.19, torch.float16: 1.5e-2}

# Largest difference of a position's log-probabilities, as a share of its logits, that roundings explain: both come from one state by the
# same operations, so up to eight of half a unit in the last place. A forgotten scale of Granite's is 0.8, a norm off by one far more.
LAW_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2**-5, torch.float16: 2**-8}


States = tuple[torch.Tensor, ...]  # the embedding's and every layer's, before any norm: N+1 times [L, H_t]


class Oracle(Protocol):
    """The target as Transformers runs it in this process."""

    model: PreTrainedModel
    device: torch.device
    producer: str

    def capture(self, prompt: Prompt) -> Features: ...


def _run(oracle: Oracle, prompt: Prompt) -> tuple[torch.Tensor, States]:
    """One plain forward -> logits [L, V] and states. The last layer's comes from a hook: HF's own has passed the final norm."""
    kept, (_, layers) = [], decoder_of(oracle.model)
    hook = layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    try:
        output = oracle.model(input_ids=prompt.ids.to(oracle.device)[None], use_cache=False, output_hidden_states=True)
    finally:
        hook.remove()
    return output.logits[0], tuple(state[0] for state in (*output.hidden_states[:-1], kept[0]))


@torch.inference_mode()
def check_target(oracle: Oracle, target: FrozenTarget, prompt: Prompt) -> None:
    """Final norm, head and law of the logits, as this project reads them, over the last layer's output give the engine's own law."""
    logits, states = _run(oracle, prompt)
    check_law(target, states[-1], logits, oracle.producer)


def check_law(target: FrozenTarget, last_state: torch.Tensor, logits: torch.Tensor, producer: str) -> None:
    """last_state [L, H_t] before the final norm, logits [L, V]: the engine's own after each prefix."""
    ours, theirs = target.logits(last_state.to(target.head.dtype)).log_softmax(-1, torch.float32), logits.log_softmax(-1, torch.float32)
    error = float(((ours - theirs).norm(dim=-1) / logits.float().norm(dim=-1)).max())
    if error > LAW_ROUNDING[target.head.dtype]:
        raise EngineMismatch(
            f"final norm and head over the last state give log-probabilities that differ from {producer}'s own by {error:.2g} (relative); "
            f"the likely cause is {_cause(ours, theirs)}"
        )


def _cause(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Of two laws [L, V] that differ."""
    agreement = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    if agreement < 0.95:  # ties in bfloat16 cost a few percent at most; a wrong norm, head or layer costs far more
        return (
            "a state taken after the final norm or from the layer below, or a norm or head that is not the target's: "
            f"{agreement:.0%} of the most likely tokens agree"
        )
    x, y = (law - law.mean(-1, keepdim=True) for law in (ours, theirs))
    scale = float((x * y).sum() / (x * x).sum())
    left = float((y - scale * x).norm() / y.norm())
    if left < 0.02:
        return f"a scale of the logits: the engine's are {scale:.3g} times ours"
    return "a cap of the logits, or a final norm that is slightly another: the most likely tokens agree, and no scale explains the rest"


class Rounds:
    """Counts a running engine's prompts: `due` once in CHECK_EVERY."""

    def __init__(self):
        self.prompts = 0

    def due(self, more: int) -> bool:
        before, self.prompts = self.prompts // CHECK_EVERY, self.prompts + more
        return self.prompts // CHECK_EVERY > before


class NextTokenCheck:
    """For engines that give states and one next token per prompt: the share of agreement among the last compared prompts must hold.

    A wrong norm, head or layer id agrees with almost no token; ties of two logits cost a few percent. The head is multiplied on the
    host, whose files are mapped and not copied: the devices belong to the engine.
    """

    def __init__(self, spec: CaptureSpec, producer: str):
        self.spec, self.producer = spec, producer
        self.recent: deque[bool] = deque(maxlen=32)
        self.rounds = Rounds()
        self.lock = threading.Lock()  # several threads ask a server

    def watch(self, last_states: list[torch.Tensor], engine_tokens: list[int]) -> None:
        """One prompt in CHECK_EVERY; after one that disagrees, one of each micro-batch until they agree again, so that 32 decide soon."""
        with self.lock:
            doubtful = bool(self.recent) and not self.recent[-1]
            if self.rounds.due(len(engine_tokens)) or doubtful:
                self.compare(last_states[:1], engine_tokens[:1])
                if len(self.recent) == self.recent.maxlen:
                    self.conclude()

    @torch.inference_mode()
    def compare(self, last_states: list[torch.Tensor], engine_tokens: list[int]) -> None:
        """last_states, N times [H_t]: output of the last layer for a prompt's last token, before the final norm."""
        target = self.spec.frozen(torch.device("cpu"))
        own = target.logits(torch.stack(last_states).to(target.head)).argmax(-1)
        self.recent += [mine == theirs for mine, theirs in zip(own.tolist(), engine_tokens, strict=True)]

    def conclude(self) -> None:
        agreement = sum(self.recent) / len(self.recent)
        if agreement < 0.75:
            raise EngineMismatch(
                f"final norm and head over the last state agree with {self.producer}'s own next token for {agreement:.0%} of the last "
                f"{len(self.recent)} prompts compared; the likely cause is a layer id that is off by one, or a state taken after the "
                "final norm"
            )


@torch.inference_mode()
def check_features(features: Features, oracle: Oracle) -> None:
    """A backend's features equal hidden_states[z+1] of one plain Transformers forward; a shifted layer id is named."""
    compare_features(features, _run(oracle, features.prompt)[1])


def compare_features(features: Features, states: States) -> None:
    """The claimed layer's output is within ROUNDING, and no other layer's is nearer: a deep target changes little from layer to layer."""
    for layer_id, got in zip(features.layer_ids, features.context.chunk(len(features.layer_ids), dim=-1), strict=True):
        errors = {z: _error(got, states[z + 1]) for z in range(-1, len(states) - 1)}
        nearest = min(errors, key=errors.__getitem__)
        explained = errors[nearest] <= ROUNDING[got.dtype]
        if explained and errors[layer_id] == errors[nearest]:
            continue
        cause = f"they are the output of layer {nearest}, so the layer-id convention is off" if explained else "no layer's output matches"
        raise EngineMismatch(
            f"features of layer {layer_id} captured by {features.producer} differ from Transformers by "
            f"{errors[layer_id]:.2g} (relative); {cause}"
        )


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    difference, size = (torch.linalg.vector_norm(x, dim=-1) for x in (got.float() - expected.float(), expected.float()))
    return float((difference / size).max())


@torch.inference_mode()
def capture_checks(oracle: Oracle, target: FrozenTarget, prompts: Sequence[Prompt]) -> None:
    """Both, with one plain forward of each prompt."""
    for prompt in prompts:
        logits, states = _run(oracle, prompt)
        check_law(target, states[-1], logits, oracle.producer)
        del logits  # of a whole vocabulary
        compare_features(oracle.capture(prompt), states)
