r"""Raw values are the numbers in files, with the two of them that become -1 and 1.

These two are given, or guessed from the values where they are unambiguous:

    images of whole numbers     0 and 255, or 0 and 65535 where any is above 255
    images of other numbers     0 and 1, or -1 and 1 where they go below -1/2
    signals                     -m and m, m the largest absolute value

Images that leave their range by less than is visible are clipped, with a note. Those that use less
than a quarter of a guessed range are refused: the guess is probably wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import numpy as np

from sfumato import pictures
from sfumato.errors import Refused
from sfumato.names import choose
from sfumato.record import KINDS
from sfumato.training.lazy import Lazy, Values, changed

Range = tuple[float, float]

SLIVER = 0.25
"""Share of a guessed range that images use at least."""
OVERSHOOT = 1 / 510
"""Share of a range that images may leave it by: half a step of bytes."""
CROPS = ("center", "none")
"""Or a number of pixels."""
GIVE = "--range LOW,HIGH (or range=(low, high) in Python)"


@final
class Raw(NamedTuple):
    """Images (n, C, H, W), or other signals (n, *shape), as in their files.

    Attributes:
        images: the raw values, uint8 or float32; lazy where they would not fit in memory.
        low: the raw value that will be -1.
        high: the raw value that will be 1.
        labels: classes from 0, (n,) of int64, or None.
        classes: their names.
        kind: "images" or "signals".
        notes: sentences that a user should read.
    """

    images: Values
    low: float
    high: float
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    kind: str = "images"
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Reading:
    """How a source is read; None is the source's own value.

    Attributes:
        range: the raw values that become -1 and 1.
        key: name of the array in a .npz.
        kind: "images" or "signals".
        resize: shorter side of images.
        crop: "center" (the default), the middle square of images resized; "none"; or a number of
            pixels, "140", the middle square of that side, before they are resized.

    Raises:
        ValueError: a value out of its range, or a `crop` of words without `resize`.
    """

    range: Range | None = None
    key: str | None = None
    kind: str | None = None
    resize: int | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.range is not None and not -np.inf < self.range[0] < self.range[1] < np.inf:
            raise Refused(f"a range goes from a low to a high value; got {_span(*self.range)}.")
        if self.kind is not None:
            choose("kind", self.kind, KINDS)
        if self.crop is not None and not self.middle:
            choose("crop", self.crop, CROPS, "choose center, none, or a number of pixels.")
        if self.resize is not None and self.resize < 1:
            raise Refused(f"resize must be 1 or more; got {self.resize}.")
        if self.crop is not None and not self.middle and self.resize is None:
            raise Refused("crop is for images that are resized; give --resize too.")

    @property
    def middle(self) -> int:
        """Side of the middle square that images are cropped to first; 0 for all of them."""
        side = self.crop or ""
        return int(side) if side.isdecimal() else 0

    @property
    def changes(self) -> bool:
        """Whether images are resized or cropped."""
        return self.resize is not None or self.middle > 0

    def fitted(self, image: np.ndarray, bounds: Range) -> np.ndarray:
        """An image (C, H, W) of raw values within `bounds`, cropped and resized as set here.

        Whole numbers stay whole.

        Raises:
            ValueError: it is smaller than the crop.
        """
        if side := self.middle:
            if min(image.shape[1:]) < side:
                height, width = image.shape[1:]
                raise Refused(f"--crop {side} needs larger images than {width} x {height} pixels.")
            top, left = ((length - side) // 2 for length in image.shape[1:])
            image = image[:, top : top + side, left : left + side]
        if self.resize is None:
            return image
        resized = pictures.fit(image, self.resize, self.crop != "none").clip(*bounds)
        floating = np.issubdtype(image.dtype, np.floating)
        return (resized if floating else np.rint(resized)).astype(image.dtype)

    def applied(self, raw: Raw, values: Values) -> Raw:
        """`raw` with all images `fitted`, computed from its raw `values`."""
        if not self.changes:
            return raw
        bounds, dtype = (raw.low, raw.high), raw.images.dtype
        one = self.fitted(values[np.zeros(1, np.int64)][0], bounds)
        return raw._replace(images=changed(values, partial(self._fitted, bounds), one.shape, dtype))

    def _fitted(self, bounds: Range, values: np.ndarray) -> np.ndarray:
        return np.stack([self.fitted(image, bounds) for image in values])


def numbers(values: Values, where: object) -> Range:
    """The least and the largest of `values`; ValueError where they are not finite numbers.

    Of files that take long to read, those of some.
    """
    numeric = np.issubdtype(values.dtype, np.number) or values.dtype == np.bool_
    if not numeric or np.issubdtype(values.dtype, np.complexfloating):
        raise Refused(f"{where} must hold numbers; got {values.dtype}.")
    parts = values.blocks() if isinstance(values, Lazy) else (values,)
    found = np.array([(part.min(), part.max()) for part in parts], np.float64)
    low, high = float(found[:, 0].min()), float(found[:, 1].max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise Refused(f"{where} has NaN or infinite values; remove those images.")
    return low, high


def placed(values: Values, where: object, given: Range | None) -> Raw:
    """Images of raw values (n, C, H, W), and their range: `given`, or guessed.

    Raises:
        ValueError: they leave a range that was given, or use little of one that was guessed.
    """
    extent = low, high = numbers(values, where)
    whole = not np.issubdtype(values.dtype, np.floating)
    first, last = bounds = given or guess(values.dtype, extent, where)
    check_within(extent, bounds, where)
    small = whole and low >= 0 and high <= 255
    dtype = np.dtype(np.uint8 if small else np.float32)
    if not (isinstance(values, Lazy) and values.dtype == dtype and not given):
        values = changed(values, partial(_within, bounds, where), values.shape[1:], dtype)
    notes = []
    if low < first or high > last:
        notes.append(f"{where}: values from {_span(low, high)} were clipped to {_span(*bounds)}.")
    if low < high and high - low < SLIVER * (last - first):
        found = f"{where} has values from {_span(low, high)}, a small part of {_span(*bounds)}"
        if given is None:
            raise Refused(f"{found}. Say which become -1 and 1: {GIVE}.")
        notes.append(f"{found}.")
    return Raw(values, plain(first), plain(last), notes=tuple(notes))


def measured(values: Values, where: object, given: Range | None) -> Raw:
    """Signals (n, *shape) of float32 and their scale: `given`, or symmetric about 0.

    Signals are not clipped: what is beyond the scale lies beyond [-1, 1].
    """
    extent = numbers(values, where)
    with np.errstate(over="ignore"):
        size = float(np.float32(max(map(abs, extent))))
    if not np.isfinite(size):
        raise Refused(f"{where} has values beyond those of float32, {_span(*extent)}.")
    values = changed(values, _floating, values.shape[1:], np.dtype(np.float32))
    if not given and not size:
        raise Refused(f"{where} holds nothing but zeros (values from {_span(*extent)}).")
    low, high = given or (-size, size)
    return Raw(values, plain(low), plain(high), kind="signals")


def _within(bounds: Range, where: object, values: np.ndarray) -> np.ndarray:
    """Values in `bounds`; ValueError where they leave them by more than is clipped."""
    low, high = extent = numbers(values, where)
    check_within(extent, bounds, where)
    inside = bounds[0] <= low and high <= bounds[1]
    return values if inside else values.clip(*bounds)


def _floating(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def guess(dtype: np.dtype, extent: Range, where: object) -> Range:
    """The range of images with values in `extent`; ValueError where it is in doubt."""
    low, high = extent
    if dtype == np.bool_:
        return 0, 1
    if not np.issubdtype(dtype, np.floating):
        if low < 0 or high > 65535:
            raise Refused(
                f"{where} has whole numbers from {_span(*extent)}; without {GIVE} they must be 0 "
                "to 255, or to 65535."
            )
        return 0, 255 if high <= 255 else 65535
    if low < -1 - 2 * OVERSHOOT or high > 1 + OVERSHOOT:
        raise Refused(
            f"{where} has values from {_span(*extent)}; floating-point images must lie in [0, 1] "
            f"or [-1, 1]. Otherwise say which become -1 and 1: {GIVE}."
        )
    if low >= -OVERSHOOT:
        return 0, 1
    if low > -0.5:
        raise Refused(
            f"{where} has values from {_span(*extent)}, which may be [0, 1] overshot or part of "
            f"[-1, 1]. Say which: {GIVE}."
        )
    return -1, 1


def check_within(extent: Range, bounds: Range, where: object) -> None:
    """Raise ValueError where values in `extent` leave `bounds` by a visible amount."""
    (low, high), (first, last) = extent, bounds
    if max(first - low, high - last) > OVERSHOOT * (last - first):
        raise Refused(
            f"{where} has values from {_span(low, high)}, outside of the range {_span(*bounds)}."
        )


def classified(labels: np.ndarray, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as classes from 0, and their names: the numbers that occur."""
    check_labels(labels, count)
    names, found = np.unique(labels, return_inverse=True)
    return found.astype(np.int64), tuple(map(str, names))


def check_labels(labels: np.ndarray, count: int, classes: int | None = None) -> None:
    """Raise ValueError unless `labels` are `count` whole numbers from 0 to below `classes`."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise Refused(
            f"labels must be {count} whole numbers, one per image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        most = "or more" if classes is None else f"to at most {classes - 1}"
        raise Refused(
            f"labels must be class numbers 0 {most}; got {labels.min()} to {labels.max()}."
        )


def plain(value: float) -> float:
    """A whole number as int, so that records of equal data are equal."""
    return int(value) if float(value).is_integer() else float(value)


def _span(low: float, high: float) -> str:
    return f"{low:.8g} to {high:.8g}"
