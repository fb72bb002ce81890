r"""A measurement is a linear map of an image: y = A x_0 + noise, with A and A^T.

An operator's name is `NAME` or `NAME:value,key=value`, such as ``blur:sigma=2``. Images are
(*batch, C, H, W); a measurement is (*batch, C, H', W').
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d

from sfumato.algebra.basis import Basis, Pixel, dct
from sfumato.algebra.operators import Diagonal, MatrixFree, Operator
from sfumato.algebra.operators import identity as unchanged
from sfumato.errors import Refused
from sfumato.names import choose


def identity(shape: Sequence[int]) -> Diagonal:
    """I: the measurement differs from the image by noise alone.

    >>> sf.measurements.identity((1, 2, 2))(torch.ones(1, 1, 1, 2))
    tensor([[[[1., 1.]]]])
    """
    return unchanged()


def blur(shape: Sequence[int], sigma: float = 2.0) -> Diagonal:
    """Gaussian blur of `sigma` pixels with reflected edges: exp(-Lambda sigma^2 / 2).

    >>> blur = sf.measurements.blur((1, 8, 8), sigma=1.0)
    >>> dot = torch.zeros(1, 1, 8, 8)
    >>> dot[..., 4, 4] = 1
    >>> blur(dot)[0, 0, 4, 2:7]
    tensor([0.0214, 0.0966, 0.1588, 0.0966, 0.0214])
    """
    if not 0 <= sigma < math.inf:
        raise Refused(f"blur needs a sigma of 0 or more; got {sigma:g}.")
    basis = dct(*shape[-2:])
    return Diagonal(-basis.laplacian * (sigma**2 / 2), None, basis)


def box(shape: Sequence[int], x0: int, y0: int, x1: int, y1: int) -> Diagonal:
    """Hides columns x0 to x1 - 1 of rows y0 to y1 - 1.

    >>> hidden = sf.measurements.box((1, 4, 4), 1, 1, 3, 2)
    >>> hidden(torch.ones(1, 1, 4, 4))[0, 0]
    tensor([[1., 1., 1., 1.],
            [1., 0., 0., 1.],
            [1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    """
    height, width = shape[-2:]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise Refused(
            f"box {x0},{y0},{x1},{y1} does not lie in an image of {width} x {height} pixels: it is "
            f"x0,y0,x1,y1 with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}."
        )
    seen = torch.ones(height, width, dtype=torch.float64)
    seen[y0:y1, x0:x1] = 0
    return _mask(seen)


def random_mask(shape: Sequence[int], hidden: float = 0.5, seed: int = 0) -> Diagonal:
    """Hides a share of the pixels, drawn from `seed`; all channels of a pixel together.

    >>> half = sf.measurements.random_mask((1, 8, 8), hidden=0.5)
    >>> half(torch.ones(1, 1, 8, 8)).sum()
    tensor(32.)
    """
    if not 0 <= hidden < 1:
        raise Refused(f"random-mask hides a share from 0 to below 1; got {hidden:g}.")
    if seed < 0:
        raise Refused(f"random-mask needs a seed of 0 or more; got {seed}.")
    height, width = shape[-2:]
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    seen = torch.ones(height * width, dtype=torch.float64)
    seen[order[: round(hidden * height * width)]] = 0
    return _mask(seen.reshape(height, width))


def down(shape: Sequence[int], factor: int = 2) -> Operator:
    """Averages of `factor` x `factor` pixels; height and width are multiples of `factor`.

    >>> half = sf.measurements.down((1, 4, 4), factor=2)
    >>> half(torch.arange(16.0).reshape(1, 1, 4, 4))
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    height, width = shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise Refused(
            f"down:{factor} does not fit an image of {width} x {height} pixels: both sides must be "
            "multiples of a factor of 1 or more."
        )

    def average(x: Tensor) -> Tensor:
        planes = avg_pool2d(x.reshape(-1, 1, height, width), factor)
        return planes.reshape(*x.shape[:-2], *planes.shape[-2:])

    def spread(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -2).repeat_interleave(factor, -1) / factor**2

    return MatrixFree(average, spread)


def motion(shape: Sequence[int], length: float = 9.0, angle: float = 0.0) -> Operator:
    """Blur along a line of `length` pixels, `angle` degrees from the x axis towards the top.

    Points at most a pixel apart, each shared bilinearly among the four pixels around it; edges are
    reflected.

    >>> shaken = sf.measurements.motion((1, 8, 8), length=3.0)
    >>> dot = torch.zeros(1, 1, 8, 8)
    >>> dot[..., 4, 4] = 1
    >>> shaken(dot)[0, 0, 4, 2:7]
    tensor([0.0000, 0.3333, 0.3333, 0.3333, 0.0000])
    """
    if not 1 <= length < math.inf or not math.isfinite(angle):
        raise Refused(
            "motion needs a length of 1 or more and an angle in degrees; got "
            f"{length:g} and {angle:g}."
        )
    kernel = line(length, angle)
    height, width = shape[-2:]
    reach = len(kernel) // 2
    rows, columns = _reflected(height, reach), _reflected(width, reach)

    def apply(x: Tensor) -> Tensor:
        wide = x[..., rows.to(x.device), :][..., columns.to(x.device)]
        planes = wide.reshape(-1, 1, *wide.shape[-2:])
        return conv2d(planes, kernel.to(x)[None, None]).reshape(x.shape)

    def transpose(y: Tensor) -> Tensor:
        wide = conv_transpose2d(y.reshape(-1, 1, height, width), kernel.to(y)[None, None])
        tall = wide.new_zeros(len(wide), 1, height, wide.shape[-1])
        tall.index_add_(-2, rows.to(y.device), wide)
        whole = tall.new_zeros(len(wide), 1, height, width)
        return whole.index_add_(-1, columns.to(y.device), tall).reshape(y.shape)

    return MatrixFree(apply, transpose)


def line(length: float, angle: float) -> Tensor:
    """The kernel of `motion`: (n, n) of odd n, float64, of sum 1, equal to itself turned by 180."""
    half = (length - 1) / 2
    count = math.ceil(length)
    reach = math.ceil(half)
    kernel = torch.zeros(2 * reach + 3, 2 * reach + 3, dtype=torch.float64)
    turn = math.radians(angle)
    for along in torch.linspace(-half, half, count).tolist():
        x, y = reach + 1 + along * math.cos(turn), reach + 1 - along * math.sin(turn)
        column, row = math.floor(x), math.floor(y)
        across, below = x - column, y - row
        kernel[row, column] += (1 - below) * (1 - across)
        kernel[row, column + 1] += (1 - below) * across
        kernel[row + 1, column] += below * (1 - across)
        kernel[row + 1, column + 1] += below * across
    return kernel / count


OPERATORS: dict[str, Callable[..., Operator]] = {
    "blur": blur,
    "box": box,
    "random-mask": random_mask,
    "down": down,
    "motion": motion,
    "identity": identity,
}
"""Operators by name: functions of the image's shape and of numbers.

>>> [*sf.measurements.OPERATORS]
['blur', 'box', 'random-mask', 'down', 'motion', 'identity']
"""


def measurement(spec: str, shape: Sequence[int]) -> Operator:
    """The operator named `spec` on images of `shape`, (C, H, W).

    Args:
        spec: `NAME`, or `NAME:2` or `NAME:key=value,key=value`, of `OPERATORS`: values without a
            key are taken in the order of the function's parameters.

    Raises:
        ValueError: no such operator or parameter, a value that is no number, or one that does not
            fit the shape.

    >>> operator = sf.measurement("down:2", (1, 8, 8))
    >>> operator(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 1, 4, 4])
    >>> sf.measurement("down:3", (1, 8, 8))
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: down:3 does not fit an image of 8 x 8 pixels: ...
    """
    if len(shape) != 3:
        raise Refused(f"operators measure images (C, H, W); these signals have shape {shape}.")
    name, _, rest = spec.partition(":")
    build = choose("operator", name, OPERATORS)
    known = dict([*inspect.signature(build).parameters.items()][1:])
    takes = f"takes {', '.join(known)}" if known else "takes no parameter"
    values: dict[str, float] = {}
    for i, part in enumerate(filter(None, map(str.strip, rest.split(",")))):
        key, equals, text = part.partition("=")
        if not equals and i < len(known):
            key, text = [*known][i], part
        if key not in known or key in values:
            raise Refused(f"operator {name} {takes}; got '{part}'.")
        values[key] = _number(name, key, text, known[key].annotation)
    if missing := [key for key in known if key not in values and _needed(known[key])]:
        raise Refused(f"operator {name} {takes}; {missing[0]} is missing.")
    return build(shape, **values)


def measured(operator: Operator, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a measurement of a signal of `shape`.

    Raises:
        ValueError: the operator does not take such signals.
    """
    try:
        found = operator(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, IndexError) as error:
        raise Refused(
            f"this operator does not measure signals of shape {tuple(shape)}: {error}"
        ) from error
    return tuple(found.shape[1:])


def check_transpose(operator: Operator, shape: Sequence[int]) -> None:
    """Raise ValueError unless <A x, y> = <x, A^T y> to single precision; x of `shape`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    y = torch.randn(2, *measured(operator, shape), generator=generator, dtype=torch.float64)
    try:
        forth, back = operator(x), operator.T(y)
        pair = (forth * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    except RuntimeError as error:
        raise Refused(
            f"this operator's transpose fails for measurements of shape {tuple(y.shape[1:])}: "
            f"{error}. Give MatrixFree a `transpose`."
        ) from error
    if not float((pair[0] - pair[1]).abs().max()) <= 1e-4 * float(forth.norm() * y.norm()):
        raise Refused(
            f"<A x, y> = <x, A^T y> fails: {pair[0][0]:.6g} and {pair[1][0]:.6g}. Give MatrixFree "
            "the right `transpose`."
        )


def check_measured(operator: Operator, shape: Sequence[int], y: Tensor) -> None:
    """Raise ValueError unless `y` (n, *measured) are measurements of signals of `shape`."""
    expected = measured(operator, shape)
    if y.ndim != 1 + len(expected) or y.shape[1:] != expected or not len(y):
        raise Refused(
            f"this operator measures signals of shape {tuple(shape)} as {expected}; got y of shape "
            f"{tuple(y.shape)}, whose first axis counts measurements."
        )
    if not bool(y.isfinite().all()):
        raise Refused("y has values that are not finite numbers.")


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _number(name: str, key: str, text: str, kind: Any) -> float:  # noqa: ANN401 - an annotation
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        what = "a whole number" if kind == "int" else "a number"
        raise Refused(f"operator {name} needs {what} for {key}; got '{text}'.") from None


def _mask(seen: Tensor) -> Diagonal:
    """A mask from 0 and 1 for each pixel, (H, W)."""
    basis: Basis = Pixel(seen.shape)
    return Diagonal(seen.log(), None, basis)


def _reflected(size: int, reach: int) -> Tensor:
    """Indices of `size` pixels and of `reach` more on each side: b a | a b c | c b."""
    index = torch.arange(-reach, size + reach) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)
