"""Whether the text of a measurement has trained the draft: its tau is then no sign of what new text will give."""

import json
from pathlib import Path

from torchspec.console import console
from torchspec.data.dataset import PromptDataset
from torchspec.export.hf import PROVENANCE


def trained_on(draft: Path, opened: dict[str, PromptDataset]) -> list[str] | None:
    """The names of those data sets, with a warning; none of a draft that does not say what trained it."""
    file = draft / PROVENANCE
    if not file.is_file():
        return None
    known = json.loads(file.read_text())["data"].get("known_by")
    if known is None:  # exported before it was written down
        return None
    names = [name for name, data in opened.items() if set(data.manifest.known_by) & set(known)]
    if names:
        console.print(f"WARNING: {warning(names)}", style="bold yellow", markup=False)
    return names


def warning(names: list[str]) -> str:
    return f"this draft was trained on {', '.join(names)}: what is measured there says nothing about new text; give held-out conversations"
