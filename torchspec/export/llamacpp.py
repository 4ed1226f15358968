"""A llama.cpp on this machine: where its converter and its server are, and how the converter is run."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from torchspec.errors import UserError
from torchspec.extras import install

VARIABLE = "LLAMACPP"  # names the folder where no option does
TYPES = {"bfloat16": "bf16", "float32": "f32"}
SERVERS = ("build/bin/llama-server", "bin/llama-server", "llama-server")


@dataclass(frozen=True)
class LlamaCpp:
    folder: Path

    @classmethod
    def at(cls, folder: str | None) -> "LlamaCpp":
        if folder is None or not (Path(folder) / "convert_hf_to_gguf.py").is_file():
            missing = "none is named" if folder is None else f"{folder} holds no convert_hf_to_gguf.py"
            raise UserError(f"a folder of llama.cpp is needed and {missing}; give its clone with --llamacpp or as {VARIABLE}")
        return cls(Path(folder))

    @property
    def server(self) -> Path:
        beside = [self.folder / name for name in SERVERS if (self.folder / name).is_file()]
        found = beside[0] if beside else shutil.which("llama-server")
        if found is None:
            build = "cmake -B build && cmake --build build --target llama-server"
            raise UserError(f"{self.folder} holds no llama-server, and the PATH neither; build it there: {build}")
        return Path(found)

    def convert(self, model: Path, file: Path, dtype: str, python: str, target: Path | None = None) -> None:
        """model: a Hugging Face folder. target: of a draft, whose tokenizer comes with it."""
        command = [python, str(self.folder / "convert_hf_to_gguf.py"), str(model), "--outtype", TYPES[dtype], "--outfile", str(file)]
        if target is not None:
            command += ["--target-model-dir", str(target)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode != 0:
            if missing := re.search(r"^ModuleNotFoundError: No module named '(.+)'$", said.stderr, re.MULTILINE):
                brings = install("llamacpp") if python == sys.executable else f"{python} -m pip install {missing[1]}"
                raise UserError(f"llama.cpp's converter needs {missing[1]}: {brings}")
            last = (said.stderr.strip() or "it said nothing").splitlines()[-1]
            words = " ".join(command)
            raise UserError(f"llama.cpp's converter failed on {model} (exit code {said.returncode}): {last}; its command was {words}")
