"""Token rows: ids mean words only under the tokenizer that made them, so they must be the target's own."""

import unicodedata

from transformers import PreTrainedTokenizerBase

from torchspec.rows.conversation import BadRow
from torchspec.rows.formats import Row


def check_ids(row: Row, tokenizer: PreTrainedTokenizerBase, tokenizer_hash: str) -> None:
    """By the tokenizer that the row names, or else by the row's own last message: its words must be those of the ids."""
    if row.tokenizer is not None and row.tokenizer != tokenizer_hash:
        raise BadRow(
            f"token ids of another tokenizer: the row names {row.tokenizer[:16]!r} and the target has {tokenizer_hash!r}; "
            "regenerate the row with this target"
        )
    if row.tokenizer is None and row.last is not None and not _stands_in(row, tokenizer):
        raise BadRow(
            f"token ids are not the row's own messages: under the target's tokenizer {_key(row.last)} do not hold the text of the last "
            f"message ({row.last['role']}); regenerate the row with this target"
        )


def _key(last: dict) -> str:
    return "response_ids" if last["role"] == "assistant" else "prompt_ids"


def _stands_in(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whitespace and Unicode's normal form do not count: templates trim, and tokenizers normalise."""
    ids = row.response_ids if row.last["role"] == "assistant" else row.prompt_ids
    words = [row.last["content"], *(call["function"]["name"] for call in row.last.get("tool_calls", []))]
    texts = [_bare(tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)) for skip in (True, False)]
    return all(any(_bare(word) in text for text in texts) for word in words)


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())
