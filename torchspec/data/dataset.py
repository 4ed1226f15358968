"""A prepared folder as a sequence of prompts, memory-mapped: opening costs no memory, however many samples it holds."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import LongTensor

from torchspec.data.encode import DEFAULTS, Options
from torchspec.data.manifest import VERSION, Manifest, mixed, tokenizer_hash
from torchspec.data.plan import Part
from torchspec.data.prepare import longest, prepare
from torchspec.errors import ContractError, UserError
from torchspec.files.contents import key
from torchspec.files.whole import tidy
from torchspec.records import Prompt
from torchspec.rows.sources import resolve, state
from torchspec.target.language_config import positions

ROWS_AT_ONCE = 64  # of a pass over everything: at 8,192 tokens a row, 2 MB of ids


class PromptDataset:
    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        try:
            self._rows = datasets.load_from_disk(str(self.folder)).with_format("numpy")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is an incomplete prepared dataset ({error}); prepare the data again") from error
        if len(self._rows) != self.manifest.samples:
            raise UserError(
                f"{self.folder} holds {len(self._rows)} samples of the {self.manifest.samples} in its manifest; prepare it again"
            )
        self.parts = (Part(len(self._rows)),)
        self.lengths = self._column("length")  # [samples] int64
        self.loss_tokens = self._column("loss_tokens")  # [samples] int64

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Prompt:
        index = range(len(self))[i]  # a negative or too large index behaves as in a list
        row = self._rows[index]
        ids = torch.from_numpy(row["ids"].astype(np.int64))  # [L]
        loss_mask = torch.from_numpy(row["loss_mask"].astype(bool))  # [L]
        return Prompt(index, ids, loss_mask).check()

    def where(self, i: int) -> str:
        """The row of the input from which sample i was made."""
        return str(self._rows[i]["where"])

    def token_counts(self, vocab_size: int, supervised: bool = False) -> LongTensor:
        """[V] occurrences of every id in the text, or in its supervised part alone."""
        counts, columns = np.zeros(vocab_size, dtype=np.int64), (self._rows.data.column(name).chunks for name in ("ids", "loss_mask"))
        for ids, loss_mask in zip(*columns, strict=True):
            kept = loss_mask.flatten().to_numpy(zero_copy_only=False) if supervised else slice(None)
            found = np.bincount(ids.flatten().to_numpy()[kept], minlength=vocab_size)
            if len(found) > vocab_size:
                raise ContractError(
                    f"{self.folder} holds token id {len(found) - 1} but the vocabulary has {vocab_size} tokens; "
                    "prepare the data for this target"
                )
            counts += found
        return torch.from_numpy(counts)

    def unsupervised(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows at a time, in order: ids of the text that is not supervised, end to end, and how many of them each sample has."""
        rows = self._rows.with_format("arrow")
        for first in range(0, len(self), ROWS_AT_ONCE):
            table = rows[first : first + ROWS_AT_ONCE]
            ids, loss_mask = (table[name].combine_chunks() for name in ("ids", "loss_mask"))
            lengths, prompt = np.diff(ids.offsets.to_numpy()), ~loss_mask.flatten().to_numpy(zero_copy_only=False)
            samples = np.repeat(np.arange(len(lengths)), lengths)
            yield ids.flatten().to_numpy()[prompt], np.bincount(samples[prompt], minlength=len(lengths))

    def _column(self, name: str) -> np.ndarray:
        return self._rows.data.column(name).to_numpy().astype(np.int64)


class MixedDataset(PromptDataset):
    """Several datasets one after the other, each with its passes per epoch."""

    def __init__(self, sources: list[PromptDataset], passes: list[float]):
        self.folder = sources[0].folder
        self.manifest = mixed([source.manifest for source in sources], passes)
        self._rows = datasets.concatenate_datasets([source._rows for source in sources])
        self.parts = tuple(Part(len(source), share) for source, share in zip(sources, passes, strict=True))
        self.lengths = np.concatenate([source.lengths for source in sources])
        self.loss_tokens = np.concatenate([source.loss_tokens for source in sources])


def open_or_prepare(path: str, cache: Path, target: Path, options: Options = DEFAULTS, progress: bool = True) -> PromptDataset:
    """A prepared folder, if it was made for this target and thinking mode; anything else is prepared into `cache` once, under the
    given options."""
    if not (Path(path) / "manifest.json").is_file():
        return prepared_once([path], cache, target, options, progress)
    if options.split is not None:
        raise UserError(
            f"dataset.eval_share splits conversations, and {path} is prepared already; train on what it was made from, or set "
            "dataset.eval_data_path"
        )
    _check_made_for(Manifest.load(Path(path)), _hashes(target, options), target, options.thinking)
    return PromptDataset(Path(path))


def prepared_once(paths: list[str], cache: Path, target: Path, options: Options, progress: bool = True) -> PromptDataset:
    """All of them as one dataset, in a folder of `cache` that is kept by their contents."""
    sources = [resolve(path) for path in paths]
    name = re.sub("[/:]", "--", sources[0].stem if isinstance(sources[0], Path) else sources[0].name.strip("/"))
    side = "-held-out" if options.split and options.split.held_out else ""
    made_from = [list(map(state, sources)), asdict(options), _hashes(target, options), positions(target), VERSION]
    folder = Path(cache) / f"{name}{side}-{key(made_from)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder.parent)
    with FileLock(f"{folder}.lock"):  # ranks of one machine arrive together: the first one prepares, the others wait and open
        if not (folder / "manifest.json").is_file():
            prepare(paths, folder, target, options, progress=progress)
    return PromptDataset(folder)


def _tidy(cache: Path) -> None:
    """What killed runs had begun to prepare from other contents goes; what another run prepares now it holds the lock of."""
    for partial in cache.glob("*.partial"):
        folder = partial.with_name(partial.name.removesuffix(".partial"))
        with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
            tidy(folder)


def check_prepared_as(dataset: PromptDataset, options: Options, target: Path) -> None:
    """A folder was prepared before the run's config was written: it must hold what the config says of it."""
    made, wanted = asdict(dataset.manifest), {"last_turn_only": options.last_turn_only, "min_loss_tokens": options.min_loss_tokens}
    wanted["max_length"] = longest(target, options.max_length)
    different = [name for name in wanted if made[name] != wanted[name]]
    if different:
        values = " and ".join(f"dataset.{name} is {wanted[name]} but {made[name]} in {dataset.folder}" for name in different)
        raise UserError(f"{values}, which is prepared already; set what it was made with, or prepare it again")


def _hashes(target: Path, options: Options) -> dict[str, str]:
    return {"tokenizer_hash": tokenizer_hash(target), "template_hash": options.chat(target).template_hash}


def _check_made_for(manifest: Manifest, hashes: dict[str, str], target: Path, thinking: bool | None) -> None:
    for name, expected in hashes.items():
        found = asdict(manifest)[name]
        if found != expected:
            raise ContractError(
                f"the dataset was prepared for {manifest.target} (thinking={manifest.thinking}, {name} {found}) but the target is "
                f"{target} (thinking={thinking}, {name} {expected}); prepare the data again for this target"
            )
