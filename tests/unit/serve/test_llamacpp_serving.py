"""What llama.cpp's server is told and counts, from answers and text as release b11549 sends them; what is refused before it starts."""

from pathlib import Path

import pytest

from torchspec.errors import UserError
from torchspec.export.commands import llamacpp_words
from torchspec.serve import llamacpp
from torchspec.serve.client import Reply
from torchspec.serve.options import Serving, serving_options
from torchspec.serve.records import Load, Served, Steps

METRICS = """# HELP llamacpp:spec_decode_num_drafts_total Speculative: Total speculative decoding verification steps
# TYPE llamacpp:spec_decode_num_drafts_total counter
llamacpp:spec_decode_num_drafts_total 6
# TYPE llamacpp:spec_decode_num_accepted_tokens_per_pos_total counter
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 9
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 2
"""
SERVED = Served(Path("t.gguf"), Path("d.gguf"), "dflash", 5, "bfloat16", {})


def decoded(accepted: list[int], most: int, tokens: int, ends: int | None = None) -> tuple[Reply, int]:
    """An answer by the server's own rule, one forward after the other, and how many there were. ends: its last token's number, if early."""
    length, drafted, taken, steps = 1, 0, 0, 0
    for count in [*accepted, *[0] * most]:
        if length >= (ends or most):
            break
        drafts = min(tokens, most - length - 1)
        drafted, taken, steps = drafted + drafts, taken + min(count, drafts), steps + 1
        length += min(count, drafts) + 1
    return Reply([7] * min(length, ends or most), 0, 0, {"drafted": drafted, "accepted": taken, "most": most}), steps


@pytest.mark.parametrize(
    ("accepted", "most", "ends"),
    [
        ([0, 5, 2, 0, 1], 40, None),  # ends with a forward without a draft
        ([5, 5, 5], 19, None),  # ends with an accepted draft
        ([0, 5, 2, 0, 1], 40, 20),
        ([5], 40, 3),  # the end of the text lies within an accepted draft, which the server counts whole
        ([], 1, None),
    ],
)
def test_steps_are_the_forwards_of_the_servers_own_rule(monkeypatch, accepted, most, ends):
    monkeypatch.setattr(llamacpp.requests, "get", lambda url, timeout: type("Answer", (), {"text": METRICS, "status_code": 200}))
    reply, steps = decoded(accepted, most, 5, ends)
    assert llamacpp.count("http://x", [reply, reply], 5) == Steps(2 * steps, [9, 2, 0, 0, 0])


def test_a_server_without_counters_is_named(monkeypatch):
    monkeypatch.setattr(llamacpp.requests, "get", lambda url, timeout: type("Answer", (), {"text": "{}", "status_code": 501}))
    with pytest.raises(UserError, match="start it with --metrics"):
        llamacpp.count("http://x", [], 5)


def test_every_prompt_that_is_asked_at_a_time_has_room():
    words = llamacpp.arguments(SERVED, Load(4, 100)) + llamacpp_words(SERVED.drafting)
    told = dict(zip(words, words[1:], strict=False))
    assert int(told["--ctx-size"]) == 4 * (100 + 5 + 2) and told["--parallel"] == "4"
    assert (told["--spec-type"], told["--spec-draft-n-max"], told["--spec-draft-model"]) == ("draft-dflash", "5", "d.gguf")


def test_a_folder_that_is_no_llamacpp_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ("llamacpp", "1", None, None, None, "")
    with pytest.raises(UserError, match="none is named; give its clone with --llamacpp or as LLAMACPP"):
        serving_options(*asked, None)
    with pytest.raises(UserError, match="holds no convert_hf_to_gguf.py"):
        serving_options(*asked, str(tmp_path))
    (tmp_path / "convert_hf_to_gguf.py").touch()
    with pytest.raises(UserError, match="holds no llama-server, and the PATH neither; build it there"):
        serving_options(*asked, str(tmp_path))
    server = tmp_path / "build" / "bin" / "llama-server"
    server.parent.mkdir(parents=True)
    server.touch()
    serving, _ = serving_options(*asked, str(tmp_path))
    assert llamacpp.command(serving) == [str(server)]


def test_a_server_of_somebody_else_needs_no_folder():
    serving, _ = serving_options("llamacpp", "1", "http://a", "http://b", None, "", None)
    assert serving == Serving("llamacpp", "http://a", "http://b")
