"""What llama.cpp loads: its own converter makes a draft's exported folder into one file, which is read back.

OUT/  draft.gguf · target.gguf, where asked for · torchspec.json (provenance) · README.md
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from torchspec.export.card import CARD, card
from torchspec.export.commands import gguf_command
from torchspec.export.folder import new_folder
from torchspec.export.hf import PROVENANCE, WEIGHTS, export_checkpoint
from torchspec.export.llamacpp import LlamaCpp
from torchspec.export.read_gguf import check_draft, check_target
from torchspec.files.writing import writing
from torchspec.methods.base import check_served, method_class
from torchspec.methods.registry import method_of
from torchspec.target.frozen import FrozenTarget
from torchspec.training.checkpoint import read_json
from torchspec.training.evaluated import evaluation_of


def export_gguf(checkpoint: Path, out: Path, target: Path, llamacpp: LlamaCpp, with_target: bool, trust_remote_code: bool) -> Path:
    """The draft of one iter_NNNNNNN folder. target: the folder that it was trained for."""
    with writing(out, "torchspec export", lambda: f"{out} is as it was before"), tempfile.TemporaryDirectory() as scratch:
        draft = export_checkpoint(checkpoint, Path(scratch) / "draft")
        config = AutoConfig.from_pretrained(draft)
        made_by = method_class(method_of(config.to_dict()))
        method = made_by.from_config(config, FrozenTarget.load(target, torch.bfloat16, "cpu", trust_remote_code))
        check_served("llamacpp", method)
        dtype, facts = str(config.dtype).removeprefix("torch."), method.gguf_facts(config)
        with new_folder(out, PROVENANCE) as partial:
            convert_draft(llamacpp, draft, target, partial / "draft.gguf", dtype, sys.executable, facts)
            if with_target:
                convert_target(llamacpp, target, partial / "target.gguf", dtype, sys.executable)
            shutil.copy(draft / PROVENANCE, partial)
            line = {"llamacpp": gguf_command(config, Path("TARGET.gguf"), Path("draft.gguf"))}
            words = card(made_by.draft_tokens(config), read_json(draft / PROVENANCE), evaluation_of(checkpoint), line)
            (partial / CARD).write_text(words, encoding="utf-8")
    return out


def convert_draft(llamacpp: LlamaCpp, draft: Path, target: Path, file: Path, dtype: str, python: str, facts: dict) -> None:
    """facts: what the file must say. The tensors of another project's folder are its own, and not compared."""
    llamacpp.convert(draft, file, dtype, python, target)
    check_draft(file, facts, load_file(draft / WEIGHTS) if (draft / PROVENANCE).is_file() else None)


def convert_target(llamacpp: LlamaCpp, target: Path, file: Path, dtype: str, python: str) -> None:
    llamacpp.convert(target, file, dtype, python)
    config = AutoConfig.from_pretrained(target).get_text_config()
    check_target(file, config.num_hidden_layers, config.hidden_size)
