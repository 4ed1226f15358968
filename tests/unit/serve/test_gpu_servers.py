"""Several servers of one engine, each on GPUs of its own. The engine is the stand-in: what is asked is which GPUs each is shown."""

import dataclasses
import sys

import psutil
import pytest

from torchspec.errors import UserError
from torchspec.serve.engines import ENGINES, module
from torchspec.serve.options import Serving
from torchspec.serve.server import device_shares, open_servers


def test_each_server_sees_its_own_gpus_and_all_end_together(tmp_path):
    (tmp_path / "answers.json").write_text("{}")
    engine = dataclasses.replace(ENGINES["vllm"], command=module("tests.unit.serve.engine"))
    serving = Serving("vllm", python=sys.executable, arguments=f"--answers {tmp_path / 'answers.json'}")
    before = set(psutil.Process().children())
    with open_servers(engine, [], serving, tmp_path / "logs", ["0,1", "2,3"]) as clients:
        started = set(psutil.Process().children()) - before
        shown = {f"http://127.0.0.1:{server.cmdline()[-3]}": server.environ()["CUDA_VISIBLE_DEVICES"] for server in started}
        assert shown == {clients[0].url: "0,1", clients[1].url: "2,3"}
    assert not set(psutil.Process().children()) - before


@pytest.mark.parametrize(
    ("count", "visible", "each", "shares"),
    [
        (0, None, 1, [None]),
        (4, None, 1, ["0", "1", "2", "3"]),
        (3, "5,6,7", 1, ["5", "6", "7"]),
        (8, None, 3, ["0,1,2", "3,4,5"]),
        (2, "GPU-a,GPU-b", 2, ["GPU-a,GPU-b"]),
    ],
)
def test_the_gpus_at_hand_are_dealt_in_order(count, visible, each, shares):
    assert device_shares(count, visible, each) == shares


def test_more_gpus_than_there_are_are_refused():
    for count in (0, 2):
        with pytest.raises(UserError, match=f"--gpus-per-server 4 is more than the {count} GPUs at hand"):
            device_shares(count, None, 4)
