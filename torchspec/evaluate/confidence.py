"""What a draft says about its own drafts, beside what became of them: measured prompt by prompt, and temperatures that mend it.

Greedy: of drafts after every anchor of a text that the target wrote, k survive where the first k are the text's own tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from torchspec.acceptance.calibration import errors, fit, survival, tally
from torchspec.console import console
from torchspec.data.dataset import open_or_prepare
from torchspec.data.encode import Options
from torchspec.decode.pair import Pair
from torchspec.errors import UserError
from torchspec.evaluate.trained_on import trained_on
from torchspec.files.writing import writing
from torchspec.methods.temperatures import FILE
from torchspec.progress import with_progress
from torchspec.records import Features

Said = tuple[Tensor, Tensor, Tensor]  # [n, S] each: logits; did so many tokens survive; has the answer a token there


@torch.inference_mode()
def said(pair: Pair, features: Features) -> Said:
    """Of all anchors of a document's answers."""
    slots = torch.arange(1, pair.method.block_size)
    parts = [(torch.empty(0, len(slots)), *(torch.empty(0, len(slots), dtype=torch.bool),) * 2)]
    for start, end in features.prompt.spans():
        anchors = torch.arange(start, end - 1, device=features.context.device)
        if len(anchors) > 0:
            logits, right = pair.method.confidences(pair.model, features, anchors)
            parts.append((logits.cpu(), right.cpu(), anchors.cpu()[:, None] + slots < end))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def counted(pair: Pair, features: Features) -> list:
    """Of one document, with the draft's own temperatures: counts that add up (acceptance/calibration.py)."""
    logits, right, there = said(pair, features)
    return tally(survival(logits, pair.method.temperatures), right, there).tolist()


def reported(rows: Iterable[dict]) -> dict | None:
    """Of all documents measured; none where the draft says nothing of itself, or was measured at a temperature."""
    counts = [torch.tensor(row["confidence"], dtype=torch.float64) for row in rows if row["confidence"] is not None]
    if not counts:
        return None
    total = sum(counts)
    steps, said, survived = total.sum(1).clamp(min=1e-12).unbind(-1)
    return {
        "calibration_error": errors(total),
        "survival_said": (said / steps).tolist(),
        "survival": (survived / steps).tolist(),
    }


def print_confidence(confidence: dict | None) -> None:
    if confidence is not None:
        pairs = zip(confidence["survival_said"], confidence["survival"], confidence["calibration_error"], strict=True)
        cells = [f"{k}: {a:.0%} of {b:.0%} ({e:.1%})" for k, (a, b, e) in enumerate(pairs, start=1)]
        console.print("  survival as the draft says, of what is (calibration error)   " + "  ".join(cells))


def calibrate(pair: Pair, data: str, cache: Path, limit: int | None) -> dict:
    """Fits temperatures on conversations that the target wrote, and writes them into the draft's folder."""
    if not pair.method.confident:
        raise UserError(f"{pair.draft} has no confidence head, so there is nothing to calibrate")
    opened = open_or_prepare(data, cache, pair.folder, Options(trust_remote_code=pair.target.spec.trust_remote_code))
    trained_on(pair.draft, {Path(data).name: opened})
    prompts = [opened[i] for i in range(min(len(opened), limit or len(opened)))]
    asked = with_progress(iter(prompts), "calibrate", len(prompts), unit="conversations")
    parts = [said(pair, pair.target.capture(prompt)) for prompt in asked]
    logits, right, there = (torch.cat(part) for part in zip(*parts, strict=True))
    temperatures, plain = fit(logits, right, there), [1.0] * logits.shape[1]
    before, after = (errors(tally(survival(logits, t), right, there)) for t in (plain, temperatures))
    found = {
        "temperatures": temperatures, "dataset": Path(data).name, "num_samples": len(prompts), "ece_before": before, "ece_after": after,
    }  # fmt: skip
    file = pair.draft / FILE
    with writing(file, "torchspec calibrate", lambda: f"{file} is as it was before"):
        file.write_text(json.dumps(found, indent=2) + "\n")
    for slot, row in enumerate(zip(temperatures, before, after, strict=True), start=1):
        console.print("slot {:>2}   temperature {:.2f}   calibration error {:.1%} -> {:.1%}".format(slot, *row))
    return found
