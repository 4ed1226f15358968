"""The first rows of every source: how many are usable, what is supervised, and whether the target wrote it."""

from pathlib import Path

from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import check_target
from torchspec.capture.hf import HFCapture
from torchspec.config import RunConfig
from torchspec.data.dataset import MixedDataset, PromptDataset, check_prepared_as
from torchspec.data.encode import Options
from torchspec.data.leak import find_leak
from torchspec.data.prepare import prepare
from torchspec.doctor.finding import Finding
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.regenerate.share import on_policy_share
from torchspec.target.frozen import FrozenTarget

ROWS, SHARE_ROWS = 256, 8
# SmolLM2-135M: 0.99 for its own greedy answers, 0.68 for people's, 0.60 for its own at temperature 1 (larger targets vary less)
LEAST_SHARE = 0.8
MOST_REJECTED, LEAST_MASK = 0.1, 0.05


def open_first_rows(config: RunConfig, folder: Path, scratch: Path) -> dict[str, PromptDataset]:
    """Every training source by its path, cut to its first rows unless it is prepared already."""
    paths = [config.dataset.train_data_path, *config.dataset.mix]
    return {path: _open(path, scratch / f"source{number}", config, folder) for number, path in enumerate(paths)}


def _open(path: str, prepared: Path, config: RunConfig, folder: Path) -> PromptDataset:
    """prepared: where to, unless it is prepared already."""
    data = config.dataset
    options = Options(data.thinking, data.last_turn_only, data.max_length, data.min_loss_tokens, 1.0, config.model.trust_remote_code)
    if (Path(path) / "manifest.json").is_file():
        dataset = PromptDataset(Path(path))
        check_prepared_as(dataset, options, folder)
        return dataset
    prepare([path], prepared, folder, options, limit=ROWS, workers=1, progress=False)
    return PromptDataset(prepared)


def leaks(config: RunConfig, folder: Path, scratch: Path, sources: dict[str, PromptDataset]) -> list[Finding]:
    """Held-out prompts among the rows that are opened here; a run looks through all of them."""
    path = config.dataset.eval_data_path
    if path is None:
        return []
    held_out = _open(path, scratch / "held-out", config, folder)
    train = MixedDataset(list(sources.values()), [1.0, *config.dataset.mix.values()])
    leak = find_leak(train, held_out, folder, config.model.trust_remote_code)
    return [Finding("data", "held-out prompts", leak.sentence(), "look" if leak.count else "ok")]


def rows(sources: dict[str, PromptDataset]) -> list[Finding]:
    return [finding for path, dataset in sources.items() for finding in _rows(Path(path).name, dataset)]


def _rows(name: str, dataset: PromptDataset) -> list[Finding]:
    manifest = dataset.manifest
    left_out = sum(manifest.rejected.values())
    share = left_out / (left_out + manifest.samples)
    worst = max(manifest.rejected, key=manifest.rejected.get, default="")
    few = manifest.mask_share < LEAST_MASK
    return [
        Finding(
            "data", f"{name}: rows", f"{manifest.samples} samples, {left_out} rows rejected, {manifest.truncated} cut",
            "bad" if share > MOST_REJECTED else "ok", f"most frequent: {worst}" if worst else "",
        ),
        Finding(
            "data", f"{name}: mask share", f"{manifest.mask_share:.0%} of {manifest.tokens:,} tokens are supervised",
            "look" if few else "ok", "little to learn per captured token; are the answers cut off by dataset.max_length?" if few else "",
        ),
    ]  # fmt: skip


def on_policy(config: RunConfig, frozen: FrozenTarget, sources: dict[str, PromptDataset]) -> list[Finding]:
    """With the target loaded, its own next tokens are compared with what the draft will take for its head."""
    dtype, device, remote_code = resolve_dtype(config.model.dtype), resolve_device(config.model.device), config.model.trust_remote_code
    target = HFCapture(CaptureSpec(frozen.folder, (0,), dtype, device, trust_remote_code=remote_code))
    on_device = FrozenTarget.load(frozen.folder, dtype, device, remote_code)
    for dataset in sources.values():
        check_target(target, on_device, dataset[0])
    shares = [_share(Path(path).name, *on_policy_share(target, dataset, SHARE_ROWS)) for path, dataset in sources.items()]
    return [Finding("data", "next tokens", "the draft's view of norm and head gives the target's own"), *shares]


def _share(name: str, same: int, total: int) -> Finding:
    found = f"{same / total:.0%} of {total} tokens are the target's own choice"
    if same / total >= LEAST_SHARE:
        return Finding("data", f"{name}: on-policy", found)
    return Finding(
        "data", f"{name}: on-policy", found, "look", "not its greedy words: if it did not write them at all, `torchspec regenerate`"
    )
