"""python -m scripts.read_engines VLLM SGLANG LLAMA_CPP: docs/engines.json, from the sources of the three in these folders.

What is read: which class runs an architecture, and whether it gives the hidden states that capture and serving need. Nothing is imported:
engines cannot live in one environment, and some need a GPU to be imported at all.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.families import FAMILIES

FILE = Path(__file__).parents[1] / "docs" / "engines.json"
ARCHITECTURES = sorted({family.architecture for family in FAMILIES.values()})


class Classes:
    """The classes of a package's files, by file and name, with what they inherit, for which imports are followed."""

    def __init__(self, root: Path):
        self.root = root

    @cache  # noqa: B019 - lives as long as the script
    def module(self, file: Path) -> tuple[dict[str, ast.ClassDef], dict[str, tuple[Path, str]]]:
        """Classes of one file, and where its other names come from."""
        tree = ast.parse(file.read_text())
        classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                source = self._source(file, node)
                names |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
        return classes, names

    def _source(self, file: Path, node: ast.ImportFrom) -> Path:
        parts = (node.module or "").split(".") if node.module else []
        base = file.parents[node.level - 1] if node.level else self.root.parent
        path = base.joinpath(*parts)
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def lineage(self, file: Path, name: str) -> Iterator[ast.ClassDef]:
        """A class and all that it inherits from, as far as this package holds it."""
        if not file.is_file():
            return
        classes, names = self.module(file)
        if name in classes:
            yield classes[name]
            for base in classes[name].bases:
                yield from self.lineage(file, base.id if isinstance(base, ast.Name) else ast.unparse(base).split(".")[-1])
        elif name in names:
            yield from self.lineage(*names[name])

    def has(self, file: Path, name: str, wanted: str) -> bool:
        """A base class or a method of that name."""
        for node in self.lineage(file, name):
            if node.name == wanted or any(isinstance(item, ast.FunctionDef) and item.name == wanted for item in node.body):
                return True
        return False


def version(root: Path) -> str:
    """Of an installed package, from the folder that its installer left beside it."""
    name = re.compile(rf"{root.name}(?:_cpu)?-([\d.]+)\.dist-info")
    return next(match[1] for match in map(name.fullmatch, (path.name for path in root.parent.iterdir())) if match)


def vllm(root: Path) -> dict:
    """An architecture serves drafts and gives its states if its class has the interface SupportsEagle3."""
    models, classes = root / "model_executor" / "models", Classes(root)
    entries = re.findall(r'"(\w+)":\s*\(\s*"([\w.]+)",\s*"(\w+)",?\s*\)', (models / "registry.py").read_text())
    runs = {}
    for architecture, module, name in entries:
        if architecture in ARCHITECTURES:
            file = root.parent.joinpath(*module.split(".")) if module.startswith("vllm.") else models / module
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            runs[architecture] = {"model": module, "states": classes.has(file, name, "SupportsEagle3")}
    return {"version": version(root), "architectures": runs}


def sglang(root: Path) -> dict:
    """Two conventions of layer ids, each a method that the architecture's class has or has not."""
    runs, classes = {}, Classes(root)
    for file in sorted((root / "srt" / "models").glob("*.py")):
        entry = re.search(r"^EntryClass = (\[.*?\]|\w+)", file.read_text(), re.MULTILINE | re.DOTALL)
        for name in re.findall(r"\w+", entry[1]) if entry else ():
            if name in ARCHITECTURES:
                methods = {method: classes.has(file, name, f"set_{method}_layers_to_capture") for method in ("dflash", "eagle3")}
                runs[name] = {"model": file.stem, **methods}
    return {"version": version(root), "architectures": runs}


def llama_cpp(root: Path) -> dict:
    """A graph that keeps the inputs of its layers (t_layer_inp) serves drafts of both methods."""
    source, runs, classes = root / "src", {}, Classes(root)
    names = dict(re.findall(r"MODEL_ARCH\.(\w+):\s*\"(\S+)\"", (root / "gguf-py" / "gguf" / "constants.py").read_text()))
    codes = {name: code for code, name in re.findall(r"{ LLM_ARCH_(\w+),\s*\"(\S+?)\"", (source / "llama-arch.cpp").read_text())}
    built = dict(re.findall(r"case LLM_ARCH_(\w+):\s*return new llama_model_(\w+)\(", (source / "llama-model.cpp").read_text()))
    models = re.split(r"^struct llama_model_", (source / "models" / "models.h").read_text(), flags=re.MULTILINE)
    shared = {model.split()[0]: found[1] for model in models if (found := re.search(r"using graph = llama_model_(\w+)::", model))}
    graphs = {file.stem.replace("-", "_"): "t_layer_inp[" in file.read_text() for file in (source / "models").glob("*.cpp")}
    for file in sorted((root / "conversion").glob("*.py")):
        for name, node in classes.module(file)[0].items():
            arch = next((found for item in classes.lineage(file, name) if (found := _arch(item))), None)
            model = built.get(codes.get(names.get(arch)))
            registered = {value for decorator in node.decorator_list for value in _registered(decorator)}
            if model not in (None, "clip"):  # that is for a vision tower
                runs |= {a: {"model": model, "states": graphs[shared.get(model, model)]} for a in registered & set(ARCHITECTURES)}
    return {"version": "0c1e57098", "architectures": dict(sorted(runs.items()))}


def _registered(decorator: ast.expr) -> list[str]:
    called = isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "ModelBase.register"
    return [argument.value for argument in decorator.args if isinstance(argument, ast.Constant)] if called else []


def _arch(node: ast.ClassDef) -> str | None:
    found = re.search(r"^\s*model_arch = gguf\.MODEL_ARCH\.(\w+)", ast.unparse(node), re.MULTILINE)
    return found and found[1]


if __name__ == "__main__":
    roots = [Path(argument) for argument in sys.argv[1:]]
    read = {
        name: reader(root)
        for (name, reader), root in zip({"vllm": vllm, "sglang": sglang, "llama.cpp": llama_cpp}.items(), roots, strict=True)
    }
    FILE.write_text(json.dumps(read, indent=1) + "\n")
