"""The text that each token of a growing answer adds, at a cost that does not grow with the answer."""

from transformers import PreTrainedTokenizerBase

WHOLE = 8  # tokens that one character may be spread over; what is broken for longer is no character in the making


class Texts:
    """Decodes only the last pieces again: one whose text is known, since some tokenizers write a token otherwise at the beginning."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.before, self.pending = tokenizer, [], []

    def add(self, token: int) -> str:
        """A character spread over several tokens is given to the last of them."""
        self.pending.append(token)
        known = self.tokenizer.decode(self.before)
        text = self.tokenizer.decode(self.before + self.pending)
        if text.endswith("\ufffd") and len(self.pending) < WHOLE:
            return ""
        self.before, self.pending = self.pending, []
        return text[len(known) :]
