"""The target's own answers on disk: right, whole, never mixed. The target is a random byte-level Llama, which answers in milliseconds."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from typer.testing import CliRunner

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.chat.format import ChatFormat
from torchspec.cli.main import app
from torchspec.decode.sequence import plain_decode
from torchspec.doctor.tiny import write_tiny_target
from torchspec.errors import Stopped, UserError
from torchspec.files.lock import locked
from torchspec.regenerate import run
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.conversation import Conversation, questions_of
from torchspec.regenerate.drop import KEEP_ALL, Drop
from torchspec.regenerate.here import Here
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.report import Counts
from torchspec.regenerate.turns import Sampling, Turns
from torchspec.rows.language import Languages
from torchspec.rows.sources import read_rows

TOKENS = 4
GREEDY = Sampling(TOKENS, (0.0,), 0)
HF = Engine("hf", [], 1, True, 16, None, "", None, 1)
HOSTILE = {
    "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "bad_words_ids": [[i] for i in range(40)], "min_length": 500, "top_k": 2,
    "suppress_tokens": list(range(40, 80)), "begin_suppress_tokens": list(range(80, 120)), "num_beams": 3, "top_p": 0.3, "min_p": 0.2,
    "sequence_bias": [[[130], 50.0]], "forced_eos_token_id": 7, "temperature": 0.3, "exponential_decay_length_penalty": [1, 2.0],
    "max_length": 3, "prompt_lookup_num_tokens": 3, "encoder_repetition_penalty": 2.0, "renormalize_logits": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_target(tmp_path_factory.mktemp("regenerate") / "target")


def here(folder: Path) -> Here:
    return Here(folder, torch.float32, torch.device("cpu"))


def loaded(folder: Path, sampling: Sampling = GREEDY) -> Regenerator:
    with open_answering(Turns(ChatFormat.load(folder, None, False), sampling), HF, here(folder), folder) as regenerator:
        return regenerator


def regenerate(inputs: list[str], out: Path, regenerator: Regenerator, batch_size: int, limit: int | None, **wanted) -> Counts:
    regenerator.batch_size = batch_size
    return run.regenerate(inputs, out, regenerator, run.Wanted(limit, **wanted))


def answered(regenerator: Regenerator, *conversations: dict) -> list[dict]:
    """A row for every assistant turn, conversation by conversation."""
    talks = [Conversation(str(i), questions_of(each["messages"])) for i, each in enumerate(conversations)]
    list(regenerator.converse(talks))
    return [row for talk in talks for row in talk.rows]


@pytest.fixture(scope="module")
def regenerator(folder) -> Regenerator:
    return loaded(folder)


@pytest.fixture
def resampled(regenerator):
    """The same target under another sampling."""
    return lambda drop=KEEP_ALL, **sampling: Regenerator(
        Turns(regenerator.turns.chat, Sampling(**{**vars(GREEDY), **sampling}), drop=drop), regenerator.model, 16
    )


def chat(*questions: str) -> dict:
    """A conversation with an old answer to every question."""
    turns = ([{"role": "user", "content": question}, {"role": "assistant", "content": "?"}] for question in questions)
    return {"messages": [message for turn in turns for message in turn]}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def questions(file: Path) -> list[str]:
    return [row["messages"][0]["content"] for row in lines(file)]


# --- what is asked


def test_prompts_in_another_language_are_not_asked_and_listed(regenerator, tmp_path, write_jsonl):
    pytest.importorskip("py3langid", reason="the extra `language` is missing")
    asked = ["Please tell me what the capital of France is.", "Schreibe bitte ein Gedicht über den Herbst."]
    out = tmp_path / "out.jsonl"
    regenerate([write_jsonl("chats.jsonl", map(chat, asked))], out, regenerator, 2, None, languages=Languages(["de"]))
    assert questions(out) == asked[1:]
    assert [row["reason"] for row in lines(tmp_path / "out.jsonl.rejected")] == ["in another language: en and not de"]


# --- what is written


def test_greedy_answers_are_the_argmax_whatever_generation_config_says(folder, regenerator):
    regenerator.model.generation_config = GenerationConfig(**HOSTILE)
    rows = answered(regenerator, *(chat(f"Question {i}") for i in range(3)))
    oracle = HFCapture(CaptureSpec(folder, (1,), torch.float32))
    expected = [plain_decode(oracle, torch.tensor(row["prompt_ids"]), TOKENS, set(regenerator.turns.stop)).ids for row in rows]
    assert [row["response_ids"] for row in rows] == expected
    assert [row["finish"] for row in rows] == ["stop" if ids[-1] in regenerator.turns.stop else "length" for ids in expected]


def test_at_a_temperature_nothing_but_the_temperature_counts(resampled):
    regenerator, asked = resampled(temperatures=(2.0,)), chat("Hi", "And?")
    regenerator.model.generation_config = GenerationConfig()
    plain = answered(regenerator, asked)
    regenerator.model.generation_config = GenerationConfig(**HOSTILE)
    assert answered(regenerator, asked) == plain != answered(resampled(temperatures=(2.0,), seed=1), asked)


def test_draws_follow_the_softmax_of_the_logits_over_the_temperature(regenerator, resampled):
    """The total variation between a law and 4,000 draws from it is at most about sqrt(259 / (2 pi 4000)) = 0.1 here, where 259 ids are
    possible; the law of temperature 1 lies 0.4 away."""
    prompt = [7, 100, 33]
    drawn = resampled(max_new_tokens=1).generate([prompt] * 4000, 3.0, 0)
    found = torch.bincount(torch.tensor(drawn).flatten(), minlength=259) / 4000
    logits = regenerator.model(torch.tensor([prompt])).logits[0, -1].detach()
    distance = {t: float((found - (logits / t).softmax(-1)).abs().sum() / 2) for t in (1.0, 3.0)}
    assert distance[3.0] < 0.12 < 0.3 < distance[1.0], distance


def test_rows_say_what_made_them_and_are_read_again(regenerator, folder, write_jsonl, tmp_path):
    out = tmp_path / "out.jsonl"
    source = write_jsonl("in.jsonl", [chat("Hi", "And?"), chat("Bye")])
    counts = regenerate([source], out, regenerator, 2, None)
    rows, header = sorted(lines(out), key=lambda row: row["id"]), json.loads((tmp_path / "out.jsonl.header.json").read_text())
    assert [row["id"] for row in rows] == [f"{source}:1#1", f"{source}:1#2", f"{source}:2#1"]
    assert [(row["last"], row["ended"]) for row in rows] == [(False, None), (True, None), (True, None)]
    assert rows[0]["key"] == rows[1]["key"] != rows[2]["key"] and len({row["header"] for row in rows}) == 1
    assert (counts.answered, counts.rows, counts.tokens) == (2, 3, sum(len(row["response_ids"]) for row in rows))
    assert header == {
        "path": str(folder.resolve()), "target": header["target"], "dtype": "float32", "template": regenerator.turns.chat.template_hash,
        "thinking": None, "stop_ids": sorted(regenerator.turns.stop), "max_new_tokens": TOKENS, "temperature": 0.0, "seed": None,
    }  # fmt: skip
    assert regenerator.turns.tokenizer.decode(rows[1]["prompt_ids"]).startswith(regenerator.turns.tokenizer.decode(rows[0]["prompt_ids"]))
    assert [(row.prompt_ids, row.response_ids) for row in read_rows([str(out)])] == [
        (r["prompt_ids"], r["response_ids"]) for r in lines(out)
    ]


# --- going on


@pytest.fixture(scope="module")
def finished(regenerator, tmp_path_factory) -> tuple[str, bytes]:
    """Input and output of an undisturbed run, one conversation at a time: padding changes the last bits, and with them the text."""
    folder = tmp_path_factory.mktemp("finished")
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(chat(*(f"q{i}{turn}" for turn in range(i)))) + "\n" for i in (2, 1, 3)))
    regenerate([str(source)], out, regenerator, 1, None)
    return str(source), out.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.7, 0.999])
def test_cut_anywhere_and_started_again_is_never_cut(regenerator, finished, tmp_path, share):
    source, whole = finished
    out = tmp_path / "out.jsonl"
    regenerate([source], out, regenerator, 1, 1)  # writes the header
    out.write_bytes(whole[: int(share * len(whole))])
    regenerate([source], out, regenerator, 1, None)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("missing", range(6))
def test_a_row_that_is_missing_is_answered_again_with_its_conversation(regenerator, finished, tmp_path, missing):
    source, whole = finished
    out, rows = tmp_path / "out.jsonl", whole.splitlines(keepends=True)
    out.write_bytes(b"".join(rows[:missing] + rows[missing + 1 :]))
    regenerate([source], out, regenerator, 1, None)
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(rows)
    assert not list(tmp_path.glob("*.partial"))


def test_rows_are_found_by_their_questions_wherever_they_stand_now(regenerator, write_jsonl, tmp_path):
    out = tmp_path / "out.jsonl"
    regenerate([write_jsonl("in.jsonl", [chat("apple?"), chat("pear?")])], out, regenerator, 2, None)
    new = [chat("fig?"), chat("pear?"), {"messages": [{"role": "user", "content": "fig?"}]}, chat("apple?"), chat("fig?", "fig?")]
    counts = regenerate([write_jsonl("in.jsonl", new)], out, regenerator, 2, None)
    assert sorted(questions(out)) == ["apple?", "fig?", "fig?", "fig?", "pear?"]  # the last of two turns
    assert (counts.already_there, counts.duplicates, counts.answered) == (2, 1, 2)


def test_stopped_between_batches_keeps_what_was_answered(resampled, finished, tmp_path):
    source, whole = finished
    out, regenerator = tmp_path / "out.jsonl", resampled()
    generate, calls = regenerator.generate, []

    def interrupted(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise Stopped(15)
        return generate(*asked)

    regenerator.generate = interrupted
    with pytest.raises(Stopped, match=r"torchspec regenerate was stopped: .*out.jsonl keeps its whole conversations, and the same command"):
        regenerate([source], out, regenerator, 1, None)
    assert whole.startswith(out.read_bytes()) and 0 < len(lines(out)) < 6
    regenerate([source], out, resampled(), 1, None)
    assert out.read_bytes() == whole


# --- never mixed, never somebody else's


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        ({"max_new_tokens": 6}, f"max_new_tokens {TOKENS} instead of 6"),
        ({"temperatures": (1.0,), "seed": 3}, "temperature 0.0 instead of 1.0, seed None instead of 3"),
    ],
)
def test_another_sampling_is_refused_by_name(resampled, finished, tmp_path, sampling, sentence):
    source, whole = finished
    regenerate([source], tmp_path / "out.jsonl", resampled(), 1, None)
    with pytest.raises(UserError, match=f"holds answers made with {sentence}; name another file with -o"):
        regenerate([source], tmp_path / "out.jsonl", resampled(**sampling), 1, None)
    (tmp_path / "out.jsonl.header.json").unlink()  # lost: the rows still tell
    with pytest.raises(UserError, match=r"another target, template or sampling \(out.jsonl.header.json is not there to say which\)"):
        regenerate([source], tmp_path / "out.jsonl", resampled(**sampling), 1, None)
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_a_seed_decides_nothing_where_nothing_is_drawn(resampled, finished, tmp_path):
    source, whole = finished
    regenerate([source], tmp_path / "out.jsonl", resampled(), 1, None)
    assert regenerate([source], tmp_path / "out.jsonl", resampled(seed=7), 1, None).already_there == 3


def test_another_template_thinking_mode_or_changed_weights_are_refused_by_name(regenerator, finished, tmp_path):
    source, _ = finished
    target = write_tiny_target(tmp_path / "target")
    out, load = tmp_path / "out.jsonl", lambda mode: Regenerator(Turns(ChatFormat.load(target, mode, False), GREEDY), regenerator.model, 1)
    regenerate([source], out, load(None), 1, 1)
    with pytest.raises(UserError, match="template .{16} instead of .{16}, thinking None instead of False; name"):
        regenerate([source], out, load(False), 1, 1)
    with (target / "model.safetensors").open("r+b") as weights:  # trained on in place
        weights.seek(-4, 2)
        weights.write(b"\0\0\0\0")
    with pytest.raises(UserError, match="holds answers made with target .{16} instead of .{16}; name another file"):
        regenerate([source], out, load(None), 1, 1)


@pytest.mark.parametrize(
    "foreign",
    [
        b"my notes",
        b"my notes\n",
        b'{"messages": []}\n',
        b'{"id": "a:1#1", "prompt_ids": [1], "response_ids": [2], "finish": "stop"}\n',
        b"[1]\n",
    ],
)
def test_a_file_of_somebody_else_is_refused_and_stays(regenerator, finished, tmp_path, foreign):
    out = tmp_path / "out.jsonl"
    out.write_bytes(foreign)
    with pytest.raises(UserError, match=r"out.jsonl:1 is no row of `torchspec regenerate`; name another file"):
        regenerate([finished[0]], out, regenerator, 1, None)
    assert out.read_bytes() == foreign


def test_a_foreign_line_in_our_file_is_named(regenerator, finished, tmp_path):
    source, whole = finished
    out, rows = tmp_path / "out.jsonl", whole.splitlines(keepends=True)
    out.write_bytes(b"".join([*rows[:2], b"<<<<<<< HEAD\n", *rows[2:]]))
    with pytest.raises(UserError, match=r"out.jsonl:3 is no row"):
        regenerate([source], out, regenerator, 1, None)


def test_one_writer_at_a_time(regenerator, finished, tmp_path):
    out = tmp_path / "out.jsonl"
    with (
        locked(out, "torchspec regenerate"),
        pytest.raises(UserError, match=r"out.jsonl is being written by torchspec regenerate, pid \d+"),
    ):
        regenerate([finished[0]], out, regenerator, 1, None)
    assert regenerate([finished[0]], out, regenerator, 1, None).answered == 3


def test_a_full_disk_is_one_sentence(regenerator, finished, tmp_path):
    out = tmp_path / "out.jsonl"
    out.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written or read \(No space left on device\); free some space"):
        regenerate([finished[0]], out, regenerator, 1, None)


@pytest.mark.parametrize("out", [".", "in.jsonl", "in.jsonl/out.jsonl"])
def test_an_out_that_cannot_be_meant(regenerator, write_jsonl, tmp_path, out):
    source = write_jsonl("in.jsonl", [chat("Hi")])
    with pytest.raises(
        UserError, match=r"is a folder; name|would overwrite what is read, .*in.jsonl; name|lies below .*in.jsonl, which is a file; name"
    ):
        regenerate([source], tmp_path / out, regenerator, 1, None)


# --- which turns are answered


def turns(text: str) -> list[dict]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[letter], "content": f"{letter}{i}"} for i, letter in enumerate(text)]


@pytest.mark.parametrize(
    ("conversation", "groups"),
    [
        ("ua", ["u"]),
        ("u", ["u"]),
        ("suauau", ["su", "u", "u"]),
        ("aua", ["au"]),  # a greeting is history
        ("saua", ["sau"]),
        ("uuaaua", ["uu", "u"]),  # nobody asked for the second of two answers
        ("uasua", ["u", "su"]),
        ("uas", ["u"]),
        ("usa", ["us"]),
        ("uata", ["uat"]),  # a call stays where its result follows
        ("uatataua", ["uatat", "u"]),
        ("sa", []),
        ("a", []),
    ],
)
def test_answers_are_given_where_a_user_has_asked(conversation, groups):
    assert ["".join(message["content"][0] for message in group) for group in questions_of(turns(conversation))] == groups


# --- rows that cannot be answered


def test_unusable_rows_are_listed_and_the_others_answered(regenerator, write_jsonl, tmp_path, monkeypatch):
    refusing = regenerator.turns.tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}"
    )
    monkeypatch.setattr(regenerator.turns.tokenizer, "chat_template", refusing)
    rows = [
        chat("Hi"), chat("no"), chat("Well", "no"), "{", {"messages": [{"role": "assistant", "content": "x"}]}, chat("long " * 200),
        {**chat("x"), "tools": [{"type": "function", "function": {"name": "f"}}]}, chat("Well", "long " * 200, "more"),
        {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "x"}]},
    ]  # fmt: skip
    source, out = write_jsonl("in.jsonl", rows), tmp_path / "out.jsonl"
    counts = regenerate([source], out, regenerator, 3, None)
    ids = [row["id"].removeprefix(f"{source}:") for row in lines(out)]
    assert sorted(ids) == ["1#1", "3#1", "8#1", "9#1"]
    listed = {row["where"].removeprefix(f"{source}:"): row["reason"] for row in lines(tmp_path / "out.jsonl.rejected")}
    assert {line: reason[:31] for line, reason in listed.items()} == {
        "2": "the chat template refuses the c", "4": "not valid JSON: Expecting prope", "5": "no user turn to answer",
        "6": "too long for the target: prompt", "7": "the chat template does not rend",
    }  # fmt: skip
    assert listed["6"].endswith(f"together: {1000 + 19 + TOKENS} of 512 positions")  # one token a byte, 19 of the template
    ended = {row["id"].rpartition(":")[2]: (row["last"], row["ended"]) for row in lines(out)}
    assert (
        ended["1#1"] == (True, None) and ended["3#1"][1].startswith("the chat template refuses") and ended["8#1"][1].startswith("too long")
    )
    assert counts.rejected.total() == 5 and counts.ended.total() == 2
    again = regenerate([source], out, regenerator, 3, None)
    assert (again.already_there, again.answered, again.rejected.total()) == (4, 0, 5)


def test_where_nothing_can_be_answered_the_first_reason_is_told(regenerator, write_jsonl, tmp_path):
    source = write_jsonl("in.jsonl", [chat("long " * 200)])
    with pytest.raises(
        UserError, match=r"no row of .*in.jsonl can be answered, the first because of this: too long for the target.*listed in"
    ):
        regenerate([source], tmp_path / "out.jsonl", regenerator, 1, None)


def test_a_cap_that_leaves_no_room_is_refused_before_the_model_is_read(folder):
    with pytest.raises(UserError, match="max_new_tokens 512 leaves no room for a prompt in the target's 512 positions"):
        loaded(folder, Sampling(512, (0.0,), 0))


def test_a_target_that_lacks_weights_writes_nothing(tmp_path):
    target = write_tiny_target(tmp_path / "target")
    weights = load_file(target / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the weights .*layers.3.mlp.up_proj"):
        loaded(target)


# --- which answers are wanted


def sampled(resampled, write_jsonl, out: Path, rows: list[dict], per_prompt: int, **sampling) -> list[dict]:
    regenerate([write_jsonl("in.jsonl", rows)], out, resampled(**sampling), 1, None, answers=per_prompt)
    return lines(out)


def test_answers_of_one_prompt_are_drawn_by_seeds_of_their_own_and_more_can_be_added(resampled, write_jsonl, tmp_path):
    """4 tokens of a nearly uniform law over 260: two draws of one seed would be equal, two of different ones hardly ever are."""
    out, asked = tmp_path / "out.jsonl", [chat("Hi"), chat("Bye")]
    two = sampled(resampled, write_jsonl, out, asked, 2, temperatures=(3.0,))
    three = sampled(resampled, write_jsonl, out, asked, 3, temperatures=(3.0,))
    assert three[: len(two)] == two and len(three) == 6 == len({tuple(row["response_ids"]) for row in three}) == len(
        {r["key"] for r in three}
    )
    assert {row["id"].rpartition(":")[2] for row in three} == {f"{line}/{n}#1" for line in (1, 2) for n in (1, 2, 3)}


def test_temperatures_are_dealt_by_the_key_of_the_conversation(resampled, regenerator, write_jsonl, tmp_path):
    asked, out = [chat(f"q{i}", "and?") for i in range(12)], tmp_path / "out.jsonl"
    rows = sampled(resampled, write_jsonl, out, asked, 1, temperatures=(0.0, 3.0))
    assert all(row["temperature"] == (0.0, 3.0)[int(row["key"], 16) % 2] for row in rows)
    greedy = {row["messages"][0]["content"]: row for row in rows if row["temperature"] == 0.0 and row["id"].endswith("#1")}
    assert 0 < len(greedy) < 12
    for question, row in greedy.items():
        assert row["response_ids"] == answered(regenerator, chat(question))[0]["response_ids"]
    header = json.loads((tmp_path / "out.jsonl.header.json").read_text())
    assert header["temperature"] == [0.0, 3.0] and header["seed"] == 0


def test_the_last_turn_alone_is_answered_behind_the_earlier_ones_as_they_are(regenerator, write_jsonl, tmp_path):
    source = write_jsonl("in.jsonl", [chat("Hi", "And?", "So?"), {"messages": turns("ua")}, {"messages": turns("uau")}])
    regenerate([source], tmp_path / "out.jsonl", regenerator, 1, None, last_turn_only=True)
    rows = {row["id"].removeprefix(f"{source}:"): row for row in lines(tmp_path / "out.jsonl")}
    assert rows.keys() == {"1#1", "2#1", "3#1"} and all(row["last"] for row in rows.values())
    decoded = regenerator.turns.tokenizer.decode(rows["1#1"]["prompt_ids"])
    assert decoded == regenerator.turns.chat.render(chat("Hi", "And?", "So?")["messages"][:5], add_generation_prompt=True)
    assert [message["content"] for message in rows["3#1"]["messages"][:3]] == ["u0", "a1", "u2"]


def test_cut_answers_are_dropped_counted_and_not_answered_again(regenerator, write_jsonl, tmp_path):
    """An end is made of the first token of one answer, so that some end by themselves; which ones, the answers without it tell."""
    asked, out = [chat(f"q{i}") for i in range(5)], tmp_path / "out.jsonl"
    wrote = {f"q{i}": row["response_ids"] for i, row in enumerate(answered(regenerator, *asked))}
    stop = frozenset({wrote["q0"][0]})
    whole = {question for question, ids in wrote.items() if stop & set(ids)}
    assert 0 < len(whole) < 5
    chat_format = dataclasses.replace(regenerator.turns.chat, stop_ids=stop)
    dropping = Regenerator(Turns(chat_format, GREEDY, drop=Drop(cut=True)), regenerator.model, 1)
    source = write_jsonl("in.jsonl", asked)
    counts = regenerate([source], out, dropping, 1, None)
    assert set(questions(out)) == whole and set(questions(Path(f"{out}.dropped"))) == wrote.keys() - whole
    assert (counts.answered, counts.dropped.total(), counts.rejected.total()) == (len(whole), 5 - len(whole), 0)
    again = regenerate([source], out, dropping, 1, None)
    assert (again.already_there, again.answered, again.dropped.total()) == (5, 0, 0)


def test_where_every_answer_is_cut_that_is_the_reason(resampled, write_jsonl, tmp_path):
    with pytest.raises(
        UserError, match=r"every answer is dropped \(the answer is cut at .*\) and kept in .*out.jsonl.dropped alone; change what"
    ):
        regenerate([write_jsonl("in.jsonl", [chat("Hi")])], tmp_path / "out.jsonl", resampled(drop=Drop(cut=True)), 1, None)


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}]}


def test_tools_calls_and_results_stand_in_the_prompt_as_the_template_renders_them(regenerator, write_jsonl, tmp_path, monkeypatch):
    template = (
        "{% for t in tools or [] %}<tool>{{ t.function.name }}</tool>{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    monkeypatch.setattr(regenerator.turns.tokenizer, "chat_template", template)
    asked = [{"role": "user", "content": "Rain?"}, CALL, {"role": "tool", "content": "no"}, {"role": "assistant", "content": "No."}]
    rows = [{"messages": asked, "tools": TOOLS}, {"messages": asked[:2], "tools": TOOLS}, {"messages": asked[:2]}]
    source, out, decode = write_jsonl("in.jsonl", rows), tmp_path / "out.jsonl", regenerator.turns.tokenizer.decode
    regenerate([source], out, regenerator, 1, None)
    prompts = {row["id"].removeprefix(f"{source}:"): decode(row["prompt_ids"]) for row in lines(out)}
    assert prompts == {
        "1#1": "<tool>weather</tool><user>Rain?<assistant><call>weather</call><tool>no<a>",
        "2#1": "<tool>weather</tool><user>Rain?<a>",
        "3#1": "<user>Rain?<a>",
    }


def test_the_command_loads_the_target_once_for_its_answers_and_their_share(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps(chat("Hi")) + "\n")
    loads, load = [], HFCapture.__init__
    monkeypatch.setattr(HFCapture, "__init__", lambda self, spec: loads.append(spec.folder) or load(self, spec))
    words = [str(tmp_path / "in.jsonl"), "-t", str(folder), "-o", str(tmp_path / "out.jsonl"), "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, ["regenerate", *words, "--dtype", "float32", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert loads == [folder] and "on-policy share 100.0%" in " ".join(capsys.readouterr().out.split()) + result.output
