"""Notice in a run's log that a training goes wrong, and name the entry of docs/failures.md.

    no better than a guess      the loss after a tenth of the training is still at its first value
    usage below a tenth         held-out pictures use few of VQGAN's codes
    a discriminator that wins   its loss is near 0, where 1 is a guess
    learning by heart           held-out pictures get harder to predict while the loss falls

A training that has just begun may show any of these, so its first tenth is passed over.
"""

from statistics import median

EARLY_STEPS, EARLY = 100, 0.1  # steps, and fraction of the training, that are passed over
# figures of held-out pictures that should fall
HELD_OUT_LOSS = {"dalle": "nats_per_code", "prior": "loss", "decoder": "loss"}

Points = list[tuple[int, float]]  # (step, value)


def column(rows: list[dict[str, str]], name: str, held_out: bool = False) -> Points:
    """Collect a figure of a log's rows, of training or of held-out pictures -> (step, value)."""
    found = []
    for row in rows:
        values = {"loss": row["loss"]} if row["loss"] else {}
        values |= (part.split("=", 1) for part in row["parts"].split())
        if name in values and held_out == (not row["loss"]):
            found.append((int(row["step"]), float(values[name])))
    return found


def symptoms(model: str, rows: list[dict[str, str]], done: float,
             guess: float | None = None) -> dict[str, str]:
    """Name what goes wrong with a model -> entry of docs/failures.md: what is seen.

    rows: the run's log; done: fraction completed; guess: the loss of a guess, if not the first one
    """
    rows = [row for row in rows if row["model"] == model]
    if not rows or int(rows[-1]["step"]) < EARLY_STEPS or done < EARLY:
        return {}
    checks = {"learning-rate-too-high": stuck(rows, guess), "codebook-collapse": collapsed(rows),
              "discriminator-from-the-first-step": overpowered(rows),
              "learning-by-heart": by_heart(rows, HELD_OUT_LOSS.get(model, ""))}
    return {entry: seen for entry, seen in checks.items() if seen}


def stuck(rows: list[dict[str, str]], guess: float | None = None) -> str:
    """Check whether the last losses are within 2 % of the first one and of a guess, or above."""
    # VQGAN's loss also holds the adversarial term, which can be of any size
    losses = [loss for _, loss in column(rows, "reconstruction") or column(rows, "loss")]
    start, now = min(losses[0], guess or losses[0]), median(losses[-5:])
    if now <= 0.98 * start:
        return ""
    return f"the loss is {now:.3f}, no better than the {start:.3f} of a guess"


def collapsed(rows: list[dict[str, str]]) -> str:
    """Check whether held-out pictures use less than a tenth of the codes."""
    usage = column(rows, "usage", held_out=True)
    few = usage and usage[-1][1] < 0.1
    return f"held-out pictures use {usage[-1][1]:.1%} of the codes" if few else ""


def overpowered(rows: list[dict[str, str]]) -> str:
    """Check whether the discriminator's loss was below a tenth for most of the last 100 steps."""
    losses = [loss for _, loss in column(rows, "discriminator")][-10:]
    if len(losses) < 10 or median(losses) >= 0.1:
        return ""
    return f"the discriminator's loss is {median(losses):.3f}: it tells nearly all pictures apart"


def by_heart(rows: list[dict[str, str]], figure: str) -> str:
    """Check whether a held-out figure rose twice by 10 % above its lowest while the loss fell."""
    held_out, losses = column(rows, figure, held_out=True), column(rows, "loss")
    if len(held_out) < 3:
        return ""
    best_step, best = min(held_out, key=lambda point: point[1])
    before = [loss for step, loss in losses if step <= best_step][-10:]
    falls = before and median(loss for _, loss in losses[-10:]) < median(before)
    if not falls or any(value <= 1.1 * best for _, value in held_out[-2:]):
        return ""
    name = figure.replace("_", " ")
    return f"held-out {name} rose from {best:.3f} to {held_out[-1][1]:.3f} while the loss fell"
