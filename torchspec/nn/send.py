"""From the host to a device, in the order of the stream that is current."""

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, without waiting for a GPU: from ordinary memory the copy would first wait for all that was asked of it before.

    PyTorch keeps the pinned copy until it has been read.
    """
    if x.is_cuda or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
