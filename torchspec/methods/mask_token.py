"""Choice of the mask token: an id that never occurs in text, since its embedding must mean 'fill me in' and nothing else."""

import re
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from torchspec.errors import UserError

ROLES = ("system", "user", "assistant", "tool", "developer", "observation", "environment", "ipython", "model")


def choose_mask_token(
    tokenizer: PreTrainedTokenizerBase, counts: Tensor, explicit: int | None, stop_ids: frozenset[int] = frozenset()
) -> int:
    """counts [V]: occurrences of every id in the training data. stop_ids: where the engine stops.

    Order of preference: an embedding row beyond the tokenizer's vocabulary (models pad their tables), then a special token
    that neither a chat template nor the data uses.
    """
    taken = stop_ids | _taken(tokenizer)
    if explicit is not None:
        return _checked(explicit, counts, tokenizer, taken)
    known = set(tokenizer.get_vocab().values())
    beyond = [i for i in range(len(counts)) if i not in known and counts[i] == 0]
    if beyond:
        return beyond[0]
    special = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    free = [i for i in special if i not in taken and i < len(counts) and counts[i] == 0]
    if not free:
        raise UserError("no unused special token was found for the mask; set draft.mask_token_id to an id that never occurs in text")
    return free[-1]


def check_mask_token(mask_token_id: int, vocab_size: int) -> None:
    if not 0 <= mask_token_id < vocab_size:
        raise UserError(
            f"draft.mask_token_id={mask_token_id} lies outside the target's vocabulary 0..{vocab_size - 1}; leave it out to have one chosen"
        )


def _taken(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens with a role (bos, eos, pad, ...), in any of the templates, or named like a role that a template may write in brackets."""
    templates = _templates(tokenizer)
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return _with_role(tokenizer) | {
        i for i, content in added.items() if any(content in template for template in templates) or _names_a_role(content)
    }


def _with_role(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """A list of additional special tokens gives none of them a role."""
    return {tokenizer.convert_tokens_to_ids(str(text)) for text in tokenizer.special_tokens_map.values() if not isinstance(text, list)}


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Those that the tokenizer knows, one or several by name, and those that lie beside it."""
    known = tokenizer.chat_template or ""
    folder = Path(tokenizer.name_or_path)
    files = [*folder.glob("*.jinja"), *folder.glob("*templates/*.jinja")] if tokenizer.name_or_path else []
    return [*([known] if isinstance(known, str) else known.values()), *(file.read_text() for file in files)]


def _names_a_role(content: str) -> bool:
    return re.sub(r"[^a-z]|start|end|of|turn|header|id", "", content.lower()) in ROLES


def _checked(mask_token_id: int, counts: Tensor, tokenizer: PreTrainedTokenizerBase, taken: set[int]) -> int:
    check_mask_token(mask_token_id, len(counts))
    if counts[mask_token_id]:
        raise UserError(
            f"draft.mask_token_id={mask_token_id} occurs {int(counts[mask_token_id])} times in the training data; "
            "choose an id that never occurs, or leave it out"
        )
    if mask_token_id in taken:
        raise UserError(
            f"draft.mask_token_id={mask_token_id} is {tokenizer.convert_ids_to_tokens(mask_token_id)!r}, which ends, marks or opens turns; "
            "choose an id that never occurs, or leave it out"
        )
    return mask_token_id
