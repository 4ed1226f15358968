"""How long a text the target can read: its positions, counted as vLLM counts them (ModelConfig: max_model_len)."""

import json
from pathlib import Path

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_seq_length", "seq_length")
WITHIN = ("default", "su", "longrope", "llama3", "mrope")  # rope types whose factor max_position_embeddings already counts


def positions(target: Path) -> int | None:
    """None where the config names no limit."""
    config = json.loads((target / "config.json").read_text())
    config = config.get("text_config") or config
    named = [config[name] for name in NAMES if config.get(name)]
    if not named:
        return None
    length = min(named)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind in WITHIN or "gemma3" in config.get("model_type", ""):
        return length
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings", length)
    return int(length * rope.get("factor", 1))
