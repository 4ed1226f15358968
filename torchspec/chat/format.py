"""Messages -> token ids and loss mask, exact for any chat template.

The server tokenizes the rendered generation prompt, and the target continues it up to the token that ends the turn. For assistant
turn i that is

    P_i = render(messages[:i], with generation prompt)      F_i = render(messages[:i + 1])
    text    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n   Hello!<|im_end|>   \\n
            |---------------------- P_i ------------------------|   |--- answer ---|  template
    mask     0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0     1 1 1 1 1 1 1 1   dropped

so nothing is searched for in the text, and no template needs a rule of its own. Where the token that ends a turn is the first of the next
message (GLM-4, Apertus), F_i goes on up to it; the last answer of a conversation then has no end, since none stands in the text.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from torchspec.chat.clock import DAY, uses_clock, with_fixed_day
from torchspec.chat.complete import check_complete
from torchspec.chat.pieces import Piece, PieceIds, PieceTokenizer
from torchspec.chat.stops import stop_ids
from torchspec.chat.turns import Encoded, Turn, TurnText, check_mask, samples
from torchspec.errors import UserError
from torchspec.rows.conversation import BadRow, assistant_turns

# What a template's own code raises on a conversation that it was not written for: a null, a missing key, a text for an object.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
THOUGHT = "think"  # in the switch, or in the marks, of every template that knows thoughts: <think>, [THINK], START_THINKING
ANSWER_TAIL = 32  # characters by which an answer is found again in a longer rendering


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
        chat = cls(tokenizer, thinking, last_turn_only, stop_ids(target_folder, tokenizer))
        if thinking and THOUGHT not in chat._template.lower():
            raise UserError(
                f"thinking is on (--thinking on, or dataset.thinking: true), but the chat template of {target_folder} has no thinking "
                "mode; leave it out"
            )
        return chat

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else json.dumps(template, sort_keys=True)  # several, by name

    @property
    def template_hash(self) -> str:
        day = f"\nday={DAY:%Y-%m-%d}" if uses_clock(self._template) else ""
        text = f"{self._template}\nthinking={self.thinking}{day}"
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
        chosen = assistants[-1:] if self.last_turn_only else assistants
        whole = self.render(messages[: chosen[-1] + 1], add_generation_prompt=False, tools=tools)
        return [self._text(messages, tools, i, whole) for i in chosen]

    def _text(self, messages: list[dict], tools: list[dict] | None, i: int, whole: str) -> TurnText:
        prompt = self.render(messages[:i], add_generation_prompt=True, tools=tools)
        full = self.render(messages[: i + 1], add_generation_prompt=False, tools=tools)
        if not full.startswith(prompt):
            raise BadRow(
                f"the chat template renders an assistant turn differently from its generation prompt: message {i}; "
                "the rows of `torchspec regenerate` carry token ids and need no rendering"
            )
        check_complete(i, messages[i], prompt, full[len(prompt) :], self._ends)
        full += self._end_in_next_message(messages[: i + 2], tools, full, len(prompt))
        return TurnText(i, Piece.of(whole, prompt), Piece.of(whole, full))

    def _end_in_next_message(self, messages: list[dict], tools: list[dict] | None, full: str, start: int) -> str:
        """The stop token that opens the message after an answer which ends with none, and the text before it."""
        if not self._ends or messages[-1]["role"] == "assistant" or self._end.search(full, start):
            return ""
        following = self.render(messages, add_generation_prompt=False, tools=tools)
        before = sum(1 for _ in self._end.finditer(full))
        end = next(islice(self._end.finditer(following), before, None), None)
        if end is None or not following[: end.start()].rstrip().endswith(full[start:].rstrip()[-ANSWER_TAIL:]):
            return ""
        return following[len(full) : end.end()] if following.startswith(full) else end[0]

    def tokenize(self, texts: Iterable[TurnText]) -> None:
        """Tokenizes many turns together and remembers their ids until the next call."""
        self._remembered.clear()
        self._remembered.update(self._pieces(piece for turn in texts for piece in (turn.prompt, turn.full)))

    def turns(self, texts: list[TurnText]) -> list[Turn]:
        return [self._turn(text) for text in texts]

    def _turn(self, text: TurnText) -> Turn:
        prompt_ids = self._ids(text.prompt)
        ids = self._continuation(text.prompt, prompt_ids.list(), text.full)
        end = self._end_of_turn(ids)
        # Without an end-of-turn token the template's trailing newline belongs to the next turn, not to the answer.
        answer = self._continuation(text.prompt, prompt_ids.list(), _stripped(text.full)) if end is None else ids[:end]
        if not self.tokenizer.decode(answer, skip_special_tokens=True).strip():
            raise BadRow(f"the chat template renders an empty assistant turn: message {text.message}")
        return Turn(prompt_ids, answer)

    def _continuation(self, prompt: Piece, prompt_ids: list[int], full: Piece) -> list[int]:
        """Ids of `full` after `prompt`. Where the two merge at the border ("Assistant: " + "Yes" -> ": Yes") the rest is tokenized
        alone, because the server's prompt is tokenized before the answer exists."""
        ids = self._ids(full).list()
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        return self._pieces.ids([full.text[len(prompt.text) :]])[0]

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
            template = with_fixed_day(self.tokenizer.get_chat_template(tools=tools))
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, chat_template=template, add_generation_prompt=add_generation_prompt, **options
            )
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow("half a character: the text holds a lone surrogate, which no tokenizer reads; mend the file's encoding") from error
        except TEMPLATE_ERRORS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadRow(f"the chat template refuses the conversation: {reason}") from error
        _check_tools(tools, text)
        return text

    def _ids(self, piece: Piece) -> PieceIds:
        return self._remembered[piece] if piece in self._remembered else self._pieces([piece])[piece]

    @cached_property
    def _pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self.tokenizer)

    @cached_property
    def _remembered(self) -> dict[Piece, PieceIds]:
        return {}

    @cached_property
    def _ends(self) -> list[str]:
        """Stop tokens as they stand in the text, the longest first."""
        return sorted(filter(None, map(self.tokenizer.convert_ids_to_tokens, self.stop_ids)), key=len, reverse=True)

    @cached_property
    def _end(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, self._ends)))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special)


def _stripped(piece: Piece) -> Piece:
    return Piece.of(piece.whole, piece.text.rstrip())


def _check_tools(tools: list[dict] | None, text: str) -> None:
    for tool in tools or []:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise BadRow(f"the chat template does not render tools: {name!r} is missing; describe them in the system message instead")
