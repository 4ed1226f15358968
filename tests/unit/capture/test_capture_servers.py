"""Capture by servers that already run: what they yield is what the target yields here, whichever way it came and whoever has died."""

import dataclasses
import json
import re
import shlex
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from tests.unit.capture.tiny_server import TinyServer
from tests.unit.tiny import HIDDEN, LAYERS, random_prompt, write_target
from torchspec.capture import pool
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.capture.http import Refused, ServerDown, is_loopback
from torchspec.capture.outbox import Delivery
from torchspec.capture.server import wanted_delivery
from torchspec.capture.sglang.server import command as sglang_command
from torchspec.capture.sglang.settings import asked_layers
from torchspec.capture.spread import SpreadCapture, open_servers
from torchspec.capture.vllm.server import command as vllm_command
from torchspec.errors import ContractError, EngineMismatch, UserError
from torchspec.records import Prompt

ROOT = Path(__file__).parents[3]
OTHERS = socket.gethostname()  # this node as others know it


@pytest.fixture
def spec(tiny_folder, tiny_target) -> CaptureSpec:
    return CaptureSpec(tiny_folder, LAYERS, torch.float32, target=tiny_target)


@pytest.fixture
def serve(tiny_oracle, tiny_folder, tmp_path):
    """Starts servers that are told the given changes of what they should be told."""
    started = []

    def start(host: str = "127.0.0.1", oracle: HFCapture = tiny_oracle, model=tiny_folder, **told) -> TinyServer:
        listen = None if host == "127.0.0.1" else f"{host}:{free_port(host)}"
        delivery = Delivery(str(tmp_path / f"server-{len(started)}"), list(LAYERS), False, True, listen)
        started.append(TinyServer(oracle, dataclasses.replace(delivery, **told), str(model), host))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(i, random_prompt(i, 8 + i % 5), torch.arange(8 + i % 5) > 2) for i in range(count)]


def together(capture: SpreadCapture, asked: list[Prompt], threads: int = 4) -> list[torch.Tensor]:
    with ThreadPoolExecutor(threads) as pool:
        return [features.context for features in pool.map(capture.capture, asked)]


def expected(oracle: HFCapture, asked: list[Prompt]) -> list[torch.Tensor]:
    return [oracle.capture(prompt).context for prompt in asked]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_a_server_here_and_one_elsewhere_share_the_prompts_and_yield_the_targets_own_features(spec, serve, tiny_oracle):
    here, elsewhere = serve(), serve(host=OTHERS)
    capture, asked = open_servers("sglang", spec, [here.url, elsewhere.url]), prompts(24)
    assert [server.port is None for server in capture.servers] == [True, False]
    capture.verify(asked[:4])
    assert len(here.asked) == len(elsewhere.asked) == 4
    assert equal(together(capture, asked), expected(tiny_oracle, asked))
    assert len(here.asked) + len(elsewhere.asked) == 8 + 24 and min(len(here.asked), len(elsewhere.asked)) >= 4 + 2
    for server in (here, elsewhere):
        assert not any(server.outbox.folder.iterdir())  # each is handed out once


def test_a_server_that_dies_costs_no_sample_and_is_named_once_and_used_again_when_it_returns(spec, serve, tiny_oracle, capsys, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    first, second = serve(), serve()
    capture, asked = open_servers("sglang", spec, [first.url, second.url]), prompts(30)
    first.answers_until = 5
    assert equal(together(capture, asked), expected(tiny_oracle, asked))
    assert len(first.asked) == 5 and len(second.asked) == 25
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("is down") == 1 and f"{first.url} is down" in said and "its requests go to the others" in said
    first.answers_until, capture.pool.members[0].rests_until = float("inf"), 0.0
    together(capture, asked)
    assert len(first.asked) > 5 and f"{first.url} answers again" in capsys.readouterr().out


def test_when_all_are_dead_one_sentence_ends_the_run(spec, serve, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_REST", 0.01)
    monkeypatch.setattr(pool, "PATIENCE", 0.05)
    servers = serve(), serve()
    capture = open_servers("sglang", spec, [server.url for server in servers])
    for server in servers:
        server.stop()
    with pytest.raises(UserError, match="no server has answered for 0 seconds .*refused.*; .*refused.*start one again"):
        capture.capture(prompts(1)[0])


def test_a_refused_prompt_is_the_prompts_fault_and_not_the_servers(spec, serve):
    capture = open_servers("sglang", spec, [serve().url])
    with pytest.raises(ContractError, match="answered 400 no such token"):
        capture.capture(Prompt(0, torch.tensor([1, 2, 64]), torch.arange(3) > 1))
    assert not capture.pool.members[0].failures


def test_a_prompt_that_breaks_every_server_is_the_prompts_fault_in_the_end(spec, serve, tiny_oracle, monkeypatch):
    """It fails alone: the run goes on with the others."""
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)
    servers, bad = (serve(), serve()), prompts(1)[0]
    for server in servers:
        server.breaks_on = bad.ids.tolist()
    capture, asked = open_servers("sglang", spec, [server.url for server in servers]), prompts(6)[1:]
    with pytest.raises(Refused, match="answered 500"):
        capture.capture(bad)
    assert equal(together(capture, asked), expected(tiny_oracle, asked))


def test_a_server_of_another_target_is_refused_by_contents(spec, serve, tiny_oracle, tmp_path):
    """The same shapes and config, other weights: only contents tell them apart."""
    torch.manual_seed(1)
    other = write_target(tmp_path / "other", initializer_range=0.31)
    with pytest.raises(EngineMismatch, match="start it with the same files of the target"):
        open_servers("sglang", spec, [serve().url, serve(model=other).url]).verify(prompts(2))


def test_a_server_that_takes_another_layer_is_refused_by_its_own_next_token(spec, serve, tiny_oracle):
    server = serve()
    capture = open_servers("sglang", spec, [server.url])
    put = server.outbox.put
    server.outbox.put = lambda name, context, last: put(name, context, context[-1, :HIDDEN])
    with pytest.raises(EngineMismatch, match="agree with sglang 0.5.23 float32's own next token for"):
        capture.verify(prompts(12))


@pytest.mark.parametrize(("told", "wrong"), [({"layer_ids": [0, 2]}, "forward_hooks"), ({"fp8": True}, "forward_hooks")])
def test_a_server_that_was_told_otherwise_is_refused_with_its_command(spec, serve, told, wrong):
    server = serve(**told)
    with pytest.raises(UserError, match=f"was started with .*{wrong}") as refusal:
        open_servers("sglang", spec, [server.url])
    words = shlex.split(str(refusal.value).split("when started as: ")[1])
    hooks = json.loads(words[words.index("--forward-hooks") + 1])
    assert Delivery(**hooks[0]["config"]) == dataclasses.replace(server.delivery, layer_ids=list(LAYERS), fp8=False)
    assert words[words.index("--return-aux-hidden-state-layer-ids") + 1 :][:2] == ["1", "3"]
    assert words[words.index("--port") + 1] == server.url.rpartition(":")[2]


def test_only_a_loopback_url_is_taken_for_shared_memory(spec):
    assert all(is_loopback(f"http://{host}:1") for host in ("127.0.0.1", "localhost", "[::1]"))
    assert not any(is_loopback(f"http://{host}:1") for host in ("10.0.0.7", "node7"))
    delivery = wanted_delivery(spec, "http://node7:8000", None)
    assert delivery.listen == "node7:8100"
    words = shlex.split(vllm_command(spec, "http://node7:8000", delivery))
    told = json.loads(words[words.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]["torchspec"]
    assert Delivery(**told) == delivery and "--no-enable-prefix-caching" in words


@pytest.mark.parametrize(("start", "url"), [("python -m sglang", "http://10.0.0.7:30000"), ("python -m vllm", "http://10.0.0.7:8000")])
def test_the_documented_command_is_the_one_that_is_printed(start, url, tmp_path):
    page = (ROOT / "docs" / "disaggregated.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    documented = next(block for block in blocks if block.startswith("python -m sglang"))
    Qwen3Config(num_hidden_layers=36, max_position_embeddings=40960).save_pretrained(tmp_path)
    spec = CaptureSpec(tmp_path, (1, 9, 17, 25, 33), torch.bfloat16, max_length=2048)
    delivery = wanted_delivery(spec, url, None)
    printed = vllm_command(spec, url, delivery) if "vllm" in start else sglang_command(spec, url, asked_layers(spec), delivery)
    ours, theirs = (shlex.split(text.replace("\\\n", " ")) for text in (printed, documented[documented.index(start) :].split("\n\n")[0]))
    assert list(map(plain, ours)) == list(map(plain, theirs)) and "Qwen/Qwen3-8B" in theirs


def plain(word: str) -> object:
    """Of a command line: JSON by its meaning, and the target's folder by its name."""
    if word.startswith(("{", "[")):
        return json.loads(word)
    return "target" if word == "Qwen/Qwen3-8B" or Path(word).is_dir() else word


def test_a_server_on_this_node_whose_folder_is_not_here_is_refused_with_the_way_round(spec, serve):
    server = serve()
    server.outbox.folder.rmdir()  # as where server and trainer are in two containers
    with pytest.raises(UserError, match="which is not here or another user's; give the URL by which other nodes reach it"):
        open_servers("sglang", spec, [server.url])


def test_nothing_listens_there(spec):
    with pytest.raises(ServerDown, match="does not answer"):
        open_servers("sglang", spec, [f"http://127.0.0.1:{free_port('127.0.0.1')}"])
