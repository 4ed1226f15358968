"""A random target of 64 channels with a byte tokenizer: where no target is named, it carries the rehearsal of the installation."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from torchspec.config import RunConfig
from torchspec.data.config import DatasetConfig
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.target.config import ModelConfig

SPECIAL = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny_target(folder: Path) -> Path:
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, dtype="float32",
    )  # fmt: skip
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.random.set_rng_state(generator_state)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(alphabet, merges=[]))
    bytes_alone.pre_tokenizer, bytes_alone.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token=SPECIAL[1])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_config(folder: Path) -> RunConfig:
    return RunConfig(
        output_dir=str(folder),
        model=ModelConfig(target_model_path=str(folder), dtype="float32", device="auto"),
        draft=DFlashConfig(num_layers=2, block_size=4, target_layer_ids=(1, 3)),
        dataset=DatasetConfig(train_data_path=str(folder)),
    )
