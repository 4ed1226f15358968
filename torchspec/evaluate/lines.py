"""What an evaluation says while it measures."""

from torchspec.acceptance.walk import Acceptance
from torchspec.console import console
from torchspec.report.results import break_even_sentence


def print_acceptance(acceptance: Acceptance) -> None:
    console.print("  accepted by slot   " + "  ".join(f"{k}: {rate:.0%}" for k, rate in enumerate(acceptance.slot_rates, start=1)))
    most = max(acceptance.histogram)
    for committed, steps in enumerate(acceptance.histogram[1:], start=1):
        console.print(f"  {committed:>3} tokens in {steps:>8.0f} steps  {'█' * round(40 * steps / most)}")


def print_break_even(rows: list[dict]) -> None:
    for row in rows:
        console.print(f"  at concurrency {row['concurrency']:>2} {break_even_sentence(row)}", markup=False)


def print_stopped(decoding: dict, least_survival: float, slots: int) -> None:
    """What stopping early saved, beside what it gave: drafts that were not made, and those of them that would have been accepted."""
    drafted, steps = decoding["draft_tokens"], decoding["steps"]
    console.print(
        f"  drafting stopped below a survival of {least_survival}: {drafted} draft tokens in {steps} steps, "
        f"{drafted / (steps * slots):.0%} of all slots, for τ {decoding['tau']:.2f}"
    )
