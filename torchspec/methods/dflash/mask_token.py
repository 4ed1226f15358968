"""Choice of the mask token: an id that never occurs in text, since its embedding must mean 'fill me in' and nothing else."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from torchspec.errors import UserError


def choose_mask_token(tokenizer: PreTrainedTokenizerBase, counts: Tensor, explicit: int | None) -> int:
    """counts [V]: occurrences of every id in the training data.

    Order of preference: an embedding row beyond the tokenizer's vocabulary (models pad their tables), then a special token
    that neither the chat template nor the data uses.
    """
    if explicit is not None:
        return _checked(explicit, counts)
    known = set(tokenizer.get_vocab().values())
    beyond = [i for i in range(len(counts)) if i not in known and counts[i] == 0]
    if beyond:
        return beyond[0]
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = sorted(
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content not in (tokenizer.chat_template or "")
    )
    free = [i for i in special if i not in taken and i < len(counts) and counts[i] == 0]
    if not free:
        raise UserError("no unused special token was found for the mask; set draft.mask_token_id to an id that never occurs in text")
    return free[-1]


def _checked(mask_token_id: int, counts: Tensor) -> int:
    if not 0 <= mask_token_id < len(counts):
        raise UserError(
            f"draft.mask_token_id={mask_token_id} lies outside the target's vocabulary 0..{len(counts) - 1}; "
            "leave it out to have one chosen"
        )
    if counts[mask_token_id]:
        raise UserError(
            f"draft.mask_token_id={mask_token_id} occurs {int(counts[mask_token_id])} times in the training data; "
            "choose an id that never occurs, or leave it out"
        )
    return mask_token_id
