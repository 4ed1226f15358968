"""The target in this process, with Transformers: capture for training, and the cached steps of decoding. The oracle for other backends."""

from collections.abc import Sequence
from functools import cached_property

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import Rounds, capture_checks
from torchspec.capture.reading import RecurrentReading
from torchspec.capture.state import States, attention_alone, new_cache, put_back, states
from torchspec.errors import UserError
from torchspec.files.finite import check_finite
from torchspec.nn.packed import pack_linears
from torchspec.records import Features, Prompt
from torchspec.target.model import decoder_of, load_model

MOST_PADDING = 0.125


class _LastLayerReached(Exception):
    """Ends a capture forward: layers above the highest captured one, the final norm and the head are not needed."""


class HFCapture:
    """K captured layers of width H_t; feature of layer z = output of decoder layer z = HF hidden_states[z+1], before any norm."""

    def __init__(self, spec: CaptureSpec):
        folder, layer_ids = spec.folder, spec.layer_ids
        self.spec, self.layer_ids = spec, layer_ids
        self.producer = f"transformers {transformers.__version__} {str(spec.dtype).removeprefix('torch.')}"
        self.model = load_model(folder, spec.dtype, spec.trust_remote_code)
        check_finite(dict(self.model.named_parameters()), f"target {folder} in {spec.dtype}", "fetch it again")
        pack_linears(self.model.to(spec.device).eval().requires_grad_(False))
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length: 25 ms for each step of a growing sequence
        self.device = self.model.device
        self.decoder, layers = decoder_of(self.model)
        if not layer_ids or max(layer_ids) >= len(layers):
            raise UserError(f"layer ids {list(layer_ids)} do not fit target {folder}, which has layers 0..{len(layers) - 1}")
        self.rounds: Rounds | None = None  # of checks, once `verify` has made the first
        self._states: dict[int, Tensor] = {}
        self._stop_at: int | None = None
        for layer_id in layer_ids:
            layers[layer_id].register_forward_hook(self._hook(layer_id))

    def _hook(self, layer_id: int):
        def keep(_module, _inputs, output):
            state = output[0] if isinstance(output, tuple) else output
            if state.dim() != 3:
                raise UserError(
                    f"target {self.spec.folder}: layers of {type(self.model).__name__} hand on states of shape {list(state.shape)}, "
                    "where drafts read one row per token; this architecture is not supported"
                )
            self._states[layer_id] = state  # [N, L, H_t]
            if layer_id == self._stop_at:
                raise _LastLayerReached

        return keep

    def _context(self) -> Tensor:
        """The states that the hooks kept, [N, L, K*H_t]."""
        return torch.cat([self._states[layer_id] for layer_id in self.layer_ids], dim=-1)

    @torch.inference_mode()
    def features(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, L, K*H_t], running no layer above the last captured one."""
        self._stop_at = self.layer_ids[-1]
        try:
            self.decoder(input_ids=ids.to(self.device), use_cache=False)
        except _LastLayerReached:  # the expected way out: every captured layer has run
            return self._context()
        finally:
            self._stop_at = None
        raise UserError(f"layer {self.layer_ids[-1]} never ran in {type(self.model).__name__}; this architecture is not supported")

    def capture(self, prompt: Prompt) -> Features:
        return self.capture_batch([prompt])[0]

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        """Prompts of similar length share a forward: attention is causal, so padding at the end reaches no token before it."""
        self._check_again(prompts)
        contexts: dict[int, Tensor] = {}
        for group in similar_lengths([len(prompt.ids) for prompt in prompts]):
            ids = pad_sequence([prompts[i].ids for i in group], batch_first=True)
            # clone: tensors made under inference mode cannot enter a graph that autograd saves for backward
            contexts |= {i: rows[: len(prompts[i].ids)].clone() for i, rows in zip(group, self.features(ids), strict=True)}
        return [Features(p, contexts[i], self.layer_ids, self.producer).check() for i, p in enumerate(prompts)]

    def verify(self, prompts: list[Prompt]) -> None:
        capture_checks(self, self.spec.frozen(self.device), prompts)
        self.rounds = Rounds()

    def _check_again(self, prompts: Sequence[Prompt]) -> None:
        """What was true at the start must stay so."""
        if self.rounds is not None and self.rounds.due(len(prompts)):
            capture_checks(self, self.spec.frozen(self.device), prompts[:1])

    @cached_property
    def recurrent(self) -> RecurrentReading | None:
        """None for a target of attention alone."""
        return None if attention_alone(self.model.config) else RecurrentReading(self.model, self._forward)

    def new_cache(self) -> DynamicCache:
        return new_cache(self.model.config) if self.recurrent else DynamicCache()

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: DynamicCache, logits_to_keep: int = 0) -> tuple[Tensor, Tensor]:
        """Appends [n] tokens to the cached sequence -> logits [n or logits_to_keep, V], context features [n, K*H_t]."""
        return (self.recurrent.step if self.recurrent else self._forward)(ids, cache, logits_to_keep)

    def states(self, cache: DynamicCache) -> States:
        """What forgetting a step needs to know of the time before it."""
        return states(cache) if self.recurrent else []

    def forget(self, cache: DynamicCache, before: States, tokens: int) -> None:
        """The last step, of that many tokens."""
        if self.recurrent:
            put_back(cache, before, tokens)
        else:
            cache.crop(-tokens)

    @torch.inference_mode()
    def take_back(self, ids: Tensor, cache: DynamicCache, before: States, kept: int) -> None:
        """After a step of ids [n]: only the first `kept` have been read. A state forgets the whole step, and reads these again."""
        if self.recurrent:
            self.forget(cache, before, len(ids))
            self.recurrent.step(ids[:kept], cache, logits_to_keep=1)
        else:
            self.forget(cache, before, len(ids) - kept)

    def _forward(self, ids: Tensor, cache: Cache, logits_to_keep: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """positions [n]; none: the model counts for itself.

        Which rows' logits are wanted is told by position: told by their number, Gemma 4 computes its last layers for these rows alone.
        """
        rows = torch.arange(-logits_to_keep, 0, device=self.device) if logits_to_keep else 0
        output = self.model(
            input_ids=ids.to(self.device)[None],
            position_ids=positions if positions is None else positions.to(self.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=rows,
        )
        return output.logits[0], self._context()[0]

    @torch.inference_mode()
    def step_together(self, ids: Tensor, cache: Cache, positions: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Appends [N, n] tokens to N cached sequences at positions [N, n]; visible [N, 1, n, cached rows]: what each of them sees.

        Returns logits [N, n, V] and context features [N, n, K*H_t].
        """
        output = self.model(
            input_ids=ids.to(self.device), position_ids=positions, attention_mask=visible, past_key_values=cache, use_cache=True
        )
        return output.logits, self._context()


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Positions in groups of ascending length, none of which is padded by more than MOST_PADDING of its tokens."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[i] <= lengths[groups[-1][0]] * (1 + MOST_PADDING):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
