"""Notice in a run's log that a training goes wrong, and say so in one line that names the entry of docs/failures.md.

    no better than a guess      the loss after a tenth of the training is still at its first value
    usage below a tenth         held-out pictures use few of VQGAN's codes
    a discriminator that wins   its loss is near 0, where 1 is a guess
    learning by heart           held-out pictures get harder to predict, while the loss still falls

A training that has just begun may show any of these: nothing is said before 100 steps and a tenth of the training are over.
"""

from statistics import median

EARLY_STEPS, EARLY = 100, 0.1  # steps, and share of the training
HELD_OUT_LOSS = {"dalle": "nats_per_code", "prior": "loss", "decoder": "loss"}  # figures of held-out pictures that should fall


def column(rows: list[dict[str, str]], name: str, held_out: bool = False) -> list[tuple[int, float]]:
    """Collect a figure of a log's rows, those of the training or of held-out pictures -> (step, value) of each."""
    found = []
    for row in rows:
        values = {"loss": row["loss"]} if row["loss"] else {}
        values |= (part.split("=", 1) for part in row["parts"].split())
        if name in values and held_out == (not row["loss"]):
            found.append((int(row["step"]), float(values[name])))
    return found


def symptoms(model: str, rows: list[dict[str, str]], done: float, guess: float | None = None) -> dict[str, str]:
    """Name what goes wrong with a model, by the rows of its run's log -> entry of docs/failures.md: what is seen.

    done: share of the training that is over; guess: the loss of a guess, if it is not the first one
    """
    rows = [row for row in rows if row["model"] == model]
    if not rows or int(rows[-1]["step"]) < EARLY_STEPS or done < EARLY:
        return {}
    checks = {"learning-rate-too-high": stuck(rows, guess), "codebook-collapse": collapsed(rows),
              "discriminator-from-the-first-step": overpowered(rows),
              "learning-by-heart": by_heart(rows, HELD_OUT_LOSS.get(model, ""))}
    return {entry: seen for entry, seen in checks.items() if seen}


def stuck(rows: list[dict[str, str]], guess: float | None = None) -> str:
    """Say so if the loss of the last 50 steps is still within 2 % of the first one, and of a guess, or above both."""
    # VQGAN's loss also holds the adversarial term, which can be of any size
    losses = [loss for _, loss in column(rows, "reconstruction") or column(rows, "loss")]
    start, now = min(losses[0], guess or losses[0]), median(losses[-5:])
    return f"the loss is {now:.3f}, no better than the {start:.3f} of a guess" if now > 0.98 * start else ""


def collapsed(rows: list[dict[str, str]]) -> str:
    """Say so if held-out pictures use less than a tenth of the codes."""
    usage = column(rows, "usage", held_out=True)
    return f"held-out pictures use {usage[-1][1]:.1%} of the codes" if usage and usage[-1][1] < 0.1 else ""


def overpowered(rows: list[dict[str, str]]) -> str:
    """Say so if the discriminator's loss was below a tenth of a guess's for most of the last 100 steps."""
    losses = [loss for _, loss in column(rows, "discriminator")][-10:]
    if len(losses) < 10 or median(losses) >= 0.1:
        return ""
    return f"the discriminator's loss is {median(losses):.3f}, so it tells nearly all pictures apart"


def by_heart(rows: list[dict[str, str]], figure: str) -> str:
    """Say so if the last two values of a held-out figure were 10 % above its lowest while the loss of the training still fell."""
    held_out = column(rows, figure, held_out=True)
    if len(held_out) < 3:
        return ""
    best_step, best = min(held_out, key=lambda point: point[1])
    losses = column(rows, "loss")
    before = [loss for step, loss in losses if step <= best_step][-10:]
    falls = before and median(loss for _, loss in losses[-10:]) < median(before)
    worse = all(value > 1.1 * best for step, value in held_out[-2:])
    name = figure.replace("_", " ")
    return f"held-out {name} rose from {best:.3f} to {held_out[-1][1]:.3f} while the loss fell" if falls and worse else ""
