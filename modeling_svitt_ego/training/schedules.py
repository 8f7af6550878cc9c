"""Values that change over a run, such as a margin or a temperature, as functions of its progress."""

import math
from collections.abc import Callable

FORMS = "'0.2', 'linear:START:END' or 'cosine:LOW:HIGH:PERIODS'"


def parse_schedule(text: str | float) -> Callable[[float], float]:
    """
    A schedule from its description.

    Args:
        text (`str` or `float`): `"0.2"` is constant. `"linear:0.2:0.4"` goes from the first value to the second.
            `"cosine:0.4:0.8:5"` starts at the higher value and swings between both as often as the last number says:
            five periods of amplitude 0.2 around 0.6 are what fine-tuned retrieval on EPIC-KITCHENS-100 used.

    Returns:
        A function of the progress, the share of the run that is done, in [0, 1].
    """
    kind, *numbers = str(text).split(":")
    try:
        if not numbers:
            kind, numbers = "constant", [kind]
        values = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(f"The schedule {text!r} is not understood; it must be {FORMS}.") from None
    expected = {"constant": 1, "linear": 2, "cosine": 3}.get(kind)
    if len(values) != expected or not all(math.isfinite(value) for value in values):
        raise ValueError(f"The schedule {text!r} is not understood; it must be {FORMS}.")
    if kind == "constant":
        return lambda progress: values[0]
    if kind == "linear":
        start, end = values
        return lambda progress: start + (end - start) * _within(progress)
    low, high, periods = values
    if low > high or periods <= 0:
        raise ValueError(f"The schedule {text!r} needs LOW <= HIGH and PERIODS above 0.")
    middle, amplitude = (high + low) / 2, (high - low) / 2
    return lambda progress: middle + amplitude * math.cos(2 * math.pi * periods * _within(progress))


def _within(progress: float) -> float:
    if not 0 <= progress <= 1 + 1e-9:
        raise ValueError(f"The progress of a run ({progress}) must lie in [0, 1].")
    return min(progress, 1.0)


__all__ = ["parse_schedule"]
