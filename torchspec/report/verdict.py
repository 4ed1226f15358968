"""What an evaluation comes to: one sentence, and for each part of it whether that is good."""

from dataclasses import dataclass

GOOD, BAD, OPEN = "good", "bad", "open"


@dataclass(frozen=True)
class Said:
    sentence: str
    how: str


def verdict(results: dict) -> str:
    parts = [said.sentence for said in (speed(results), lossless(results)) if said]
    if not parts:
        parts = ["Nothing was decoded, so speed-up and losslessness are unknown"]
    return "; ".join(parts) + "."


def speed(results: dict) -> Said | None:
    """Of decoding here, or else in the server at the fewest requests."""
    decode, served = results["decode"], results["served"]
    if decode:
        return _faster(decode["speedup"], decode["speedup_interval"], "here")
    if served:
        first = served["by_concurrency"][0]
        requests = "1 request" if first["concurrency"] == 1 else f"{first['concurrency']} requests"
        return _faster(first["speedup"], None, f"in {served['engine']} at {requests} at a time")
    return None


def _faster(speedup: float, interval: list[float] | None, where: str) -> Said:
    """An interval on both sides of 1 says nothing, and neither does a single measurement."""
    if interval is None:
        return Said(f"{speedup:.2f}× the plain speed {where}, measured once, so without an interval", OPEN)
    low, high = interval
    between = f"between {low:.2f} and {high:.2f}"
    if low > 1:
        return Said(f"{speedup:.2f}× faster {where}, {between}", GOOD)
    if high < 1:
        return Said(f"Slower {where}: {speedup:.2f}× the plain speed, {between}", BAD)
    return Said(f"Neither faster nor slower {where} for certain: {speedup:.2f}× the plain speed, {between}", OPEN)


def lossless(results: dict) -> Said | None:
    """Greedy answers beside the plain ones of the same target; sampled ones need not agree."""
    counts = results["decode"] or results["served"]
    compared = counts["identical"] + counts["ties"] + counts["mismatches"] if counts else 0
    if not compared:
        return None
    wrong = counts["mismatches"]
    differ = f"{wrong} of {compared} answers {'differs' if wrong == 1 else 'differ'} beyond a rounding tie"
    return Said(f"not lossless: {differ}", BAD) if wrong else Said(f"lossless: {differ}", GOOD)
