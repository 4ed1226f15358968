"""A run that serves its checkpoints while it trains."""

from torchspec.serve.options import training_serving
from torchspec.training.config import EvaluationConfig
from torchspec.training.loop import Serve


def server_of(evaluation: EvaluationConfig) -> Serve | None:
    """What a run does with every checkpoint beside keeping it."""
    if evaluation.served is None:
        return None
    training_serving(evaluation)
    from torchspec.serve.checkpoint import serve_draft  # its client is an extra

    return serve_draft
