"""What the pretended device refuses and counts is what torch's CUDA build refuses and waits for."""

import pytest
import torch

from tests.cuda.pretended import DEVICE, PretendedDevice

WAITS = {
    "copy to the host": lambda x: x.cpu(),
    "copy to the device": lambda x: torch.zeros(3).to(DEVICE),
    "copy to the device, not pinned": lambda x: torch.zeros(3).to(DEVICE, non_blocking=True),
    "read of a number": lambda x: float(x.sum()),
    "bool index": lambda x: x[x > 0],
    "index from the host": lambda x: x[torch.tensor([0])],
    "nonzero": lambda x: x.nonzero(),
    "_unique2": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
}
NO_WAITS = {
    "arithmetic": lambda x: (x * 2 + torch.tensor(1.0)).cumsum(0).where(x > 0, 0.0),
    "pinned copy": lambda x: torch.zeros(3).pin_memory().to(DEVICE, non_blocking=True),
    "index": lambda x: x[torch.arange(2, device=DEVICE)],
    "known size": lambda x: x.repeat_interleave(x.long(), output_size=6),
}
MIXES = {
    "sum": lambda x: x + torch.zeros(3),
    "joint": lambda x: torch.cat((x, torch.zeros(3))),
    "foreign index": lambda x: torch.zeros(3)[x.long()],
    "foreign index, written": lambda x: torch.zeros(5).index_put_((x.long(),), torch.tensor(1.0)),
}


def after(work) -> dict[str, int]:
    with PretendedDevice() as device:
        x = torch.arange(1.0, 4.0, device=DEVICE)
        work(x)
    return dict(device.syncs)


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted(name):
    assert after(WAITS[name]) == {f"{name.partition(',')[0]} in none": 1}


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not(name):
    assert after(NO_WAITS[name]) == {}


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_refused(name):
    with pytest.raises(RuntimeError, match="mixes"):
        after(MIXES[name])
