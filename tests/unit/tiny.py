"""A Llama of 64 ids and 32 channels, random but with large weights, so that its text varies. It checks a border in milliseconds.

Embedding and head differ on purpose: a mix-up of the two would pass with a tied target.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torchspec.capture.hf import HFCapture
from torchspec.decode.sequence import plain_decode
from torchspec.methods.base import Method
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.dflash.method import DFlash
from torchspec.methods.dflash2.method import DFlash2
from torchspec.methods.domino.method import Domino
from torchspec.methods.dspark.method import DSpark
from torchspec.methods.eagle3 import format as eagle3_format
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.method import Eagle3
from torchspec.methods.lilicorr.method import LiLiCorr
from torchspec.methods.peagle import format as peagle_format
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.methods.peagle.method import Peagle
from torchspec.methods.vocabulary import DraftVocabulary, whole_vocabulary
from torchspec.methods.xpress.method import XPress
from torchspec.nn.attention import BlockLayout
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget
from torchspec.training.stream import pack

VOCABULARY, HIDDEN, LAYERS, MASK, B = 64, 32, (1, 3), 63, 4
EAGLE3_LAYERS = (*LAYERS, 5)  # and the last one, for the target's distribution
NEVER: set[int] = set()  # no stop token
FACTS = {
    "template_hash": "7e",
    "tokenizer_hash": "70",
    "thinking": False,
    "fingerprint": "f00d",
    "samples": 9,
    "held_out": "beef",
}  # of data


def write_target(folder: Path, *, tied: bool = False, **config) -> Path:
    values = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": "float32",
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**values, **config}))
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def make_block(kind: type[BlockMethod], target: FrozenTarget, counts: torch.Tensor | None, options: dict) -> BlockMethod:
    """counts: of the training data's tokens; none: all alike."""
    options = kind.Options(**{"num_layers": 2, "block_size": B, "num_anchors": 100, "target_layer_ids": LAYERS, **options})
    counts = torch.ones(len(target.head)) if counts is None else counts
    return kind(kind.new_config(options, target, MASK), target, options, counts)


def make_method(target: FrozenTarget, **options) -> DFlash:
    return make_block(DFlash, target, None, options)


SELECTOR = {"conv_group_size": 8, "selector_rank": 6, "selector_top_k": 5}


def make_dflash2(target: FrozenTarget, counts: torch.Tensor | None = None, **options) -> DFlash2:
    return make_block(DFlash2, target, counts, {"method": "dflash2", **SELECTOR, **options})


def make_dspark(target: FrozenTarget, **options) -> DSpark:
    """B - 1 drafts, as all methods here: in the layout that samples from the anchor a block has one row less."""
    rows = B if options.get("sample_from_anchor") is False else B - 1
    return make_block(DSpark, target, None, {"method": "dspark", "block_size": rows, "markov_rank": 6, **options})


LATTICE = {"lilicorr_candidate_topk": 4, "lilicorr_hidden_size": 24, "lilicorr_num_heads": 3, "lilicorr_factor_dim": 10}


def make_lilicorr(target: FrozenTarget, counts: torch.Tensor | None = None, **options) -> LiLiCorr:
    return make_block(LiLiCorr, target, counts, {"method": "lilicorr", **LATTICE, **options})


def make_domino(target: FrozenTarget, **options) -> Domino:
    return make_block(Domino, target, None, {"method": "domino", "emb_dim": 12, "gru_hidden_dim": 10, **options})


def make_xpress(target: FrozenTarget, **options) -> XPress:
    small = {"xpress_rank": 6, "xpress_mlp_hidden": 10, "xpress_num_passes": 2}
    return make_block(XPress, target, None, {"method": "xpress", **small, **options})


def make_eagle3(target: FrozenTarget, ids: torch.Tensor | None = None, **options) -> Eagle3:
    """ids: a pruned draft vocabulary."""
    size = None if ids is None else len(ids)
    options = Eagle3Config(**{"ttt_length": B - 1, "num_anchors": 100, "target_layer_ids": LAYERS, "draft_vocab_size": size, **options})
    vocabulary = whole_vocabulary(target) if ids is None else DraftVocabulary(target.head[ids], ids)
    return Eagle3(eagle3_format.draft_config(options, target), target, options, vocabulary)


def make_peagle(target: FrozenTarget, ids: torch.Tensor | None = None, **options) -> Peagle:
    """Two layers; all chains whole, unless the options say otherwise. ids: a pruned draft vocabulary."""
    size = None if ids is None else len(ids)
    small = {"num_depths": B - 1, "num_layers": 2, "num_anchors": 100, "target_layer_ids": LAYERS, "down_sample_ratio": 1.0}
    options = PeagleConfig(**{**small, "draft_vocab_size": size, **options})
    vocabulary = whole_vocabulary(target) if ids is None else DraftVocabulary(target.head[ids], ids)
    return Peagle(peagle_format.draft_config(options, target, MASK), target, options, vocabulary)


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """A draft whose every weight matters: std 0.02 and norms of one would leave its output near the embedding."""
    g = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.25, generator=g)
        else:
            torch.nn.init.uniform_(weight, 0.5, 1.5, generator=g)
    return model


def random_features(mask: str, index: int = 0, width: int = HIDDEN * len(LAYERS), layer_ids: tuple[int, ...] = LAYERS) -> Features:
    """A document with this loss mask ("0011..."), random tokens below MASK and random features."""
    g = torch.Generator().manual_seed(1000 + index)
    prompt = Prompt(index, torch.randint(MASK, (len(mask),), generator=g), torch.tensor([c == "1" for c in mask]))
    return Features(prompt, torch.randn(len(mask), width, generator=g), layer_ids, "random")


def all_valid(anchors: list[list[int]], lengths: tuple[int, ...], block_size: int = B) -> BlockLayout:
    anchors = torch.tensor(anchors)
    return BlockLayout(anchors, torch.ones_like(anchors, dtype=torch.bool), lengths, block_size)


def random_prompt(seed: int, length: int) -> torch.Tensor:
    return torch.randint(4, MASK, (length,), generator=torch.Generator().manual_seed(seed))


def answered(oracle: HFCapture, prompt: torch.Tensor, tokens: int, stop: set[int] = NEVER, index: int = 0) -> Prompt:
    """The prompt and the target's own greedy answer: on-policy text."""
    ids = torch.cat((prompt, torch.tensor(plain_decode(oracle, prompt, tokens, stop).ids)))
    return Prompt(index, ids, torch.arange(len(ids)) >= len(prompt))


def overfit(method: Method, model: torch.nn.Module, samples: list[Features], steps: int, rate: float = 1e-2) -> dict:
    """Trains on the samples alone; the metrics of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    for _ in range(steps):
        loss_sum, weight_sum, metrics = method.loss(model, pack(samples, epoch=0), seed=0)
        (loss_sum / weight_sum).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return metrics
