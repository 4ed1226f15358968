"""One family, and how its tiny model is written: config.json and safetensors by the checkpoints' own names, and a tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

VOCABULARY = 288  # the tokenizer has 102 tokens: the rows behind are padding, as many checkpoints have it
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<spare>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPREAD = 0.25  # of random weights: the text varies, and no two logits tie


@dataclass(frozen=True)
class Family:
    model_type: str
    examples: str  # public models, for the page
    values: dict = field(default_factory=dict)  # of the config, beside SIZES; of a wrapper the text model's
    vision: dict | None = None  # of a model that also sees: its vision model's config
    more: dict = field(default_factory=dict)  # of a wrapper's own config
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of real checkpoints that Transformers does not load
    published_as: str | None = None  # architecture of public checkpoints, where Transformers calls it otherwise
    refused: str | None = None  # a piece of the sentence with which it is refused, where it cannot be a target
    together: bool = True  # decodes several prompts in one forward
    notes: tuple[str, ...] = ()

    @property
    def wrapped(self) -> bool:
        return self.vision is not None

    @property
    def architecture(self) -> str:
        """In the config.json of its checkpoints: what engines look it up by."""
        models = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if self.wrapped else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return self.published_as or models[self.model_type]

    def config(self) -> PreTrainedConfig:
        values = {**SIZES, **self.values}
        if not self.wrapped:
            return AutoConfig.for_model(self.model_type, **values)
        tied = values["tie_word_embeddings"]
        return AutoConfig.for_model(self.model_type, text_config=values, vision_config=self.vision, tie_word_embeddings=tied, **self.more)

    def model(self) -> PreTrainedModel:
        """In float32, random; norms are no ones, so that one left out shows."""
        torch.manual_seed(0)
        build = AutoModelForImageTextToText if self.wrapped else AutoModelForCausalLM
        model = build.from_config(self.config(), dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                torch.nn.init.normal_(weight, std=SPREAD)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
            elif "norm" in name:
                torch.nn.init.uniform_(weight, 0.4, 1.4)
        return model.eval()


def write_family(family: Family, folder: Path) -> Path:
    model = family.model()
    model.save_pretrained(folder)
    if family.extra:
        file = folder / "model.safetensors"
        unread = {name: torch.full(shape, 9.0) for name, shape in family.extra.items()}
        save_file(load_file(file) | unread, file, metadata={"format": "pt"})
    return write_tokenizer(folder)


def write_tokenizer(folder: Path) -> Path:
    """A token per character of ASCII. Transformers makes some families' tokenizers anew, as byte-level BPE: so is this one."""
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]  # space and line end, as bytes are written there
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate([*SPECIAL, *letters])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE,
        additional_special_tokens=SPECIAL[3:],
    ).save_pretrained(folder)  # fmt: skip
    return folder
