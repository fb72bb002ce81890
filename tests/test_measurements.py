"""Measurements: each operator against scipy's and numpy's own, and its transpose."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sfumato.corruption.measurement import line
from sfumato.errors import Refused
from sfumato.measurements import OPERATORS, measurement

SHAPE = (2, 12, 16)
SPECS = [
    *("identity", "blur:sigma=2", "blur:0.5", "box:3,1,9,8", "random-mask:0.5"),
    *("random-mask:hidden=0.8,seed=3", "down:4", "down:factor=2", "motion:length=9,angle=45"),
    *("motion:7,90", "motion:30,10", "motion:1"),
]


def image(*batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, *SHAPE, generator=generator, dtype=torch.float64)


def planes(x: torch.Tensor, function) -> np.ndarray:
    """`function` of each plane (H, W)."""
    flat = [function(plane) for plane in x.reshape(-1, *x.shape[-2:]).numpy()]
    return np.stack(flat).reshape(*x.shape[:-2], *flat[0].shape)


def test_every_operator_is_among_these():
    assert {spec.partition(":")[0] for spec in SPECS} == {*OPERATORS}


@pytest.mark.parametrize("spec", SPECS)
def test_transposes(spec):
    """<A x, y> = <x, A^T y>, with the transpose's transpose the operator again."""
    a = measurement(spec, SHAPE)
    x = image(3)
    found = a(x)
    y = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    left, right = (found * y).flatten(1).sum(1), (x * a.T(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.T.T(x), found)


@pytest.mark.parametrize("spec", SPECS)
def test_images_are_measured_alone_in_their_dtype(spec):
    a = measurement(spec, SHAPE)
    x = image(2, 3)
    torch.testing.assert_close(a(x)[1, 2], a(x[1, 2:])[0])
    single = a(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), a(x), rtol=1e-5, atol=1e-5)
    assert a.T(single).shape == x.shape


def test_blur_is_scipy_s():
    """Of one width; scipy samples the Gaussian in space, which differs by e^-19 at sigma 2."""
    found = measurement("blur:sigma=2", SHAPE)(image())
    expected = planes(image(), lambda x: ndimage.gaussian_filter(x, 2, mode="reflect", truncate=9))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(("length", "angle"), [(9, 45), (7, 90), (30, 10), (4.5, -20)])
def test_motion_is_scipy_s_convolution(length, angle):
    kernel = line(length, angle)
    found = measurement(f"motion:{length},{angle}", SHAPE)(image())
    expected = planes(image(), lambda x: ndimage.convolve(x, kernel.numpy(), mode="reflect"))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_motion_s_kernel_is_a_line():
    """Of its length and angle: a mean of neighbours along an axis, and the moments of a line."""

    def moved(x):
        return ndimage.uniform_filter1d(x, 7, axis=1, mode="reflect")

    found = measurement("motion:length=7", SHAPE)(image())
    np.testing.assert_allclose(found.numpy(), planes(image(), moved), atol=1e-12)
    kernel = line(15, 30).numpy()
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
    squared = (15**2 - 1) / 12  # the variance of 15 points a pixel apart
    assert (kernel * x * -y).sum() == pytest.approx(squared * np.cos(np.pi / 6) / 2, abs=0.2)
    assert (kernel * x * x).sum() == pytest.approx(squared * 3 / 4, abs=0.3)


def test_down_is_a_mean_of_blocks():
    found = measurement("down:4", SHAPE)(image())
    expected = image().numpy().reshape(2, 3, 4, 4, 4).mean((2, 4))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)


def test_masks_hide_what_they_say():
    box = measurement("box:3,1,9,8", SHAPE)(torch.ones(SHAPE)).numpy()
    expected = np.ones(SHAPE)
    expected[:, 1:8, 3:9] = 0
    np.testing.assert_array_equal(box, expected)
    masks = [measurement(f"random-mask:0.75,seed={i}", SHAPE)(torch.ones(SHAPE)) for i in range(2)]
    for mask in masks:
        assert int(mask[0].sum()) == 12 * 16 / 4
        assert torch.equal(mask[0], mask[1])
    assert not torch.equal(*masks)
    assert torch.equal(masks[0], measurement("random-mask:0.75", SHAPE)(torch.ones(SHAPE)))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("blurr:2", "no operator 'blurr'; did you mean 'blur'?"),
        ("blur:-1", "blur needs a sigma of 0 or more; got -1."),
        ("blur:sigma=x", "operator blur needs a number for sigma; got 'x'."),
        ("blur:width=2", "operator blur takes sigma; got 'width=2'."),
        ("blur:1,2", "operator blur takes sigma; got '2'."),
        ("blur:1,sigma=2", "operator blur takes sigma; got 'sigma=2'."),
        ("box:1,2,3", "operator box takes x0, y0, x1, y1; y1 is missing."),
        ("box:1,2,3,4.5", "operator box needs a whole number for y1; got '4.5'."),
        ("box:0,0,17,4", "box 0,0,17,4 does not lie in an image of 16 x 12 pixels: it is x0,y0,x1"),
        ("random-mask:1", "random-mask hides a share from 0 to below 1; got 1."),
        ("random-mask:0.5,seed=-1", "random-mask needs a seed of 0 or more; got -1."),
        ("down:5", "down:5 does not fit an image of 16 x 12 pixels: both sides must be multiples"),
        ("down:0", "down:0 does not fit an image of 16 x 12 pixels"),
        (
            "motion:0.5",
            "motion needs a length of 1 or more and an angle in degrees; got 0.5 and 0.",
        ),
        ("identity:1", "operator identity takes no parameter; got '1'."),
        ("blur:nan", "blur needs a sigma of 0 or more; got nan."),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(spec, sentence):
    with pytest.raises(Refused) as refused:
        measurement(spec, SHAPE)
    assert str(refused.value).startswith(sentence)
    assert str(refused.value)[-1] in ".?"


def test_signals_that_are_no_images_are_refused():
    with pytest.raises(Refused, match=r"operators measure images \(C, H, W\)"):
        measurement("blur:2", (5,))
