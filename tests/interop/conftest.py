"""One draft per method for all engines: trained here for a minute on the very conversations that engines are asked about, and exported."""

import json
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from filelock import FileLock

from tests.interop.grafted import graft
from torchspec.config import load_config
from torchspec.data.dataset import open_or_prepare
from torchspec.decode.pair import Pair, load_pair
from torchspec.export.hf import export_checkpoint
from torchspec.training.checkpoints import latest
from torchspec.training.loop import train

ROOT = Path(__file__).parents[2]
ENGINES = {name: ROOT / ".interop" / name / "bin" / "python" for name in ("vllm", "sglang")}
RECIPES = {
    "dflash": "torchspec/demo/smollm2_dflash.yaml",
    "eagle3": "configs/hf_smollm2_eagle3.yaml",
    "peagle": "configs/hf_smollm2_peagle.yaml",
}
STEPS = 24
MAX_NEW_TOKENS = 48
PROMPTS = 6
DATA = Path(str(files("torchspec.demo"))) / "heldout.jsonl"
DTYPE = "float32"  # no ties to explain away, and many CPUs compute bfloat16 at half the speed


def environment(engine: str) -> dict[str, str]:
    """Variables for a process in an engine's environment; engines build with the tools of their own."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PATH": f"{ENGINES[engine].parent}:/usr/local/bin:/usr/bin:/bin",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def in_engine(engine: str, script: str, request: dict, folder: Path) -> dict:
    """Runs one of our scripts in an engine's environment: a JSON request in, a JSON answer out."""
    asked, answered = folder / f"{script}.request", folder / f"{script}.answer"
    asked.write_text(json.dumps(request))
    command = [ENGINES[engine], ROOT / "tests" / "interop" / script, asked, answered]
    subprocess.run(command, env=environment(engine) | {"HOME": str(folder)}, check=True, timeout=600)
    return json.loads(answered.read_text())


@pytest.fixture(scope="session", params=RECIPES)
def method(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def draft(method, target_folder, tmp_path_factory, testrun_uid) -> Path:
    return made(method, target_folder, tmp_path_factory.getbasetemp().parent / f"interop-{testrun_uid}")


def made(method: str, target_folder: Path, shared: Path) -> Path:
    """The processes that test side by side make it once."""
    shared.mkdir(exist_ok=True)
    with FileLock(shared / f"{method}.lock"):
        if not (shared / method / "draft").is_dir():
            if method in RECIPES:
                train_and_export(method, target_folder, shared / method)
            else:
                graft(method, made("dflash", target_folder, shared), target_folder, shared / method / "draft")
    return shared / method / "draft"


def train_and_export(method: str, target_folder: Path, folder: Path) -> None:
    """On few conversations, again and again: their features are captured once, and engines accept drafts as well as they reject them."""
    asked = folder.with_suffix(".jsonl")
    asked.write_text("".join(DATA.read_text().splitlines(keepends=True)[:PROMPTS]))
    overrides = [
        f"output_dir={folder}", f"model.target_model_path={target_folder}", f"model.dtype={DTYPE}", f"dataset.train_data_path={asked}",
        "dataset.eval_data_path=null", f"training.max_steps={STEPS}", f"training.num_epochs={STEPS}", "draft.num_anchors=32",
    ]  # fmt: skip
    config = load_config(str(ROOT / RECIPES[method]), overrides)
    train(config)
    export_checkpoint(latest(config.checkpoints), folder / "draft")


@pytest.fixture(scope="session")
def pair(draft, target_folder) -> Pair:
    return load_pair(draft, str(target_folder), DTYPE, "cpu", False)


@pytest.fixture(scope="session")
def conversations(target_folder, tmp_path_factory) -> list:
    """Held-out text of the target."""
    dataset = open_or_prepare(str(DATA), tmp_path_factory.mktemp("heldout"), target_folder)
    return [dataset[i] for i in range(PROMPTS)]


@pytest.fixture(scope="session")
def prompts(conversations) -> list:
    """Held-out prompts, [L] each."""
    return [prompt.question for prompt in conversations]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of one engine: where it needs files of its own, the target is converted once for all methods."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def plain() -> dict:
    """What one engine wrote without a draft, once for all methods (served.py)."""
    return {}
