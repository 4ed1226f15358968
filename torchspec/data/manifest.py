"""What a prepared dataset was made of: written beside it, checked when it is opened, carried to the draft and every report."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from torchspec.errors import ContractError, UserError

VERSION = 4  # of the folder's format, and of what is supervised
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


@dataclass(frozen=True)
class Manifest:
    inputs: list[str]
    target: str
    tokenizer_hash: str
    template_hash: str
    thinking: bool | None
    last_turn_only: bool
    max_length: int | None
    min_loss_tokens: int
    samples: int
    tokens: int
    loss_tokens: int
    mask_share: float  # loss_tokens / tokens
    rejected: dict[str, int]  # reason -> rows
    filtered: dict[str, int]  # reason -> samples
    truncated: int  # samples cut to max_length
    split_conversations: int  # conversations that became one sample per assistant turn
    fingerprint: str  # of all ids and masks in order
    known_by: list[str]  # the fingerprint, and keys of the inputs' contents: other options make other samples of the same text
    version: int = VERSION

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder.resolve()} is no prepared dataset (no manifest.json); make one with `torchspec prepare`")
        fields = json.loads(path.read_text())
        if fields["version"] != VERSION:
            raise UserError(f"{path} has format version {fields['version']} instead of {VERSION}; prepare the data again")
        return cls(**fields)

    def check(self) -> "Manifest":
        if not 0 < self.mask_share < 1:
            raise ContractError(
                f"{self.loss_tokens} of {self.tokens} tokens are supervised; the loss mask must cover the assistant turns and "
                "nothing else, so check that the target's chat template fits the data"
            )
        return self


def mixed(manifests: list[Manifest], passes: list[float]) -> Manifest:
    """Of several datasets that are trained on together: sums of the counts, the target and template that all of them share."""
    tokens, loss_tokens = sum(m.tokens for m in manifests), sum(m.loss_tokens for m in manifests)
    parts = json.dumps([[m.fingerprint, share] for m, share in zip(manifests, passes, strict=True)])
    return replace(
        manifests[0],
        inputs=[name for m in manifests for name in m.inputs],
        samples=sum(m.samples for m in manifests),
        tokens=tokens,
        loss_tokens=loss_tokens,
        mask_share=loss_tokens / tokens,
        rejected=dict(sum((Counter(m.rejected) for m in manifests), Counter())),
        filtered=dict(sum((Counter(m.filtered) for m in manifests), Counter())),
        truncated=sum(m.truncated for m in manifests),
        split_conversations=sum(m.split_conversations for m in manifests),
        fingerprint=hashlib.sha256(parts.encode()).hexdigest()[:16],
        known_by=[key for m in manifests for key in m.known_by],
    )


def tokenizer_hash(target: Path) -> str:
    for name in TOKENIZER_FILES:
        if (target / name).is_file():
            return hashlib.sha256((target / name).read_bytes()).hexdigest()[:16]
    raise UserError(f"target {target} holds none of {', '.join(TOKENIZER_FILES)}; copy the model's tokenizer files there")
