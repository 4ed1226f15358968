"""What is missing is one sentence with the pip line that brings it, and the same sentence wherever it is asked for.

Oracles: the extras of pyproject.toml; None in sys.modules, which is how Python itself says that a package cannot be imported.
"""

import sys
import tomllib
from pathlib import Path

import pytest

from torchspec.config import RunConfig
from torchspec.doctor.machine import installation
from torchspec.errors import UserError
from torchspec.export.llamacpp import LlamaCpp
from torchspec.extras import PACKAGES, need
from torchspec.launch.needs import needs
from torchspec.launch.run import launch

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
SOMEWHERE = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d", "eval_data_path": "e"}}
ASKING = [  # sections of a config, the key that asks, what is not there, the extra
    ({"training": {"num_ranks": 2}}, "training.num_ranks=2", "ray", "ray"),
    ({"inference": {"num_workers": 1}}, "inference.num_workers=1", "ray", "ray"),
    ({"inference": {"inference_engine_type": "vllm"}}, "inference.inference_engine_type=vllm", "vllm", "vllm"),
    ({"inference": {"inference_engine_type": "sglang"}}, "inference.inference_engine_type=sglang", "sglang", "sglang"),
    ({"inference": {"num_workers": 1, "transfer": "mooncake"}}, "inference.transfer=mooncake", "mooncake", "mooncake"),
    ({"evaluation": {"served": "vllm", "served_python": "p"}}, "evaluation.served=vllm", "openai", "serve"),
    ({"evaluation": {"served": "sglang"}}, "evaluation.served=sglang", "sglang", "sglang"),
    ({"tracking": {"tensorboard": True}}, "tracking.tensorboard=True", "tensorboard", "tensorboard"),
    ({"tracking": {"wandb_project": "w"}}, "tracking.wandb_project=w", "wandb", "wandb"),
    ({"tracking": {"mlflow_experiment": "m"}}, "tracking.mlflow_experiment=m", "mlflow", "mlflow"),
    ({"tracking": {"trackio_project": "t"}}, "tracking.trackio_project=t", "trackio", "trackio"),
    ({"tracking": {"swanlab_project": "s"}}, "tracking.swanlab_project=s", "swanlab", "swanlab"),
]


def test_every_extra_is_known_and_names_what_it_installs():
    extras = {name: " ".join(lines) for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    assert PACKAGES.keys() == extras.keys()
    for name, packages in PACKAGES.items():
        assert all(package.replace("_", "-") in extras[name] for package in packages)


@pytest.mark.parametrize("extra", PACKAGES)
def test_a_missing_extra_is_one_sentence(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[extra][-1], None)
    with pytest.raises(UserError, match=rf"^--this needs .*{PACKAGES[extra][-1]}: pip install 'torchspec\[{extra}\]'$"):
        need("--this", extra)


@pytest.mark.parametrize(("sections", "asked_by", "package", "extra"), ASKING)
def test_a_run_refuses_and_the_doctor_says_the_same(sections, asked_by, package, extra, monkeypatch):
    """Nothing else of this config exists, so the refusal comes before anything is looked for."""
    monkeypatch.setitem(sys.modules, package, None)
    config = RunConfig(**SOMEWHERE, **sections)
    with pytest.raises(UserError) as refusal:
        launch(config)
    (sentence,) = [need.lacking for need in needs(config) if need.extra == extra]
    assert sentence.startswith(f"{asked_by} needs {package}: pip install 'torchspec[{extra}]'") and sentence in str(refusal.value)
    assert [f.fix for f in installation(config) if f.verdict == "bad" and f.check == extra] == [sentence]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"inference": {"inference_engine_type": "vllm", "server_url": "http://a:1"}},
        {"inference": {"inference_engine_type": "vllm", "num_workers": 1}, "cluster": {"address": "auto"}},
    ],
)
def test_what_runs_elsewhere_is_not_asked_for_here(sections):
    assert {need.extra for need in needs(RunConfig(**SOMEWHERE, **sections))} <= {"ray"}


def test_torchrun_needs_no_ray(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert needs(RunConfig(**SOMEWHERE, training={"num_ranks": 2})) == []


def test_what_the_converter_cannot_import_is_named_with_the_extra(tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text("import a_tokenizer_library\n")
    converter = LlamaCpp(tmp_path)
    with pytest.raises(UserError, match=r"^llama.cpp's converter needs a_tokenizer_library: pip install 'torchspec\[llamacpp\]'$"):
        converter.convert(tmp_path, tmp_path / "x.gguf", "float32", sys.executable)
