"""What must hold of a draft in every engine that serves it, and what was measured on the way."""

from pathlib import Path

from torchspec.decode.pair import Pair
from torchspec.decode.sequence import stop_ids
from torchspec.files.kept import Kept
from torchspec.serve.measure import measure_served
from torchspec.serve.options import Serving
from torchspec.serve.side import Asked


def measured(pair: Pair, conversations: list, tokens: int, at_a_time: int, serving: Serving, logs: Path, plain: dict) -> dict:
    """plain: rows of the server without draft, which writes the same whatever the draft; the first draft's measurement fills them."""
    asked, kept = Asked(conversations, tokens, 0.0, 0, tuple(stop_ids(pair.target))), Kept(logs.with_suffix(".jsonl"), {})
    kept.rows |= plain
    served = measure_served(pair, asked, [at_a_time], serving, kept, logs)
    plain |= {key: row for key, row in kept.rows.items() if "without draft" in key}
    return served


def check_texts(engine: str, method: str, served: dict) -> None:
    """Speculative text is the engine's plain text, up to ties."""
    same = f"{served['identical']} of {served['of']} speculative answers equal the plain ones, {served['ties']} part at a tie of two logits"
    print(f"\n{engine} {served['version']}, {method}: {same}")
    assert served["mismatches"] == 0


def check_accepted(engine: str, method: str, served: dict) -> None:
    """By what the engine itself counts, beside our walk over the very text that it wrote."""
    (row,) = served["by_concurrency"]
    mine = f"our walk over its text {served['own_tau']:.3f}"
    print(f"\n{engine} {served['version']}, {method}: τ {row['tau']:.3f} in {row['steps']} steps; {mine}")
    print("accepted per slot " + " ".join(f"{rate:.3f}" for rate in row["slot_acceptance"]))
    assert served["alarm"] is None, served["alarm"]
