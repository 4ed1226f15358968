"""Another draft's weights for this run's: what fits by name, shape and meaning is taken, all else is listed (docs/warm_start.md)."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.importers.folder import read_config
from torchspec.importers.own import Draft
from torchspec.importers.read import read_draft
from torchspec.methods.base import Method
from torchspec.methods.format import check_made_for
from torchspec.methods.registry import method_of
from torchspec.target.frozen import EMBEDDING, HEAD, FrozenTarget
from torchspec.training.same_run import WRITTEN_BY_TRANSFORMERS, differences
from torchspec.training.tensors import read_weights

LEAST = 0.5  # of this draft's parameters: with less it is hardly that draft that goes on
# settings that weights do not depend on; use_aux_hidden_state: drafts without these features are refused
FREE = WRITTEN_BY_TRANSFORMERS | {
    "block_size", "ttt_length", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "max_window_layers",
    "initializer_range", "attention_dropout", "use_cache", "tie_word_embeddings", "draft_vocab_coverage", "use_aux_hidden_state",
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    taken: dict[str, Tensor]
    left: dict[str, str]  # tensors of the source that are not taken -> why
    fresh: list[str]  # parameters that stay as they were built
    differs: dict[str, str]  # settings that make the same weights compute something else -> both values
    share: float  # of this draft's parameters that are taken, its head's aside

    def lines(self) -> list[str]:
        """What is not taken, for the screen: a line per reason."""
        names: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            names.setdefault(reason, []).append(name)
        lines = [f"not taken: {', '.join(those)} ({reason})" for reason, those in names.items()]
        lines += [f"computed otherwise: {key}: {values}" for key, values in self.differs.items()]
        return lines + ([f"starts at random: {', '.join(self.fresh)}"] if self.fresh else [])

    def to_json(self) -> dict:
        return {**vars(self), "taken": list(self.taken)}


def read_source(source: Path, target: FrozenTarget) -> Draft:
    """A checkpoint of ours or a draft folder of any project, made for this target."""
    if (source / "state.json").is_file():
        config = AutoConfig.from_pretrained(source)
        check_made_for(config, target)
        return Draft(method_of(config.to_dict()), config, read_weights(source), target)
    with console.capture():  # importers tell what will be served; what a training leaves behind is told by the caller
        return read_draft(source, read_config(source), target, draft_tokens=None)


def fit(draft: Draft, method: Method, model: nn.Module) -> Fit:
    """model: this run's, of this method, as it was built; its names and shapes count alone."""
    parameters = dict(model.named_parameters())
    different = differences(draft.config, method.config, FREE)
    meaning = {pattern: f"{key}: {different[key]}" for key in method.meaning if key in different for pattern in method.meaning[key]}
    reasons = {name: _unfit(name, value, parameters, meaning) for name, value in draft.tensors.items()}
    left = {name: reason for name, reason in reasons.items() if reason is not None}
    taken = {name: draft.tensors[name] for name in parameters if name in draft.tensors and name not in left}
    fresh = [name for name in parameters if name not in taken]
    backbone = {name for name in parameters if not any(fnmatch(name, pattern) for pattern in method.head)}
    share = sum(taken[name].numel() for name in backbone & taken.keys()) / sum(parameters[name].numel() for name in backbone)
    if share < LEAST:
        raise UserError(_too_little(draft, method, share, [f"{key}: {different[key]}" for key in different] or [f"no {n}" for n in fresh]))
    differs = {key: values for key, values in different.items() if key not in method.meaning}
    return Fit(taken, left | _own_embedding(draft, method.target), fresh, differs, share)


def _too_little(draft: Draft, method: Method, share: float, why: list[str]) -> str:
    trained = method_of(method.config.to_dict())
    return (
        f"this {draft.method} draft fills {share:.0%} of the {trained} draft that this run trains, too little to go on with "
        f"({'; '.join(why[:4])}); make the draft section agree with it, or leave load_path out"
    )


def _unfit(name: str, value: Tensor, parameters: dict[str, Tensor], meaning: dict[str, str]) -> str | None:
    if name in (HEAD, "d2t", "t2d"):
        return "head and vocabulary come from the target and this run's data"
    if name not in parameters:
        return "this run's draft has none"
    for pattern, reason in meaning.items():
        if fnmatch(name, pattern):
            return reason
    there, here = tuple(value.shape), tuple(parameters[name].shape)
    return None if there == here else f"shape {there} there, {here} in this run"


def _own_embedding(draft: Draft, target: FrozenTarget) -> dict[str, str]:
    if draft.target.embedding is target.embedding:
        return {}
    rows = int((draft.target.embedding != target.embedding).any(dim=1).sum())
    return {EMBEDDING: f"its own in {rows:,} of {len(target.embedding):,} rows; this run's draft reads the target's"}
