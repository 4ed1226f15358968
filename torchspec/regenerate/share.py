"""How much of a text the target would have written itself."""

import tempfile
from pathlib import Path

import torch

from torchspec.capture.hf import HFCapture
from torchspec.console import console
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.regenerate.here import Here

SHARE_SAMPLES = 32  # samples that the on-policy share is measured on


def report_share(inputs: list[str], here: Here, thinking: bool | None) -> None:
    """Prints how much of each input's supervised text the target would have written itself."""
    for path in inputs:
        with tempfile.TemporaryDirectory() as scratch:
            dataset = open_or_prepare(path, Path(scratch), here.folder, Options(thinking, trust_remote_code=here.trust_remote_code))
            same, total = on_policy_share(here.target, dataset, SHARE_SAMPLES)
        console.print(f"{path}: on-policy share {same / total:.1%} ({same} of {total} tokens are the target's own greedy choice)")


@torch.inference_mode()
def on_policy_share(target: HFCapture, dataset: PromptDataset, samples: int) -> tuple[int, int]:
    """(supervised tokens that equal the target's argmax after the true prefix, supervised tokens), over evenly spread samples."""
    same = total = 0
    count = min(samples, len(dataset))
    for i in range(count):
        prompt = dataset[i * len(dataset) // count]
        choices = target.model(input_ids=prompt.ids.to(target.device)[None], use_cache=False).logits[0].argmax(-1).cpu()  # [L]
        supervised = prompt.loss_mask[1:]
        same += int((choices[:-1] == prompt.ids[1:])[supervised].sum())
        total += int(supervised.sum())
    return same, total
