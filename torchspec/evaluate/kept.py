"""What an interrupted evaluation has already measured: one line per prompt, so that the next run goes on there."""

import json
from pathlib import Path


class Kept:
    def __init__(self, file: Path, protocol: dict):
        """Rows of another protocol, and a last line cut by a kill, do not count."""
        self.file, self.rows = file, {}
        head = json.dumps(protocol) + "\n"
        lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines[1:] if line.endswith("\n")] if lines[:1] == [head] else []
        file.write_text(head + "".join(whole), "utf-8")
        for line in whole:
            row = json.loads(line)
            self.rows[row["key"]] = row["value"]

    def get_or(self, key: str, measure) -> dict:
        """The row of that key, measured and written now if it is not there."""
        if key not in self.rows:
            self.rows[key] = json.loads(json.dumps(measure()))
            with self.file.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps({"key": key, "value": self.rows[key]}) + "\n")
        return self.rows[key]
