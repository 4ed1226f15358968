"""Whatever the target's own code does around its layers, FrozenTarget does: its log-probabilities are the model's."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.unit.target.families import FAMILIES, SHAPE, write_family
from tests.unit.tiny import write_target
from torchspec.errors import UserError
from torchspec.nn.logits import LogitLaw
from torchspec.target.frozen import FrozenTarget
from torchspec.target.measure import measure
from torchspec.target.model import decoder_of, load_model, load_without_layers

SCALES = {"gemma2": LogitLaw(1.0, 5.0), "granite": LogitLaw(1 / 8), "minicpm3": LogitLaw(8 / 32), "cohere2": LogitLaw(0.25)}
LLAMA = ("lfm2", "bamba", "llama4_text", "mistral3", "qwen2_5_vl", "qwen3_vl")  # what is left of them without layers
EMBEDDINGS = {"gemma2": 32**0.5, "gemma3": 32**0.5, "gemma3_text": 32**0.5, "granite": 12.0, "minicpm3": 12.0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, write_family(request.param, tmp_path_factory.mktemp("family") / request.param)


@torch.inference_mode()
def own_law(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's output [L, H_t] and the model's own log-probabilities [L, V]."""
    model, kept = load_model(folder, torch.float32).eval(), []
    decoder_of(model)[1][-1].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    logits = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits[0]
    return kept[0].view(40, -1), logits.log_softmax(-1)


def test_the_law_is_the_models_own(family):
    name, folder = family
    target, (state, law) = FrozenTarget.load(folder, torch.float32), own_law(folder)
    assert (target.logits(state).log_softmax(-1) - law).abs().max() < 1e-4
    weight = dict(target.norm.named_parameters()).get("weight", torch.ones(32))
    as_llama = weight * state * (state.square().mean(-1, keepdim=True) + 1e-6).rsqrt() @ target.head.T
    assert ((as_llama.log_softmax(-1) - law).abs().max() > 0.1) == (name not in LLAMA)  # the test would see another norm, scale or cap
    assert len(target.embedding) == 64 and target.num_layers == 4
    assert target.embedding_scale == pytest.approx(EMBEDDINGS.get(name, 1.0))
    expected = SCALES.get(name, LogitLaw())
    assert target.law.scale == pytest.approx(expected.scale) and target.law.cap == pytest.approx(expected.cap)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "granite"])
def test_tensors_of_other_parts_are_not_mistaken_for_the_targets(tmp_path, family):
    """Multi-token heads, projectors and towers bring norms and embeddings of their own."""
    folder = write_family(family, tmp_path / "target")
    before, file = FrozenTarget.load(folder, torch.float32), folder / "model.safetensors"
    weights, random = load_file(file), torch.Generator().manual_seed(1)
    others = ("mtp.norm.weight", "mtp.embed_tokens.weight", "projector.norm.weight", "vision_tower.norm.weight", "second.norm.weight")
    planted = weights | {other: torch.randn(32, generator=random) for other in others if other not in weights}
    save_file(planted, file, metadata={"format": "pt"})
    after = FrozenTarget.load(folder, torch.float32)
    state = torch.randn(5, 32, generator=random)
    assert torch.equal(before.logits(state), after.logits(state)) and torch.equal(before.embedding, after.embedding)


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_files_may_be_named_as_the_modules_are(tmp_path, family):
    """Transformers writes the names of these families' first releases, and newer checkpoints carry their modules' own."""
    folder = write_family(family, tmp_path / "target")
    target, file = FrozenTarget.load(folder, torch.float32), folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_model(folder, torch.float32).state_dict().items()}
    assert weights.keys() != load_file(file).keys()
    save_file(weights, file, metadata={"format": "pt"})
    state = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(FrozenTarget.load(folder, torch.float32).logits(state), target.logits(state))


def test_a_head_with_a_bias_is_refused(tmp_path):
    PhiForCausalLM(PhiConfig(**{key: value for key, value in SHAPE.items() if key != "head_dim"})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its head adds a bias, where drafts share a matrix alone"):
        FrozenTarget.load(tmp_path, torch.float32)


class Shifted(nn.Linear):
    pass


def logits_become(change):
    def hook(_module, _inputs, output):
        output.logits = change(output.logits)

    return lambda model: model.register_forward_hook(hook)


def squared(model):
    def hook(_module, _inputs, output):
        output.last_hidden_state = output.last_hidden_state**2

    model.model.register_forward_hook(hook)


def without_norm(model):
    del model.model.norm
    vars(model.model)["norm"] = lambda x: x


BEYOND = {
    "it does more to its logits than scale them and cap them by a tanh": logits_become(lambda x: x.abs()),
    "it does more to its logits than scale them": logits_become(lambda x: x.index_fill(-1, torch.tensor([7]), -1e9)),  # one token never
    "it does more to its logits": logits_become(lambda x: x[..., :-1]),
    "it does more than scale the output of its final norm before the head": squared,
    "its head is Shifted, where drafts share a matrix": lambda model: setattr(model, "lm_head", Shifted(32, 64, bias=False)),
    "no norm of one input stands right before its head": without_norm,
}


@pytest.mark.parametrize("cause", BEYOND)
def test_what_is_more_than_a_scale_or_a_cap_is_refused(tiny_folder, cause):
    model = load_without_layers(tiny_folder, torch.float32)
    BEYOND[cause](model)
    with pytest.raises(UserError, match=f"{tiny_folder}: {cause}.*; this architecture is not supported"):
        measure(model, tiny_folder)


def test_measuring_leaves_the_models_weights_alone(tiny_folder):
    model = load_without_layers(tiny_folder, torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    measure(model, tiny_folder)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def quantised(folder: Path, change) -> Path:
    file = write_target(folder) / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    return folder


def fp8(weights: dict, names) -> dict:
    scales = {name.replace("weight", "weight_scale_inv"): torch.ones(1, 1) for name in weights if names(name)}
    return {name: w.to(torch.float8_e4m3fn) if names(name) else w for name, w in weights.items()} | scales


def test_layers_in_fp8_leave_embedding_norm_and_head_as_they_are(tmp_path):
    plain = FrozenTarget.load(write_target(tmp_path / "plain"), torch.bfloat16)
    target = FrozenTarget.load(quantised(tmp_path / "q", lambda w: fp8(w, lambda name: "proj" in name)), torch.bfloat16)
    assert torch.equal(target.embedding, plain.embedding) and torch.equal(target.head, plain.head)
    with pytest.raises(UserError, match=r"is quantised \(fp8\) and does not compute in float32; set model.dtype=bfloat16"):
        FrozenTarget.load(tmp_path / "q", torch.float32)
    with pytest.raises(UserError, match=r"is quantised \(fp8\) and does not compute in float32; set model.dtype=bfloat16"):
        load_model(tmp_path / "q", torch.float32)


def test_a_quantised_head_is_refused_by_name(tmp_path):
    folder = quantised(tmp_path / "q", lambda w: fp8(w, lambda name: name == "lm_head.weight"))
    with pytest.raises(UserError, match=r"keeps lm_head.weight quantised \(lm_head.weight, lm_head.weight_scale_inv\); give a checkpoint"):
        FrozenTarget.load(folder, torch.bfloat16)


def zeros_on_disk(folder: Path, config: Qwen3Config) -> Path:
    """A checkpoint of any size that takes no space: the file has a header and a hole."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = Qwen3ForCausalLM(config).state_dict()
    header, end = {}, 0
    for name, weight in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end := end + 2 * weight.numel()]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def resident(peak: bool) -> int:
    name = "VmHWM" if peak else "VmRSS"
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def test_memory_is_embedding_and_head(tmp_path):
    """7.5 GiB, of which one is embedding and head: pages that this process has at most, of files and of its own."""
    config = Qwen3Config(
        vocab_size=131072, hidden_size=2048, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    small = Qwen3Config(**{**SHAPE, "dtype": "bfloat16"})
    FrozenTarget.load(zeros_on_disk(tmp_path / "small", small), torch.bfloat16)  # what is imported at first use
    folder = zeros_on_disk(tmp_path / "large", config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident(peak=False)
    target = FrozenTarget.load(folder, torch.bfloat16)
    needed = target.embedding.nbytes + target.head.nbytes
    assert needed == 2**30 and (folder / "model.safetensors").stat().st_size > 7 * needed
    assert 0.95 * needed < resident(peak=True) - before < 1.1 * needed
