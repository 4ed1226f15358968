"""The data sets that drafts are measured on, with the prompts of z-lab's published protocol (https://github.com/z-lab/dflash)."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from torchspec.errors import UserError
from torchspec.rows.files import records

SHUFFLE_SEED = 42  # of z-lab's protocol: the first n of this order are its n samples
REASON = "\nPlease reason step by step, and put your final answer within \\boxed{{}}."
PROGRAM = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```"
LIVECODEBENCH = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests. You will NOT return anything except for the program\n\n"
    "### Question:\n{question_content}\n\n### Format: {format}\n```python\n{code}\n```\n\n"
    "### Answer: (use the provided format with backticks)"
)


@dataclass(frozen=True)
class DataSet:
    domain: str
    source: tuple[str, ...]  # arguments of datasets.load_dataset
    split: str
    turns: Callable[[dict], list[str]]  # one row -> what the user says, turn by turn
    files: tuple[str, ...] = ()  # of a repository that is a collection of JSON files


def text(template: str) -> Callable[[dict], list[str]]:
    return lambda row: [template.format(**row)]


def alpaca(row: dict) -> list[str]:
    return [f"{row['instruction']}\n\nInput:\n{row['input']}" if row["input"] else row["instruction"]]


def livecodebench(row: dict) -> list[str]:
    given = row["starter_code"]
    how = "Use the following code structure:" if given else "Write your code in the following format:"
    return [LIVECODEBENCH.format(question_content=row["question_content"], format=how, code=given or "# YOUR CODE HERE")]


DATA_SETS = {
    "gsm8k": DataSet("math", ("openai/gsm8k", "main"), "test", text("{question}" + REASON)),
    "math500": DataSet("math", ("HuggingFaceH4/MATH-500",), "test", text("{problem}" + REASON)),
    "aime24": DataSet("math", ("HuggingFaceH4/aime_2024",), "train", text("{problem}" + REASON)),
    "aime25": DataSet("math", ("MathArena/aime_2025",), "train", text("{problem}" + REASON)),
    "humaneval": DataSet("code", ("openai/openai_humaneval",), "test", text(PROGRAM)),
    "mbpp": DataSet("code", ("google-research-datasets/mbpp", "sanitized"), "test", text("{prompt}")),
    "livecodebench": DataSet(
        "code", ("livecodebench/code_generation_lite",), "test", livecodebench, ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))
    ),
    "swe-bench": DataSet(
        "code",
        ("princeton-nlp/SWE-bench_Lite",),
        "test",
        text("Problem Statement:\n{problem_statement}\nPlease fix the issue described above."),
    ),
    "mt-bench": DataSet("chat", ("HuggingFaceH4/mt_bench_prompts",), "train", lambda row: list(row["prompt"])),
    "alpaca": DataSet("chat", ("tatsu-lab/alpaca",), "train", alpaca),
}


def questions(name: str, data_dir: Path | None, samples: int | None) -> list[list[str]]:
    """User turns of the first `samples` conversations in the protocol's order.

    data_dir: holds NAME.jsonl with the hub's rows, or with {"turns": [...]}; without it the hub is asked.
    """
    if name not in DATA_SETS:
        raise UserError(f"data set {name!r} is not known; choose among {', '.join(DATA_SETS)}, or give conversations with --data")
    rows = _local(data_dir / f"{name}.jsonl") if data_dir else _hub(name)
    asked = [_turns(name, where, row) for where, row in rows]
    random.Random(SHUFFLE_SEED).shuffle(asked)
    return asked[:samples]


def _turns(name: str, where: str, row: dict) -> list[str]:
    if "turns" in row:
        if not isinstance(row["turns"], list) or not all(isinstance(turn, str) for turn in row["turns"]):
            raise UserError(f"{where}: 'turns' must be a list of texts; mend or remove the line")
        return row["turns"]
    try:
        return DATA_SETS[name].turns(row)
    except KeyError as error:
        raise UserError(f"{where}: data set {name} needs the key {error} (or 'turns'); the row has {', '.join(map(repr, row))}") from error


def _local(file: Path) -> Iterator[tuple[str, dict]]:
    if not file.is_file():
        raise UserError(
            f"--data-dir holds no {file.name} (looked for {file.resolve()}); put it there, or leave --data-dir out to ask the hub"
        )
    for where, line in records(file):
        try:
            row = json.loads(line)
        except ValueError as error:  # no JSON, or not UTF-8
            raise UserError(f"{where} is not valid JSON ({error}); mend or remove the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is no JSON object but {type(row).__name__}; mend or remove the line")
        yield where, row


def _hub(name: str) -> Iterator[tuple[str, dict]]:
    wanted = DATA_SETS[name]
    repository = wanted.source[0]
    files = {"data_files": {wanted.split: [f"hf://datasets/{repository}/{file}" for file in wanted.files]}} if wanted.files else {}
    try:
        rows = datasets.load_dataset(*(("json",) if files else wanted.source), split=wanted.split, **files)
    except (OSError, ValueError) as error:  # no network, or the set is gone
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data set {name} ({repository}) cannot be read from the hub ({reason}); give --data-dir with {name}.jsonl"
        ) from error
    yield from ((f"{repository}:{index}", row) for index, row in enumerate(rows))
