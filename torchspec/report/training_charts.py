"""Charts over optimizer steps, from the rows of metrics.jsonl."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from torchspec.report.charts import BLUE, GREY, ORANGE, Chart, chart, legend_above, shades


def training_charts(rows: list[dict]) -> list[Chart]:
    train, held_out, served = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval", "served"))
    charts = []
    if train:
        sentence = "Weighted mean over the slots of a block. Lower is better."
        charts.append(chart("training_loss", "Training loss", sentence, _draw_loss, train))
    if train or held_out:
        sentence = "Tokens per target forward, higher is better. Where the grey and the dashed line part, text is learned by heart."
        charts.append(chart("training_tau", "Acceptance length τ", sentence, _draw_tau, train, held_out, served))
    if train and "slot_accuracy" in train[0]:  # a method's own metric: another method may not have it
        sentence = "How often the draft's first choice is right, slot by slot. Late slots are harder."
        charts.append(chart("training_accuracy", "Training accuracy per slot", sentence, _draw_accuracy, train))
    if train:
        sentence = "Training speed. The target's own forward passes (capture) are included."
        charts.append(chart("training_speed", "Tokens per second", sentence, _draw_speed, train))
    return charts


def generalisation(rows: list[dict]) -> str | None:
    """How much of what training text gains over plain decoding held-out text gains as well, where held-out tau was highest."""
    held_out = [row for row in rows if row["kind"] == "eval"]
    if not held_out:
        return None
    best, since = max(held_out, key=lambda row: row["tau"]), held_out[-1]["since_best"]
    text, training = best["block_tau"], best["training_block_tau"]
    share = f": {(text - 1) / (training - 1):.0%} of the gain carries over" if training > 1 else ""
    after = f" Evaluations since then, none of them better: {since}." if since else ""
    return (
        f"At step {best['step']}, the best, the draft gets {text:.2f} tokens per forward after every token of held-out text and "
        f"{training:.2f} on training text{share}.{after}"
    )


def _line(axes: Axes, rows: list[dict], key: str, **style) -> None:
    """A short curve shows its points: one point alone draws no line."""
    axes.plot([row["step"] for row in rows], [row[key] for row in rows], marker="o" if len(rows) < 20 else "", ms=3.5, **style)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _draw_loss(axes: Axes, train: list[dict]) -> None:
    _line(axes, train, "loss", color=BLUE)
    axes.set_ylabel("loss")
    losses = sorted(row["loss"] for row in train)
    usual = losses[len(losses) * 9 // 10]
    if losses[-1] > 2 * usual:  # the first steps would flatten the rest: say so, and leave them out
        axes.set_ylim(losses[0] - 0.1 * usual, 1.2 * usual)
        axes.text(0.98, 0.96, f"axis cut: highest value {losses[-1]:.1f}", ha="right", va="top", transform=axes.transAxes)


def _draw_tau(axes: Axes, train: list[dict], held_out: list[dict], served: list[dict]) -> None:
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1, label="plain decoding")
    if train:
        _line(axes, train, "block_tau", color=GREY, label="training text, every token")
    if held_out:
        _line(axes, held_out, "block_tau", color=BLUE, linestyle="--", alpha=0.6, label="held-out text, every token")
        _line(axes, held_out, "tau", color=BLUE, label="held-out text, decoded")
        best = max(held_out, key=lambda row: row["tau"])
        below = {"xytext": (0, -7), "textcoords": "offset points", "ha": "right", "va": "top"}  # the training curve runs above
        axes.annotate(f"best {best['tau']:.2f}", (best["step"], best["tau"]), color=BLUE, **below)
    if served:  # other prompts than the held-out line: the two points of one step are what must agree
        steps = [row["step"] for row in served]
        axes.plot(steps, [row["tau"] for row in served], "x", color=ORANGE, label=f"counted by {served[0]['engine']}")
        axes.plot(steps, [row["own_tau"] for row in served], "o", mfc="none", color=ORANGE, label="own walk, the same text")
    axes.set_ylabel("τ")
    legend_above(axes)


def _draw_accuracy(axes: Axes, train: list[dict]) -> None:
    """One line per slot, dark to light."""
    slots = len(train[0]["slot_accuracy"])
    for slot, colour in enumerate(shades(slots)):
        rows = [{"step": row["step"], "accuracy": row["slot_accuracy"][slot]} for row in train]
        _line(axes, rows, "accuracy", color=colour, label=str(slot + 1))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 1 + slots // 9}
    axes.legend(title="slot", handlelength=1, columnspacing=0.8, **beside)


def _draw_speed(axes: Axes, train: list[dict]) -> None:
    _line(axes, train, "tokens_per_second", color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens/s")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
