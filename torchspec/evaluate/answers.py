"""What the target answers to the questions of a data set: written once for every (target, template, settings), prompt by prompt."""

import hashlib
import json
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from torchspec.data.chat import ChatFormat
from torchspec.data.regenerate import Regenerator, Sampling, finished_conversations
from torchspec.evaluate.run import Settings
from torchspec.inference import Pair
from torchspec.log import console

BATCH = 16  # questions answered at a time, and lost at most when the run is killed


def answered(pair: Pair, asked: dict[str, list[list[str]]], settings: Settings, cache: Path, out: Path) -> dict[str, str]:
    """asked: data set -> user turns of its conversations. Returns data set -> file of the target's answers."""
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
    regenerator = Regenerator(ChatFormat.load(pair.folder, settings.thinking, False), pair.target.model, sampling)
    folder = out / "answers"
    return {name: str(target_answers(regenerator, pair.folder, turns, cache, folder, name)) for name, turns in asked.items()}


def target_answers(regenerator: Regenerator, target: Path, asked: list[list[str]], cache: Path, out: Path, name: str) -> Path:
    """Writes out/NAME.jsonl, a row per assistant turn in the order of `asked`; only what the cache lacks is generated."""
    kept = cache / "answers" / f"{fingerprint(regenerator, target)}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    keys = [_hash(turns) for turns in asked]
    done = finished_conversations(kept)
    todo = [(key, turns) for key, turns in dict(zip(keys, asked, strict=True)).items() if key not in done]
    todo.sort(key=lambda item: len(str(item[1])))
    columns = (TextColumn(f"the target answers {name}"), MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn())
    with kept.open("a") as sink, Progress(*columns, console=console, disable=not todo) as progress:
        task = progress.add_task("", total=len(todo))
        for start in range(0, len(todo), BATCH):
            batch = [(key, [{"role": "user", "content": turn} for turn in turns]) for key, turns in todo[start : start + BATCH]]
            sink.write("".join(json.dumps(row) + "\n" for row in regenerator.answer(batch)))
            sink.flush()
            progress.advance(task, len(batch))
    rows: dict[str, list[str]] = {key: [] for key in keys}
    with kept.open() as source:
        for line in source:
            key = json.loads(line)["id"].rsplit("#", 1)[0]
            if key in rows:
                rows[key].append(line)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.jsonl"
    file.write_text("".join(line for key in keys for line in rows[key]))
    return file


def fingerprint(regenerator: Regenerator, target: Path) -> str:
    """Of all that decides an answer beside its question."""
    weights = [(file.name, file.stat().st_size) for file in sorted(target.glob("*.safetensors"))]
    model = [(target / "config.json").read_text(), str(regenerator.model.dtype), weights, str(target.resolve())]
    return _hash([model, regenerator.chat.template_hash, regenerator.chat.thinking, vars(regenerator.sampling)])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
