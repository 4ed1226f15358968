"""Draft folders as other projects write them: config.json and tensors key by key, with nothing of ours in them. Tiny target's sizes."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.methods import eagle3_reference, reference
from tests.unit.tiny import HIDDEN, MASK, VOCABULARY, B, answered, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.decode.pair import Pair, load_draft
from torchspec.importers.folder import read_config
from torchspec.records import Prompt
from torchspec.target.frozen import FrozenTarget

H, MLP, HEADS, KV, D, K = HIDDEN, 64, 4, 2, 8, 2  # D: head size, K: captured layers
THETA, EPS = 20000.0, 1e-5
IDS = torch.tensor([1, 2, 5, 8, 13, 21, 34, 55, 60])  # of a reduced vocabulary

SIZES = {
    "hidden_size": H, "intermediate_size": MLP, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": D,
    "vocab_size": VOCABULARY, "rms_norm_eps": EPS, "hidden_act": "silu", "max_position_embeddings": 256, "attention_bias": False,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ZLAB = {
    **SIZES, "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "num_hidden_layers": 2, "num_target_layers": 6, "block_size": B, "rope_theta": THETA, "rope_scaling": None,
    "layer_types": ["full_attention"] * 2, "use_sliding_window": False, "sliding_window": None, "torch_dtype": "bfloat16",
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [1, 3]},
}  # fmt: skip
EAGLE3 = {
    **{key: value for key, value in SIZES.items() if key not in ("head_dim", "attention_bias")},
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1,
    "draft_vocab_size": VOCABULARY, "rope_theta": THETA, "torch_dtype": "float16",
    "eagle_aux_hidden_state_layer_ids": [2, 4], "num_aux_hidden_states": 2,
}  # fmt: skip
SPECULATORS = {
    "speculators_version": "0.9.0", "tie_word_embeddings": False, "target_hidden_size": None, "dtype": "float32",
    "speculators_config": {
        "algorithm": "any", "default_proposal_method": "greedy", "verifier": {"name_or_path": "owner/name", "architectures": ["Llama"]},
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3, "accept_tolerance": 0.0, "verifier_accept_k": 1}],
    },
}  # fmt: skip


def layer(width: int, norms: tuple[str, ...], prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of one decoder layer whose q, k and v read this width."""
    shapes = {
        "self_attn.q_proj": (HEADS * D, width), "self_attn.k_proj": (KV * D, width), "self_attn.v_proj": (KV * D, width),
        "self_attn.o_proj": (H, HEADS * D), "mlp.gate_proj": (MLP, H), "mlp.up_proj": (MLP, H), "mlp.down_proj": (H, MLP),
        "input_layernorm": (H,), "post_attention_layernorm": (H,), **{name: (D,) if "self_attn" in name else (H,) for name in norms},
    }  # fmt: skip
    return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}


WHOLE = {"layer_types": ["full_attention"] * 2, "sliding_window": None}

PER_HEAD = ("self_attn.q_norm", "self_attn.k_norm")
DFLASH_SHAPES = {"fc.weight": (H, K * H), "hidden_norm.weight": (H,), "norm.weight": (H,)} | {
    name: shape for i in range(2) for name, shape in layer(H, PER_HEAD, f"layers.{i}").items()
}
EAGLE3_SHAPES = {"fc.weight": (H, K * H), "norm.weight": (H,)} | layer(2 * H, ("hidden_norm",), "midlayer")


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random, large enough that every one of them matters."""
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(s, generator=g) + 0.5 if len(s) == 1 else 0.25 * torch.randn(s, generator=g) for name, s in shapes.items()}


def pruned(seed: int = 1, ids: Tensor = IDS) -> dict[str, Tensor]:
    """A trained head over a reduced vocabulary, with the maps that servers read."""
    marked = torch.zeros(VOCABULARY, dtype=torch.bool)
    marked[ids] = True
    return {"lm_head.weight": tensors({"h": (len(ids), H)}, seed)["h"], "d2t": ids - torch.arange(len(ids)), "t2d": marked}


def write(folder: Path, config: dict, weights: dict[str, Tensor], files: str = "single") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == "pickle":
        torch.save(weights, folder / "pytorch_model.bin")
    elif files == "sharded":
        names, where = sorted(weights), {}
        for number, shard in enumerate((names[::2], names[1::2]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: weights[name] for name in shard}, folder / file)
            where |= dict.fromkeys(shard, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        save_file(weights, folder / "model.safetensors")
    return folder


def double(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in weights.items() if value.is_floating_point()}


@cache
def frozen(target: Path) -> FrozenTarget:
    return FrozenTarget.load(target, torch.float32)


@cache
def capturing(target: Path, layer_ids: tuple[int, ...]) -> HFCapture:
    return HFCapture(CaptureSpec(target, layer_ids, torch.float32, target=frozen(target)))


def paired(folder: Path, target: Path, draft_tokens: int | None = None) -> Pair:
    """As load_pair, in float32; a target is loaded once for all drafts."""
    method, model = load_draft(folder, read_config(folder), frozen(target), torch.float32, draft_tokens)
    return Pair(folder, target, capturing(target, method.layer_ids), method, model)


ANSWERS: dict[Path, Prompt] = {}  # folder of a target -> what it writes, whichever draft stands beside it


@torch.no_grad()
def proposed(pair: Pair, anchor: int) -> tuple[list[int], list[int], tuple[list[int], Tensor]]:
    """After this anchor of a text of the target's: the drafter's proposal, the whole document's, and the text with its features."""
    if pair.folder not in ANSWERS:
        ANSWERS[pair.folder] = answered(pair.target, random_prompt(0, 9), 16)
    features = pair.target.capture(ANSWERS[pair.folder])
    ids, drafter = features.prompt.ids, pair.method.drafter(pair.model)
    drafter.extend(ids[:anchor], features.context[:anchor])
    served = drafter.propose(int(ids[anchor]), GREEDY)[0].tolist()
    return served, pair.method.propose(pair.model, features, torch.tensor([anchor]))[0].tolist(), (ids.tolist(), features.context)


def dflash_by_hand(
    weights: dict, embedding: Tensor, head: Tensor, text: tuple, anchor: int, slots: int, ids: Tensor | None = None, windows: dict = WHOLE
) -> list[int]:
    """The definition in float64, with the numbers above."""
    config = SimpleNamespace(
        rms_norm_eps=EPS, head_dim=D, num_attention_heads=HEADS, num_key_value_heads=KV, num_hidden_layers=2, block_size=slots,
        rope_parameters={"rope_theta": THETA}, dflash_config={"mask_token_id": MASK}, **windows,
    )  # fmt: skip
    hidden = reference.block_hidden(double(weights), config, embedding.double(), text[1].double(), anchor, text[0][anchor])
    rows = (hidden[1:] @ head.double().T).argmax(-1)
    return (rows if ids is None else ids[rows]).tolist()


def eagle3_by_hand(weights: dict, embedding: Tensor, head: Tensor, text: tuple, anchor: int, steps: int, ids: Tensor, **flags) -> list[int]:
    """The definition in float64, each step fed the token that the one before proposed. flags: those of the config.json that are set."""
    flags = {name: flags.get(name, False) for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
    config = SimpleNamespace(
        rms_norm_eps=EPS, head_dim=D, num_attention_heads=HEADS, num_key_value_heads=KV, rope_parameters={"rope_theta": THETA},
        num_aux_hidden_states=K, **flags,
    )  # fmt: skip
    features, fed = text[1][:, :-H].double(), [text[0][anchor]]
    for _ in range(steps):
        hidden = eagle3_reference.chain_hidden(double(weights), config, embedding.double(), text[0], features, anchor, fed)
        fed.append(int(ids[(head.double() @ hidden[-1]).argmax()]))
    return fed[1:]
