"""Job files and the image: linted, every field known, every command a real one with a recipe that loads, and devices enough for it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from torchspec.cli.main import app
from torchspec.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]
DEPLOY, IN_THE_IMAGE = ROOT / "deploy", "/opt/torchspec/"
SBATCH, RAYJOB, DOCKERFILE = DEPLOY / "slurm.sbatch", DEPLOY / "rayjob.yaml", DEPLOY / "Dockerfile"

# field -> fields inside of it; None: Kubernetes' own, or free. Of KubeRay's types (ray-operator/apis/ray/v1) and core/v1, what is used.
CONTAINER = {"name": None, "image": None, "ports": None, "resources": {"requests": None, "limits": None}, "volumeMounts": None}
POD = {"spec": {"securityContext": None, "containers": [CONTAINER], "volumes": None}}
GROUP = {"rayStartParams": None, "template": POD}
KNOWN = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name": None},
    "spec": {
        "entrypoint": None, "shutdownAfterJobFinishes": None, "ttlSecondsAfterFinished": None, "backoffLimit": None,
        "rayClusterSpec": {
            "rayVersion": None, "headGroupSpec": GROUP,
            "workerGroupSpecs": [{"groupName": None, "replicas": None, "minReplicas": None, "maxReplicas": None, **GROUP}],
        },
    },
}  # fmt: skip


def unknown(value: object, known: object, place: str = "") -> list[str]:
    if isinstance(known, list):
        return [name for i, item in enumerate(value) for name in unknown(item, known[0], f"{place}[{i}]")]
    if not isinstance(known, dict):
        return []
    found = [f"{place}.{name}" for name in value if name not in known]
    return found + [name for key in value if key in known for name in unknown(value[key], known[key], f"{place}.{key}")]


def trained(command: str) -> RunConfig:
    """The config of a `torchspec train` in a shell's words, which the command line parses."""
    words = shlex.split(command.replace(IN_THE_IMAGE, f"{ROOT}/"))
    line = words[words.index("torchspec") + 1 :]
    group = get_command(app)
    name, parsed, rest = group.resolve_command(group.make_context("torchspec", line, resilient_parsing=True), line)
    given = parsed.make_context(name, rest).params
    assert name == "train"
    return load_config(str(given["config"]), given["overrides"] or [])


def gpus(config: RunConfig) -> int:
    return config.training.num_ranks + config.inference.num_workers * config.inference.gpus_per_worker


def linted(linter: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    program = shutil.which(linter, path=Path(sys.executable).parent) or shutil.which(linter)
    if program is None:
        pytest.skip(f"{linter} is not installed; it comes with the extra dev")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def sbatch_command(recipe: str, *overrides: str) -> str:
    """What the script runs with these arguments, from `torchspec` on."""
    last = SBATCH.read_text().rpartition("  torchspec ")[2].partition(" &")[0]
    return "torchspec " + last.replace('"$recipe"', recipe).replace('"$@"', " ".join(overrides))


def test_the_batch_script_is_sound():
    assert subprocess.run(["bash", "-n", SBATCH], capture_output=True).returncode == 0
    result = linted("shellcheck", SBATCH)
    assert result.returncode == 0, result.stdout


def test_a_planted_mistake_in_a_script_is_found(tmp_path):
    (tmp_path / "planted.sh").write_text(SBATCH.read_text().replace('"$recipe" cluster', "$recipe cluster"))
    assert "SC2086" in linted("shellcheck", tmp_path / "planted.sh").stdout


def test_the_batch_script_runs_a_command_that_its_nodes_have_devices_for():
    text = SBATCH.read_text()
    recipe = re.search(r"^# usage: sbatch --nodes=(\d+) deploy/slurm.sbatch (\S+)", text, re.MULTILINE)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    config = trained(sbatch_command(str(ROOT / recipe[2]), "dataset.train_data_path=x.jsonl"))
    assert (config.cluster.address, config.dataset.train_data_path) == ("auto", "x.jsonl")
    assert recipe[1] == asked["nodes"] and gpus(config) == int(asked["nodes"]) * int(asked["gpus-per-node"])
    assert asked["ntasks-per-node"] == "1"  # one Ray per node


def test_every_field_of_the_rayjob_is_known_and_a_planted_one_is_not():
    job = yaml.safe_load(RAYJOB.read_text())
    assert (job["apiVersion"], job["kind"], unknown(job, KNOWN)) == ("ray.io/v1", "RayJob", [])
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 3
    assert unknown(job, KNOWN) == [".spec.rayClusterSpec.workerGroupSpecs[0].replica"]


def test_the_rayjob_runs_a_command_that_its_pods_have_devices_for():
    spec = yaml.safe_load(RAYJOB.read_text())["spec"]
    cluster, config = spec["rayClusterSpec"], trained(spec["entrypoint"])
    groups = [(1, cluster["headGroupSpec"]), *((group["replicas"], group) for group in cluster["workerGroupSpecs"])]
    pods = [(count, group["template"]["spec"]) for count, group in groups]
    asked = [(count, pod["containers"][0]["resources"]["requests"]) for count, pod in pods]
    assert config.cluster.address == "auto"
    assert gpus(config) == sum(count * resources["nvidia.com/gpu"] for count, resources in asked)
    assert sum(count * int(resources["cpu"]) for count, resources in asked) >= 4 * config.inference.num_workers + config.training.num_ranks
    for _, pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes == mounts.keys() and set(mounts.values()) == {"/work", "/dev/shm"}
        assert pod["containers"][0]["image"] == pods[0][1]["containers"][0]["image"]


def test_the_image_is_sound():
    result = linted("hadolint", DOCKERFILE)
    assert result.returncode == 0, result.stdout


def test_a_planted_mistake_in_the_image_is_found(tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("--no-cache-dir ", ""))
    assert "DL3042" in linted("hadolint", tmp_path / "Dockerfile").stdout


def test_what_the_image_copies_is_there_and_let_through():
    text, ignored = DOCKERFILE.read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert {"torchspec", "configs", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in ignored
    assert f"WORKDIR {IN_THE_IMAGE[:-1]}\n" in text


def test_the_image_runs_the_command_as_no_root():
    lines = DOCKERFILE.read_text().splitlines()
    user, entry = (next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("USER 1000", "ENTRYPOINT"))
    assert user < entry and lines[entry] == 'ENTRYPOINT ["torchspec"]'


def test_documented_recipes_and_files_are_there():
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in re.findall(r"(?:configs|deploy)/[\w.]+", page):
        assert (ROOT / name).is_file(), name
    for line in re.findall(r"^sbatch --nodes=(\d+) deploy/slurm.sbatch (.*)$", page, re.MULTILINE):
        assert gpus(trained(sbatch_command(line[1]).replace("configs/", f"{ROOT}/configs/"))) == 8 * int(line[0])
