"""torchspec trains the draft models of speculative decoding: the draft you train is the draft you serve."""

__version__ = "0.1.0"
