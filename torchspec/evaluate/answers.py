"""What the target answers to the questions of a data set: written once for every (target, template, settings), prompt by prompt."""

import json
from pathlib import Path

from filelock import FileLock

from torchspec.chat.format import ChatFormat
from torchspec.console import console
from torchspec.decode.pair import Pair
from torchspec.errors import UserError
from torchspec.evaluate.run import Settings, evaluating
from torchspec.files import contents
from torchspec.progress import PlainLines, live_line
from torchspec.regenerate.answers_file import AnswersFile
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.protocol import IN_FLIGHT
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.turns import Answering, Sampling, Turns
from torchspec.serve.options import check_client

BATCH = 16  # questions answered at a time, and lost at most when the run is killed


def answered(
    pair: Pair, asked: dict[str, list[list[str]]], settings: Settings, cache: Path, out: Path, servers: list[str]
) -> dict[str, str]:
    """asked: data set -> user turns of its conversations. Returns data set -> file of the target's answers.

    servers: URLs of servers that run the target and answer instead of it here.
    """
    sampling = Sampling(settings.max_new_tokens, (settings.temperature,), settings.seed)
    with evaluating(pair, out):
        turns = Turns(ChatFormat.load(pair.folder, settings.thinking, False, pair.target.spec.trust_remote_code), sampling)
        answering = _running(turns, servers, pair) if servers else Regenerator(turns, pair.target.model, BATCH)
        return {name: str(target_answers(answering, questions, cache, out / "answers", name)) for name, questions in asked.items()}


def _running(turns: Turns, servers: list[str], pair: Pair) -> Answering:
    check_client("--server")
    from torchspec.regenerate.engine import running  # its client is an extra

    return running(turns, servers, IN_FLIGHT, lambda: pair.target.model)


def target_answers(answering: Answering, asked: list[list[str]], cache: Path, out: Path, name: str) -> Path:
    """Writes out/NAME.jsonl, a row per assistant turn in the order of `asked`; only what the cache lacks is generated."""
    header = answering.turns.header(answering.made_with)
    kept = cache / "answers" / f"{contents.key(header)}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    conversations = [Conversation(f"{name}:{i}", [[{"role": "user", "content": turn}] for turn in turns]) for i, turns in enumerate(asked)]
    with FileLock(f"{kept}.lock"):  # evaluations of several drafts share a target: the others wait, and find the answers there
        _answer(answering, AnswersFile(kept, header, answering.turns.target), conversations, name)
    rows = _rows(kept, {c.key for c in conversations})
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.jsonl"
    file.write_text("".join(line for c in conversations for line in rows.get(c.key, [])))
    return file


def _answer(answering: Answering, answers: AnswersFile, conversations: list[Conversation], name: str) -> None:
    todo = list({c.key: c for c in conversations if c.key not in answers.done}.values())
    what, done, lines = f"the target answers {name}", 0, PlainLines(console)
    with live_line(what, console, bool(todo)) as progress:
        task = progress.add_task("", total=len(todo))
        for finished in answering.converse(todo):
            answers.add([(c.key, c.rows) for c in finished])
            done += len(finished)
            progress.update(task, completed=done)
            lines.tell(f"{what}: {done:,} of {len(todo):,} conversations", done, len(todo))
    without = [c for c in todo if not c.rows]
    if without and len(without) == len(conversations):
        raise UserError(f"the target can answer no question of {name}: {without[0].ended}")
    if without:
        console.print(f"{len(without)} questions of {name} have no answer, first {without[0].where}: {without[0].ended}", markup=False)


def _rows(file: Path, keys: set[str]) -> dict[str, list[str]]:
    """Lines of these conversations."""
    rows: dict[str, list[str]] = {}
    with file.open() as source:
        for line in source:
            key = json.loads(line)["key"]
            if key in keys:
                rows.setdefault(key, []).append(line)
    return rows
