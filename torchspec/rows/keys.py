"""Keys that change what a row means: each is honoured or refuses the row by its name, and none is dropped."""

import re
import reprlib


class Problem(Exception):
    """Why a record is unusable, "what: which"; ends up in Row.problem."""


# What trainers of the field read as "learn from this or not": OpenAI, Mistral and Fireworks (weight), axolotl (train, training,
# train_detail), ms-swift and xtuner (loss, loss_scale, loss_weight), verl (loss_mask, response_mask).
WEIGHTS = (
    "weight", "train", "training", "trainable", "train_detail", "training_detail", "loss", "loss_mask", "loss_scale", "loss_weight",
    "sample_weight", "response_mask",
)  # fmt: skip
MEDIA = (
    "images", "image", "image_url", "image_urls", "image_path", "image_paths", "videos", "video", "video_path", "audios", "audio",
    "audio_path", "multi_modal_data", "multi_modal_inputs",
)  # fmt: skip
# `mask` means "learn" to some and "leave out" to others; a prefix is text that the server was given, not text that the target wrote
UNCLEAR = ("mask", "prefix", "refusal", "functions", "tools")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systemPrompt", "sys_prompt")
INSTRUCTION = ("instruction", "instructions")
EMPTY_TEXTS = ("", "[]", "{}", "null", "None")  # as cells of a CSV have it

PLACEHOLDER = re.compile(
    r"<\|(?:vision|image|video|audio)(?:_\w+)?\|>|^[ \t]*<(image|video|audio)>|<(image|video|audio)>[ \t]*$", re.MULTILINE | re.IGNORECASE
)


def shown(value: object) -> str:
    """A value of any size in a short sentence."""
    return reprlib.repr(value)


def is_empty(value: object) -> bool:
    return value.strip() in EMPTY_TEXTS if isinstance(value, str) else not value


def check_media(fields: dict, place: str) -> None:
    for name in MEDIA:
        if not is_empty(fields.get(name)):
            raise Problem(f"images, videos and sound cannot be captured: {place} has {name!r}")


def check_placeholders(text: str, place: str) -> None:
    """At the edge of a line: what stood there was an image. HTML, which closes its <video>, is text like any other."""
    if "<" not in text:
        return
    for tag in {found[0].strip(): None for found in PLACEHOLDER.finditer(text)}:
        if tag.startswith("<|") or tag.replace("<", "</") not in text:
            raise Problem(f"images, videos and sound cannot be captured: {place} holds the placeholder {tag!r}")


def check_unclear(message: dict, place: str) -> None:
    for name in UNCLEAR:
        if name in message and (name == "mask" or not is_empty(message[name])):
            raise Problem(f"a key changes the meaning of a message and is not known here: {place} has {name!r}")


def is_supervised(fields: dict, place: str) -> bool:
    """False where a weight is 0. A loss has no other weights than 0 and 1, here or in a mask."""
    weights = {name: fields[name] for name in WEIGHTS if name in fields}
    if "masked" in fields:  # torchtune's: true leaves out
        weights["masked"] = not fields["masked"] if fields["masked"] in (0, 1) else fields["masked"]
    for name, value in weights.items():
        if value not in (0, 1):
            raise Problem(f"a weight is neither 0 nor 1: {name} of {place} is {shown(fields[name])}")
    return all(weights.values())


def check_row(fields: dict) -> None:
    check_media(fields, "the row")
    measured = isinstance(fields.get("loss"), float)  # a number beside a row is what somebody measured
    if not is_supervised({name: value for name, value in fields.items() if name != "loss" or not measured}, "the row"):
        raise Problem("nothing is to be learned from the row: its weight is 0")
    options = fields.get("chat_template_kwargs")
    if isinstance(options, dict) and any(options.values()):
        raise Problem(f"chat_template_kwargs are not handed to the template here: the row has {shown(sorted(options, key=str))}")


def with_system(fields: dict, messages: list[dict]) -> list[dict]:
    """A system prompt beside the conversation is its first message."""
    texts = {fields[name]: name for name in SYSTEM if not is_empty(_text(fields, name))}
    own = [message["content"] for message in messages if message["role"] in ("system", "developer")]
    if len({text.strip() for text in (*texts, *own[: len(texts)])}) > 1:
        names = ", ".join(map(repr, texts.values()))
        raise Problem(f"two system prompts that differ: {names} beside the conversation" + (" and its system message" if own else ""))
    for name in INSTRUCTION:
        text = _text(fields, name).strip()
        if not any(text in message["content"] for message in messages):
            raise Problem(f"a text beside the conversation is no part of it: {name!r}; a system prompt is named 'system'")
    return messages if own or not texts else [{"role": "system", "content": next(iter(texts))}, *messages]


def _text(fields: dict, name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise Problem(f"a text beside the conversation is none: {name!r} is {type(value).__name__}")
    return value
