"""Small tensors made on the host and needed on a device."""

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, without waiting for a GPU: from ordinary memory the copy would first wait for all that was asked of it before."""
    if x.is_cuda or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
