"""What data must know of the target's config.json: how many ids there are, and how long a text it reads."""

import json
from pathlib import Path

from torchspec.errors import UserError

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_seq_length", "seq_length")
WITHIN = ("default", "su", "longrope", "llama3", "mrope")  # rope types whose factor max_position_embeddings already counts


def language_config(target: Path) -> dict:
    """Models that also see images keep the language model's settings apart."""
    path = target / "config.json"
    if not path.is_file():
        raise UserError(f"target {target} holds no config.json; give the folder of the target model")
    config = json.loads(path.read_text())
    return config.get("text_config") or config


def vocab_size(target: Path) -> int:
    config = language_config(target)
    if "vocab_size" not in config:
        raise UserError(f"{target / 'config.json'} names no vocab_size; copy the config.json of the target model there")
    return config["vocab_size"]


def positions(target: Path) -> int | None:
    """Tokens of the longest text, as vLLM counts them (max_model_len); none where the config names no limit.

    YaRN stretches what was trained, as the cards of these models say; vLLM since 0.32 wants that written in max_position_embeddings.
    """
    config = language_config(target)
    named = [config[name] for name in LENGTHS if config.get(name)]
    if not named:
        return None
    length = min(named)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind in WITHIN or "gemma3" in config.get("model_type", ""):
        return length
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings", length)
    return int(length * (rope.get("factor") or 1))
