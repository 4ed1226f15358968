"""Messages -> token ids and loss mask, exact for any chat template.

The server tokenizes the rendered generation prompt, and the target continues it up to the token that ends the turn. For assistant
turn i that is

    P_i = render(messages[:i], with generation prompt)      F_i = render(messages[:i + 1])
    text    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n   Hello!<|im_end|>   \\n
            |---------------------- P_i ------------------------|   |--- answer ---|  template
    mask     0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0     1 1 1 1 1 1 1 1   dropped

so nothing is searched for in the text, and no template needs a rule of its own.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from torchspec.data.conversation import BadRow, assistant_turns, check_rendered
from torchspec.data.stops import stop_ids
from torchspec.errors import UserError


@dataclass(frozen=True)
class Encoded:
    ids: list[int]  # [L]
    loss_mask: list[bool]  # [L]

    def spans(self) -> list[tuple[int, int]]:
        """Half-open [start, end) ranges of consecutive supervised tokens."""
        runs = [list(run) for supervised, run in groupby(range(len(self.ids)), self.loss_mask.__getitem__) if supervised]
        return [(run[0], run[-1] + 1) for run in runs]


@dataclass(frozen=True)
class TurnText:
    """An assistant turn as the template renders it."""

    message: int  # its number in the conversation
    prompt: str  # P_i
    full: str  # F_i


@dataclass(frozen=True)
class Turn:
    prompt: list[int]  # what the server sees
    answer: list[int]  # what the target would have generated, end of turn included

    def encoded(self) -> Encoded:
        return Encoded(self.prompt + self.answer, [False] * len(self.prompt) + [True] * len(self.answer))


@dataclass(frozen=True)
class ChatFormat:
    tokenizer: PreTrainedTokenizerBase
    thinking: bool | None  # handed to the template as enable_thinking; None leaves the template's own default
    last_turn_only: bool
    stop_ids: frozenset[int] = frozenset()  # tokens at which the engines stop

    @classmethod
    def load(cls, target_folder: Path, thinking: bool | None, last_turn_only: bool, trust_remote_code: bool = False) -> "ChatFormat":
        if not target_folder.is_dir():
            raise UserError(f"target {target_folder.resolve()} is no folder; give the folder of the target model")
        try:
            tokenizer = AutoTokenizer.from_pretrained(target_folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"target {target_folder} holds no tokenizer ({reason}); copy the model's tokenizer there") from error
        if tokenizer.chat_template is None:
            raise UserError(
                f"target {target_folder} has no chat template, so answers cannot be told from prompts; "
                "put the model's chat_template.jinja into that folder"
            )
        return cls(tokenizer, thinking, last_turn_only, stop_ids(target_folder, tokenizer))

    @property
    def template_hash(self) -> str:
        text = f"{self.tokenizer.get_chat_template()}\nthinking={self.thinking}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, texts: list[TurnText]) -> list[Encoded]:
        """The samples of a conversation, each supervised span compared with the turn that it is."""
        turns = self.turns(texts)
        encoded = samples(turns)
        check_mask(encoded, turns)
        return encoded

    def texts(self, messages: list[dict], tools: list[dict] | None = None) -> list[TurnText]:
        """The supervised assistant turns; messages after the last one never take part."""
        assistants = assistant_turns(messages)
        return [self._text(messages, tools, i) for i in (assistants[-1:] if self.last_turn_only else assistants)]

    def _text(self, messages: list[dict], tools: list[dict] | None, i: int) -> TurnText:
        prompt = self.render(messages[:i], add_generation_prompt=True, tools=tools)
        full = self.render(messages[: i + 1], add_generation_prompt=False, tools=tools)
        if not full.startswith(prompt):
            raise BadRow(
                f"the chat template renders an assistant turn differently from its generation prompt: message {i}; "
                "the rows of `torchspec regenerate` carry token ids and need no rendering"
            )
        check_rendered(i, messages[i], full[len(prompt) :])
        return TurnText(i, prompt, full)

    def tokenize(self, texts: Iterable[TurnText]) -> None:
        """Tokenizes many turns in one call, which takes a third of the time of many, and remembers their ids until the next one."""
        distinct = list(dict.fromkeys(text for turn in texts for text in (turn.prompt, turn.full)))
        self._remembered.clear()
        self._remembered.update(zip(distinct, self._tokenized(distinct), strict=True))

    def turns(self, texts: list[TurnText]) -> list[Turn]:
        return [self._turn(text) for text in texts]

    def _turn(self, text: TurnText) -> Turn:
        prompt_ids = self._ids(text.prompt)
        ids = self._continuation(text.prompt, prompt_ids, text.full)
        end = self._end_of_turn(ids)
        # Without an end-of-turn token the template's trailing newline belongs to the next turn, not to the answer.
        answer = self._continuation(text.prompt, prompt_ids, text.full.rstrip()) if end is None else ids[:end]
        if not self.tokenizer.decode(answer, skip_special_tokens=True).strip():
            raise BadRow(f"the chat template renders an empty assistant turn: message {text.message}")
        return Turn(prompt_ids, answer)

    def _continuation(self, prompt: str, prompt_ids: list[int], full: str) -> list[int]:
        """Ids of `full` after `prompt`. Where the two merge at the border ("Assistant: " + "Yes" -> ": Yes") the rest is tokenized
        alone, because the server's prompt is tokenized before the answer exists."""
        ids = self._ids(full)
        return ids[len(prompt_ids) :] if ids[: len(prompt_ids)] == prompt_ids else self._ids(full[len(prompt) :])

    def _end_of_turn(self, ids: list[int]) -> int | None:
        """Length of `ids` up to and including the token that ends the turn: where the engine stops, or else the last special token
        that only whitespace follows."""
        for end, token in enumerate(ids, start=1):
            if token in self.stop_ids:
                return end
        end = max((n for n, token in enumerate(ids, start=1) if token in self._special_ids), default=None)
        return None if end is None or self.tokenizer.decode(ids[end:]).strip() else end

    def render(self, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None = None) -> str:
        """Templates differ in what they call the thinking mode (Qwen, DeepSeek) and the thoughts (most, gpt-oss): both names are given."""
        options = {} if self.thinking is None else {"enable_thinking": self.thinking, "thinking": self.thinking}
        messages = [{**m, "thinking": m["reasoning_content"]} if m.get("reasoning_content") else m for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except (TemplateError, TypeError) as error:  # TypeError: the template adds text to a field that is null
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadRow(f"the chat template refuses the conversation: {reason}") from error
        _check_tools(tools, text)
        return text

    def _ids(self, text: str) -> list[int]:
        return self._remembered[text] if text in self._remembered else self._tokenized([text])[0]

    def _tokenized(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []

    @cached_property
    def _remembered(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special)


def samples(turns: list[Turn]) -> list[Encoded]:
    """One sample for the whole conversation where that is exact, otherwise one sample per assistant turn."""
    whole = _whole(turns)
    return [whole] if whole else [turn.encoded() for turn in turns]


def check_mask(encoded: list[Encoded], turns: list[Turn]) -> None:
    """Every supervised span must be an answer that follows exactly the prompt a server would see."""
    spans = [(sample.ids, start, end) for sample in encoded for start, end in sample.spans()]
    if len(spans) != len(turns):
        raise BadRow(f"the loss mask disagrees with the chat template: {len(spans)} spans for {len(turns)} assistant turns")
    for number, ((ids, start, end), turn) in enumerate(zip(spans, turns, strict=True)):
        if ids[:start] != turn.prompt or ids[start:end] != turn.answer:
            raise BadRow(f"the loss mask disagrees with the chat template: span {number} covers [{start}, {end})")


def _whole(turns: list[Turn]) -> Encoded | None:
    """The last turn's sample with all turns supervised, if it holds every earlier prompt and answer token by token. It does not
    when the template rewrites its history (Qwen3 drops old thoughts) or when a prompt's last space merges with the answer."""
    ids = turns[-1].encoded().ids
    loss_mask = [False] * len(ids)
    for turn in turns:
        start, end = len(turn.prompt), len(turn.prompt) + len(turn.answer)
        if ids[:start] != turn.prompt or ids[start:end] != turn.answer:
            return None
        loss_mask[start:end] = [True] * len(turn.answer)
    return Encoded(ids, loss_mask)


def _check_tools(tools: list[dict] | None, text: str) -> None:
    for tool in tools or []:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise BadRow(f"the chat template does not render tools: {name!r} is missing; describe them in the system message instead")
