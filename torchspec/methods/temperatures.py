"""Temperatures that divide the logits of a draft's confidence, slot by slot: a file beside its weights, in SGLang's form
(`--speculative-dspark-confidence-sts-path`).
"""

import json
from pathlib import Path

from torchspec.errors import UserError

FILE = "sts.json"


def read_temperatures(folder: Path) -> dict[str, list[float]]:
    """-> the setting that holds them; none where nothing was fitted."""
    file = folder / FILE
    if not file.is_file():
        return {}
    temperatures = json.loads(file.read_text()).get("temperatures")
    if not temperatures or not all(isinstance(t, (int, float)) and t > 0 for t in temperatures):
        raise UserError(f"{file} holds temperatures={temperatures}; fit them again, or remove the file")
    return {"confidence_temperatures": temperatures}
