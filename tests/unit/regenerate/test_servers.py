"""Answers through servers: the rows are those of the target here, whatever of the network fails. Behind the stand-in of the network is
the real tiny target, so its greedy answers are the oracle."""

import json
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Event, Lock

import pytest
import torch

from tests.unit.regenerate.stand_in import StandIn, stand_in
from torchspec.capture import pool
from torchspec.chat.format import ChatFormat
from torchspec.doctor.tiny import write_tiny_target
from torchspec.errors import UserError
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.here import Here
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.report import Counts
from torchspec.regenerate.run import Wanted, regenerate
from torchspec.regenerate.server import Server
from torchspec.regenerate.servers import Servers
from torchspec.regenerate.turns import Sampling, Turns

TOKENS, ROWS = 4, 8


@pytest.fixture(scope="module")
def turns(tmp_path_factory) -> Turns:
    folder = write_tiny_target(tmp_path_factory.mktemp("servers") / "target")
    return Turns(ChatFormat.load(folder, None, False), Sampling(TOKENS, (0.0,), 0))


def there(turns: Turns) -> Here:
    return Here(turns.target, torch.float32, torch.device("cpu"))


def engine(urls: list[str] = (), in_flight: int = 2, check: bool = False) -> Engine:
    return Engine("hf", list(urls), in_flight, check, 1, None, "", None, 1)


@pytest.fixture(scope="module")
def here(turns) -> Regenerator:
    with open_answering(turns, engine(), there(turns), Path("unused")) as regenerator:
        return regenerator


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("source") / "in.jsonl"
    rows = [[f"{i}?", f"and {i}?"][: 1 + i % 2] for i in range(ROWS)]
    talks = ([{"role": role, "content": q} for q in row for role in ("user", "assistant")] for row in rows)
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return str(file)


@pytest.fixture(scope="module")
def expected(here, source, tmp_path_factory) -> dict[str, dict]:
    """Rows that the target writes here."""
    out = tmp_path_factory.mktemp("expected") / "out.jsonl"
    regenerate([source], out, here, Wanted())
    return by_id(out)


@pytest.fixture
def serve(turns, here):
    """Starts stand-ins that write what the target writes, or what is given."""
    lock = Lock()  # one model for all their threads

    def greedy(prompt, most, temperature, seed):
        assert (most, temperature) == (TOKENS, 0.0)
        with lock:
            return here.generate([prompt], 0.0, 0)[0]

    with ExitStack() as stack:
        yield lambda name="vllm", write=greedy: stack.enter_context(stand_in(name, write, turns.tokenizer, turns.stop))


def through(servers: list[StandIn], turns: Turns, source: str, out: Path, in_flight: int = 2, check: bool = False) -> Counts:
    with open_answering(turns, engine([server.url for server in servers], in_flight, check), there(turns), out) as answering:
        return regenerate([source], out, answering, Wanted())


def by_id(out: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)  # nothing is doubled
    return {row["id"]: row for row in rows}


def ids(rows: dict[str, dict]) -> dict[str, tuple]:
    return {name: (row["prompt_ids"], row["response_ids"], row["finish"], row["last"]) for name, row in rows.items()}


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp"])
def test_the_rows_are_those_of_the_target_here(serve, turns, source, expected, tmp_path, name):
    out = tmp_path / "out.jsonl"
    counts = through([serve(name), serve(name)], turns, source, out)
    assert ids(by_id(out)) == ids(expected)
    assert json.loads(Path(f"{out}.header.json").read_text())["engine"] == f"{name} 1.2"
    assert (counts.rows, counts.retokenized) == (len(expected), 0) and not Path(f"{out}.rejected").exists()
    again = through([serve(name)], turns, source, out)
    assert (again.already_there, again.rows) == (ROWS, 0)


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "skip_special_tokens": False}


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "somebody"])
def test_every_request_names_its_sampling_in_full(serve, turns, source, tmp_path, name):
    """The names and neutral values of vLLM 0.32, SGLang 0.5.23 and llama.cpp of October 2026, read in their sources."""
    server, stop = serve(name), sorted(turns.stop)
    through([server], turns, source, tmp_path / "out.jsonl")
    openai = {"model": "the target", "max_tokens": TOKENS, "n": 1, **SAMPLING}
    wanted = {
        "vllm": {**openai, **NEUTRAL, "top_k": 0, "stop_token_ids": stop, "return_token_ids": True},
        "sglang": {**SAMPLING, **NEUTRAL, "max_new_tokens": TOKENS, "top_k": -1, "stop_token_ids": stop},
        "llamacpp": {"n_predict": TOKENS, "temperature": 0.0, "samplers": ["temperature"], "return_tokens": True, "cache_prompt": True},
        "somebody": openai,
    }[name]
    seeds = set()
    for body in server.bodies:
        assert {"prompt", "input_ids"} & body.keys()
        asked = {**body, **body.get("sampling_params", {})}
        seeds.add(asked.get("seed", asked.get("sampling_seed")))
        assert {key: value for key, value in asked.items() if key not in UNLIKE} == wanted
    assert len(seeds) == len(server.bodies)  # one of each row, from its contents


UNLIKE = {"prompt", "input_ids", "seed", "sampling_seed", "sampling_params"}


def test_text_without_ids_is_tokenized_and_what_does_not_come_back_is_counted(serve, turns, source, expected, tmp_path, capsys):
    """A random target writes halves of characters, which no text holds."""
    out = tmp_path / "out.jsonl"
    counts = through([serve("somebody")], turns, source, out)
    tokenizer, lost = turns.tokenizer, 0
    for name, row in by_id(out).items():
        if name.endswith("#1"):  # later turns depend on the first answer
            wrote = expected[name]["response_ids"]
            said = tokenizer.decode(wrote, skip_special_tokens=True)
            again = tokenizer(said, add_special_tokens=False).input_ids
            same = tokenizer.decode(again) == said and len(wrote) - len(again) in (0, wrote[-1] in turns.stop)
            assert row["retokenized"] == ("same" if same else "changed")
            lost += not same
    assert lost and counts.retokenized == counts.rows and counts.changed >= lost
    counts.report(out)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{counts.retokenized} answers were tokenized here, and {counts.changed} of them do not come back" in said


def test_as_many_requests_at_a_time_as_are_asked_for_and_no_more(serve, turns, source, expected, tmp_path):
    server, together = serve(), Barrier(3)

    def meet(prompt: list[int]) -> int:
        if len(server.bodies) <= 3:  # the first three wait for each other: fewer at a time would never get on
            together.wait(30)
        return 200

    server.status = meet
    through([server], turns, source, tmp_path / "out.jsonl", in_flight=3)
    assert server.most_at_once == 3 and ids(by_id(tmp_path / "out.jsonl")) == ids(expected)


def test_rows_of_a_server_that_dies_go_to_the_others_and_it_is_named(serve, turns, source, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    living, dying, dead = serve(), serve(), Event()

    def fall(prompt: list[int]) -> int:
        if len(dying.bodies) > pool.NAMED:
            dead.set()
        return 200 if len(dying.bodies) < 2 else 503

    dying.status = fall
    living.status = lambda prompt: 200 if dead.wait(30) else 500  # busy until then, so that the other is asked again and again
    counts = through([dying, living], turns, source, tmp_path / "out.jsonl", in_flight=1)
    assert ids(by_id(tmp_path / "out.jsonl")) == ids(expected) and not counts.rejected
    said = " ".join(capsys.readouterr().out.split())
    assert f"{dying.url} is down: status 503" in said and said.count("is down") == 1


def test_where_all_are_dead_what_is_kept_is_said_and_the_next_run_goes_on(serve, turns, source, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    monkeypatch.setattr(pool, "PATIENCE", 0.02)
    out, dying = tmp_path / "out.jsonl", serve()
    dying.status = lambda prompt: 200 if len(dying.bodies) < 7 else 503
    with pytest.raises(UserError, match=r"no server has answered for 0 seconds \(.*: status 503.*the same command goes on"):
        through([dying], turns, source, out)
    kept = by_id(out)
    assert kept and ids(kept).items() < ids(expected).items()
    through([serve()], turns, source, out)
    assert ids(by_id(out)) == ids(expected)


def test_a_server_that_comes_back_is_used_again(serve, turns, source, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    server = serve()
    server.status = lambda prompt: 503 if 2 <= len(server.bodies) < 8 else 200
    through([server], turns, source, tmp_path / "out.jsonl", in_flight=1)
    assert ids(by_id(tmp_path / "out.jsonl")) == ids(expected)


@pytest.mark.parametrize(("status", "times"), [(500, pool.REPLIES), (400, 1)])
def test_a_prompt_that_breaks_the_server_is_listed_and_the_others_answered(
    serve, turns, source, expected, tmp_path, monkeypatch, status, times
):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    bad, server, asked = expected[f"{source}:1#1"]["prompt_ids"], serve(), []
    server.status = lambda prompt: 200 if prompt != bad else asked.append(prompt) or status
    counts = through([server], turns, source, tmp_path / "out.jsonl")
    assert ids(by_id(tmp_path / "out.jsonl")) == {n: row for n, row in ids(expected).items() if not n.startswith(f"{source}:1#")}
    (listed,) = map(json.loads, Path(f"{tmp_path / 'out.jsonl'}.rejected").read_text().splitlines())
    assert listed["where"] == f"{source}:1" and listed["reason"].startswith(f"no server takes the prompt: status {status}")
    assert len(asked) == times and counts.rejected.total() == 1


def test_answers_are_cut_behind_the_first_stop_token(turns):
    """llama.cpp knows the ends that its file names, and goes on behind others."""
    servers, stop = Servers(turns, [Server("u", "llamacpp", "m", "1")], 1), min(turns.stop)
    read = servers.servers[0].protocol.read
    said = {"content": "", "tokens": [5, stop, 6, 7], "stop_type": "limit", "tokens_evaluated": 1, "tokens_predicted": 4}
    answer = servers.read(read(said))
    assert (answer.ids, answer.finish) == ([5, stop], "stop")


def test_a_server_that_takes_no_request_at_all_stops_the_run(serve, turns, source, tmp_path):
    server = serve()
    server.status = lambda prompt: 401
    with pytest.raises(UserError, match="v1/completions takes no request of ours .status 401.*give a server that answers"):
        through([server], turns, source, tmp_path / "out.jsonl")


# --- the server must run the target


def test_the_target_itself_is_taken(serve, turns, here, source, tmp_path):
    server = serve("vllm", lambda prompt, most, _t, _s: longer(here, prompt, most))
    through([server], turns, source, tmp_path / "out.jsonl", check=True)
    assert len(by_id(tmp_path / "out.jsonl")) > ROWS


def longer(model: Regenerator, prompt: list[int], most: int) -> list[int]:
    """Greedy ids of any length."""
    written = []
    while len(written) < most and not (written and written[-1] in model.turns.stop):
        written += model.generate([prompt + written], 0.0, 0)[0]
    return written[:most]


def test_other_weights_are_refused_before_the_first_row(serve, turns, source, tmp_path):
    """The same vocabulary: only its next tokens tell."""
    other = serve("vllm", lambda prompt, most, _t, _s: [(sum(prompt) + n) % 250 for n in range(most)])
    with pytest.raises(UserError, match=r"serves the target, of whose greedy tokens \d+ of 96 are target's own choice; give a server"):
        through([other], turns, source, tmp_path / "out.jsonl", check=True)
    assert not (tmp_path / "out.jsonl").exists()


def test_another_vocabulary_is_refused_without_loading_the_target(serve, turns, source, tmp_path):
    server = serve()
    server.tokenizer = lambda text, add_special_tokens: type("Encoded", (), {"input_ids": [1, 2, 3]})
    with pytest.raises(UserError, match=r"serves the target, whose tokenizer reads .* as other ids than target's; give a server"):
        through([server], turns, source, tmp_path / "out.jsonl")


def test_which_of_several_models_is_the_target_is_told_by_its_name(serve, turns, source, tmp_path):
    server = serve()
    server.models = [{"id": "a", "owned_by": "vllm"}, {"id": "org/target", "owned_by": "vllm"}]
    through([server], turns, source, tmp_path / "out.jsonl")
    assert {body["model"] for body in server.bodies} == {"org/target"}
    server.models = [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}]
    with pytest.raises(UserError, match="serves a, b, and it is open which of them is target"):
        through([server], turns, source, tmp_path / "two.jsonl")


def test_a_server_that_adds_tokens_to_prompts_stops_the_run(serve, turns, source, tmp_path, monkeypatch):
    server = serve()
    monkeypatch.setattr("tests.unit.regenerate.stand_in.Handler.reply", adding(server))
    with pytest.raises(UserError, match=r"read \d+ tokens where \d+ were sent: it adds or cuts some"):
        through([server], turns, source, tmp_path / "out.jsonl")


def adding(server: StandIn):
    reply = server.RequestHandlerClass.reply
    return lambda handler, prompt, ids: reply(handler, [0, *prompt], ids)


def test_no_server_and_servers_of_two_engines_are_refused(serve, turns, source, tmp_path):
    gone = serve()
    gone.shutdown()
    gone.server_close()
    with pytest.raises(UserError, match=r"--server http.* lists no models \(ConnectionError.*give the URL of a running server"):
        through([gone], turns, source, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="the servers run sglang 1.2 and vllm 1.2; answers of one file come from one engine"):
        through([serve("vllm"), serve("sglang")], turns, source, tmp_path / "out.jsonl")


def test_answers_of_another_engine_are_refused_as_those_of_another_target(serve, turns, here, source, tmp_path):
    out = tmp_path / "out.jsonl"
    through([serve("vllm")], turns, source, out)
    with pytest.raises(UserError, match="holds answers made with engine vllm 1.2 instead of sglang 1.2; name another file"):
        through([serve("sglang")], turns, source, out)
    with pytest.raises(UserError, match="holds answers made with dtype None instead of float32"):
        regenerate([source], out, here, Wanted())
