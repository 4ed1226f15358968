"""Runs that learn nothing: told while they train, and on their page."""

from statistics import median

WINDOW = 5  # lines of metrics whose median is compared with the first: one bad batch is no divergence
EVALUATIONS, FLAT = 3, 1.005  # so many in a row whose tau is printed as 1.00, plain decoding


def diverging(rows: list[dict]) -> str | None:
    """rows: of metrics.jsonl, in order. What is wrong at their end, and what to do about it."""
    losses, taus = ([row[key] for row in rows if row["kind"] == kind] for kind, key in (("train", "loss"), ("eval", "tau")))
    if len(losses) > WINDOW and median(losses[-WINDOW:]) > losses[0]:
        return (
            f"the loss is {median(losses[-WINDOW:]):.3f}, above the {losses[0]:.3f} that it began with; "
            "lower training.learning_rate or raise training.warmup_ratio"
        )
    if len(taus) >= EVALUATIONS and max(taus[-EVALUATIONS:]) < FLAT:
        return (
            f"held-out τ is 1.00 in {EVALUATIONS} evaluations, so no draft token is accepted; run torchspec doctor on this recipe, and "
            "look at the learning rate"
        )
    return None
