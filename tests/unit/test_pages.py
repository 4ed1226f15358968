"""Every page, read by a machine: its commands are parsed, its recipes loaded, its keys, files and links looked for."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from torchspec.cli.main import app
from torchspec.config import RunConfig, load_config
from torchspec.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
STARTS = ("torchspec", "torchrun", "python", "$", "docker", "sbatch", "srun")
NAMED = re.compile(r"torchspec[ :]|slurm\.sbatch")
IN_THE_IMAGE, SBATCH = "/opt/torchspec/", "deploy/slurm.sbatch"
SECTIONS = ("model", "draft", "dataset", "training", "inference", "evaluation", "tracking", "cluster")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<=\s)--?[a-z][\w-]*")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each."""
    return FENCE.findall(page.read_text())


def spans(page: Path) -> list[str]:
    """Code inside of sentences and tables, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))]


def code(page: Path) -> str:
    """What a user types or writes into a file."""
    return "\n".join([*spans(page), *(text for language, text in blocks(page) if language not in ("python", "diff"))])


def words_of(line: str) -> list[str] | None:
    """What a line of a shell hands to `torchspec`: by itself, in the image, or in a job of Slurm."""
    words = shlex.split(line.replace(IN_THE_IMAGE, ""), comments=True)
    for place, word in enumerate(words):
        if word == "torchspec" or (word.startswith("torchspec:") and words[:2] == ["docker", "run"]):
            return words[place + 1 :]
        if word == SBATCH:
            return ["train", "-c", *words[place + 1 :]]
    return None


def command_lines() -> list[list[str]]:
    texts = (text for page in PAGES for language, text in blocks(page) if not language)
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    found = (words_of(line) for line in lines if NAMED.search(line) and line.split()[0] in STARTS)
    return [line for line in found if line]


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_a_command_is_parsed_and_its_recipe_loads(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    group = get_command(app)
    name, command, rest = group.resolve_command(group.make_context("torchspec", line, resilient_parsing=True), line)
    given = command.make_context(name, rest).params
    if given.get("config"):
        load_config(str(given["config"]), given["overrides"] or [])


def test_the_pages_are_searched_for_commands():
    lines = command_lines()
    assert {line[0] for line in lines} >= {"doctor", "eval", "export", "prepare", "regenerate", "train", "plan", "compare", "calibrate"}
    assert ["train", "-c", "configs/h200_qwen3_30b_a3b_dflash.yaml"] in lines  # a job's
    assert ["train", "-c", "configs/node_qwen3_8b_dflash.yaml"] in lines  # a container's


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torchspec train -c a.yaml  # a comment", ["train", "-c", "a.yaml"]),
        ("$ torchspec doctor", ["doctor"]),
        ("torchrun --nproc-per-node=3 -m torchspec train -c a.yaml", ["train", "-c", "a.yaml"]),
        ("docker run --rm torchspec:cpu train -c /opt/torchspec/a.yaml", ["train", "-c", "a.yaml"]),
        ("docker build -t torchspec:cpu .", None),
        ("sbatch --nodes=1 deploy/slurm.sbatch a.yaml k=v", ["train", "-c", "a.yaml", "k=v"]),
    ],
)
def test_words_are_found(line, words):
    assert words_of(line) == words


def test_commands_inside_of_sentences_exist_with_their_options():
    commands = get_command(app).commands
    used = [words for page in [*PAGES, *OTHERS] for span in spans(page) if (words := re.match(r"torchspec ([a-z]+)(.*)", span))]
    assert len(used) > 40
    for words in used:
        name, rest = words.groups()
        assert name in commands, words[0]
        known = {option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(OPTION.findall(rest)) <= known, words[0]


def test_pieces_of_recipes_load(tmp_path):
    pieces = [text for page in PAGES for language, text in blocks(page) if language == "yaml"]
    assert pieces
    for piece in pieces:
        (file := tmp_path / "piece.yaml").write_text(piece)
        given = yaml.safe_load(piece)
        needed = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d"}}
        load_config(str(file), [f"{key}={value}" for key, value in dotted(needed) if key not in dict(dotted(given))])


def dotted(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def keys_of(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}.{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}.{name}")


def test_every_key_that_a_page_names_exists():
    sections = {name: [RunConfig.model_fields[name].annotation] for name in SECTIONS if name != "draft"}
    sections["draft"] = [method.config for method in METHODS.values()]
    known = {key for name, kinds in sections.items() for kind in kinds for key in keys_of(kind, name)}
    others = re.compile(r"model\.(layers|norm)|.*\.(gguf|safetensors|pt|py|json)$")  # attributes, files
    pattern = re.compile(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)\b(?!\()")
    for page in [*PAGES, *OTHERS]:
        named = set(pattern.findall(code(page)))
        assert {key for key in named - known if not others.match(key)} == set(), page.name


def test_what_a_page_shows_as_added_is_there_and_what_was_taken_away_is_not():
    lines = [line for page in PAGES for language, text in blocks(page) if language == "diff" for line in text.splitlines()]
    assert len(lines) > 30
    for line in lines:
        if line.startswith("+++ "):
            source = (ROOT / line.removeprefix("+++ ")).read_text().splitlines()
        else:
            assert (line[1:] in source) == (line[0] == "+"), line


def test_every_file_that_a_page_names_exists():
    pattern = re.compile(r"(?<![\w./-])(?:tests|scripts|benchmarks|configs|deploy|docs)/[\w./*-]+\.(?:py|yaml|md|sh|sbatch|jsonl?)\b")
    for page in [*PAGES, *OTHERS]:
        for name in pattern.findall(code(page)):
            assert list(ROOT.glob(name)), f"{page.name}: {name}"


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [*PAGES, *OTHERS]:
        for name in re.findall(r"(?:^|[ (])make (?:-j \d )?([a-z-]+)", code(page), re.MULTILINE):
            assert name in targets, f"{page.name}: make {name}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[str, str]]:
    """(page, anchor), either may be empty."""
    return re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.stem)
def test_links_lead_to_a_page_and_to_a_heading_of_it(page):
    for name, anchor in links(page):
        there = page.parent / name if name else page
        assert there.exists(), name
        assert not anchor or anchor in anchors(there), f"{name}#{anchor}"


def test_a_planted_link_to_no_heading_is_found(tmp_path):
    (page := tmp_path / "page.md").write_text(
        "# τ of `a_b` (c), d\n[there](#τ-of-a_b-c-d) [nowhere](#elsewhere)\n```\n# [code](#code)\n```\n"
    )
    assert {anchor for _, anchor in links(page)} - anchors(page) == {"elsewhere"}


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            ahead += [page.parent / name for name, _ in links(page) if name]
    assert reached >= set(PAGES)
