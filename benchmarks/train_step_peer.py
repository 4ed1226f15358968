"""The DFlash step of pip's speculators, as its own trainer takes it: float32 weights under bfloat16 autocast, clipping, AdamW.

Its settings are those that run fastest on the device: on a CPU `sdpa` attention, a tenth faster than its `eager` (FlexAttention has
no backward pass there), and `eager` cross-entropy, on CUDA its defaults. It scores the same rows against the target's choice, whose
logits it computes.
"""

import sys

import torch
from torch import Tensor
from transformers import Qwen3Config

from torchspec.records import Batch


class Speculators:
    def __init__(self, shape, batch: Batch, device: torch.device, folder: str):
        sys.path.append(folder)  # behind our own environment: it borrows our torch and transformers
        from speculators.config import SpeculatorsConfig, VerifierConfig
        from speculators.losses import resolve_loss_config
        from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig
        from speculators.proposals.greedy import GreedyTokenProposalConfig

        layer = Qwen3Config(
            hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, vocab_size=shape.vocabulary, num_hidden_layers=shape.layers,
        )  # fmt: skip
        cuda = device.type == "cuda"
        layer._attn_implementation = "simple_flex_attention" if cuda else "sdpa"
        config = DFlashSpeculatorConfig(
            transformer_layer_config=layer, draft_vocab_size=shape.vocabulary, block_size=shape.block,
            aux_hidden_state_layer_ids=list(shape.captured), mask_token_id=shape.vocabulary - 1,
            speculators_config=SpeculatorsConfig(
                algorithm="dflash", proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=shape.block - 1)],
                default_proposal_method="greedy", verifier=VerifierConfig(name_or_path=None, architectures=[]),
            ),
        )  # fmt: skip
        self.model, self.device = DFlashDraftModel(config).to(device), device
        with torch.no_grad():
            for name in ("embed_tokens", "lm_head", "verifier_lm_head"):
                self.model.get_submodule(name).weight.normal_(std=shape.hidden**-0.5)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        last = torch.randn(len(batch.ids), shape.hidden, device=device).to(torch.bfloat16)
        self.inputs = inputs(batch, batch.context, last) | {
            "max_anchors": shape.anchors * len(shape.lengths), "gamma": 7.0,
            "loss_config": resolve_loss_config("ce", "fused" if cuda else "eager"),
        }  # fmt: skip

    def step(self, seed: int) -> None:
        torch.manual_seed(seed)
        take_step(self.model, self.inputs, [self.optimizer])


def inputs(batch: Batch, context: Tensor, last: Tensor) -> dict[str, Tensor]:
    """A batch as its collator lays it out, without padding. context [T, K*H_t]; last: states before the target's final norm [T, H_t]."""
    documents = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
    positions = torch.cat([torch.arange(length) for length in batch.lengths])
    rows = {"input_ids": batch.ids, "loss_mask": batch.loss_mask, "document_ids": documents, "position_ids": positions}
    rows = {name: row.to(context.device) for name, row in rows.items()}
    return {name: row[None] for name, row in {**rows, "hidden_states": context, "verifier_last_hidden_states": last}.items()}


def take_step(model: torch.nn.Module, arguments: dict, optimizers: list[torch.optim.Optimizer]) -> None:
    """What its Trainer.train_epoch does with a batch."""
    with torch.autocast(arguments["hidden_states"].device.type, dtype=torch.bfloat16):
        _, loss, _ = model(**arguments)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
