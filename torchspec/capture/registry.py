"""Capture engines by name, readable without torch."""

BACKENDS = {
    "hf": "torchspec.capture.hf:HFCapture",
    "sglang": "torchspec.capture.sglang.backend:SGLangCapture",
    "vllm": "torchspec.capture.vllm.backend:VLLMCapture",
}
EXTRAS = ("sglang", "vllm")  # engines that an extra of their name installs


def engine_name(word: str) -> str:
    """Anything but `sgl`, SGLang's other name in the field, is what it is."""
    return "sglang" if word == "sgl" else word
