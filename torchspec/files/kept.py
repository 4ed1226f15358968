"""What an interrupted evaluation has already measured: one line per prompt, so that the next run goes on there."""

import json
from pathlib import Path

from torchspec.files.whole import whole


class Kept:
    def __init__(self, file: Path, made_from: dict):
        """made_from: all that a row depends on beside its key. Rows that were made from anything else do not count, nor does a line
        cut by a kill or a full disk."""
        self.file, self.rows = file, {}
        head = json.dumps(made_from) + "\n"
        lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
        complete = [line for line in lines[1:] if _is_whole(line)] if lines[:1] == [head] else []
        with whole(file) as partial:
            partial.write_text(head + "".join(complete), "utf-8")
        for line in complete:
            row = json.loads(line)
            self.rows[row["key"]] = row["value"]

    def get_or(self, key: str, measure) -> dict:
        """The row of that key, measured and written now if it is not there."""
        if key not in self.rows:
            self.rows[key] = json.loads(json.dumps(measure()))
            with self.file.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps({"key": key, "value": self.rows[key]}) + "\n")
        return self.rows[key]


def _is_whole(line: str) -> bool:
    try:
        return line.endswith("\n") and json.loads(line).keys() == {"key", "value"}
    except (ValueError, AttributeError):  # no JSON, or no row: measured again
        return False
