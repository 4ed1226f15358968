"""Data sets that the `datasets` library reads: of the hub, of a folder, and .parquet files.

owner/name    owner/name:split    owner/name:subset:split    and the same with a folder for owner/name
"""

import glob
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from torchspec.errors import UserError
from torchspec.files.contents import file_key

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# No network, no such set; a damaged file; files whose columns differ; a set that needs code of its own; one that needs Pillow
UNREADABLE = (OSError, ValueError, EOFError, zlib.error, TypeError, RuntimeError, ImportError)


@dataclass(frozen=True)
class DataSet:
    name: str  # as the user gave it
    source: str  # hub id, folder, or a .parquet file
    subset: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, name: str) -> "DataSet | None":
        """None if that is no name of a set."""
        source, *parts = name.split(":")
        if len(parts) > 2 or not all(parts) or not (HUB_ID.fullmatch(source) or Path(source).is_dir()):
            return None
        return cls(name, source, *(parts if len(parts) == 2 else [None, *parts]))

    def records(self) -> Iterator[tuple[str, dict]]:
        reached = None
        try:
            rows = self._builder().as_streaming_dataset(split=self.split)
            features = rows.features or {}
            for index, row in enumerate(rows):
                reached = f"{self.name}:{index}"
                yield reached, _filled({key: value for key, value in row.items()}, dict(features))
        except UNREADABLE as error:
            raise self._unreadable(error, reached) from error

    def state(self) -> list:
        """Changes when the contents do: hub files are addressed with their revision, other files by what they hold."""
        try:
            files = self._builder().config.data_files or {}
        except UNREADABLE as error:
            raise self._unreadable(error, None) from error
        return [self.name, [file if "://" in file else file_key(Path(file)) for file in files.get(self.split, [])]]

    def _builder(self) -> datasets.DatasetBuilder:
        if self.source.endswith(".parquet"):
            return datasets.load_dataset_builder("parquet", data_files={self.split: [glob.escape(self.source)]})
        return datasets.load_dataset_builder(self.source, self.subset)

    def _unreadable(self, error: Exception, reached: str | None) -> UserError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if self.source.endswith(".parquet"):
            return UserError(f"input {self.name} cannot be read ({reason}; the last row read was {reached}); fetch or write the file again")
        if reached is not None:
            return UserError(f"input {self.name!r} cannot be read after {reached} ({reason}); mend that file of the set, or leave it out")
        return UserError(f"input {self.name!r}: no such file, and the data set cannot be read ({reason}); {self._advice()}")

    def _advice(self) -> str:
        """Names the subsets, or the splits of the subset that was named, where the set itself can be reached."""
        try:
            subsets = datasets.get_dataset_config_names(self.source)
            if self.subset not in (subsets if len(subsets) > 1 else [None, *subsets]):
                return f"its subsets are {', '.join(subsets)}: name one as {self.source}:SUBSET:SPLIT"
            splits = [str(split) for split in datasets.get_dataset_split_names(self.source, self.subset)]
            if self.split not in splits:
                return f"its splits are {', '.join(splits)}: name one as {':'.join(filter(None, (self.source, self.subset, 'SPLIT')))}"
        except UNREADABLE:  # not reached, as the reason says
            pass
        return "check its name (owner/name, owner/name:split or owner/name:subset:split) and its files, or give a file"


def _filled(value: object, feature: object) -> object:
    """A table gives every object the keys of all others, as null: they go at any depth. A column of type Json keeps each value as it
    was written, null or not."""
    if isinstance(feature, datasets.Json):
        return value
    if isinstance(value, dict):
        inner = feature if isinstance(feature, dict) else {}
        return {key: _filled(item, inner.get(key)) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None
        return [_filled(item, inner) for item in value]
    return value
