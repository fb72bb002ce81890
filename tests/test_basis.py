"""Laws of bases: isometries that diagonalise what they say they diagonalise."""

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

from cases import BASES, columns, normal, rotation
from sfumato.algebra import Basis, dct, dense, haar, hartley, pixel

each = pytest.mark.parametrize("name", BASES)
COSINES = [name for name in BASES if name.startswith("dct")]
FOURIER = [name for name in BASES if name.startswith("hartley")]
HALF = [torch.float32, torch.bfloat16, torch.float16]


def signal(basis: Basis, *batch: int, seed: int = 1) -> torch.Tensor:
    return normal(*batch, *basis.shape, seed=seed)


def frequencies(basis: Basis) -> list[np.ndarray]:
    """omega along each axis: the root of the laplacian where the other axes are constant."""
    squared, rank = basis.laplacian.numpy(), len(basis.shape)
    return [
        np.sqrt(squared[tuple(slice(None) if i == axis else 0 for i in range(rank))])
        for axis in range(rank)
    ]


def impulses(shape: tuple[int, ...]) -> np.ndarray:
    return np.eye(math.prod(shape)).reshape(-1, *shape)


def diagonal_of(basis: Basis, matrix: np.ndarray) -> np.ndarray:
    """V^T A V, which must be diagonal."""
    q = columns(basis.analyze, basis.shape)
    rotated = q @ matrix @ q.T
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-12)
    return np.diag(rotated).reshape(basis.shape)


# Isometry.


@each
def test_analysis_and_synthesis_undo_each_other(name):
    """V V^T x = x and V^T V u = u."""
    basis = BASES[name]
    x = signal(basis, 2, 3)
    torch.testing.assert_close(basis.synthesize(basis.analyze(x)), x)
    torch.testing.assert_close(basis.analyze(basis.synthesize(x)), x)


@each
def test_the_matrix_is_orthonormal(name):
    """V^T V = I, and synthesis is the transpose of analysis."""
    basis = BASES[name]
    q = columns(basis.analyze, basis.shape)
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-13)
    np.testing.assert_allclose(columns(basis.synthesize, basis.shape), q.T, atol=1e-13)


@each
def test_axes_before_the_basis_are_carried_along(name):
    """(V^T x)_ij = V^T (x_ij) for any leading axes."""
    basis = BASES[name]
    x = signal(basis, 2, 3)
    torch.testing.assert_close(basis.analyze(x)[1, 2], basis.analyze(x[1, 2]))
    torch.testing.assert_close(basis.synthesize(x)[1, 2], basis.synthesize(x[1, 2]))
    for none in (x[:0], x[:, :0]):
        assert basis.analyze(none).shape == basis.synthesize(none).shape == none.shape


@pytest.mark.parametrize("dtype", HALF)
@each
def test_dtype_is_that_of_the_signal(name, dtype):
    """V^T in float32 or better: only the input and the result are rounded."""
    basis = BASES[name]
    x = signal(basis, 2).to(dtype)
    u = basis.analyze(x)
    assert u.dtype == basis.synthesize(x).dtype == dtype
    error = (u.double() - basis.analyze(x.double())).abs().max()
    assert error < 8 * torch.finfo(dtype).eps * max(1.0, float(u.abs().max()))


@each
def test_autocast_does_not_reach_the_transform(name):
    """Under autocast a float32 transform stays a float32 transform."""
    basis = BASES[name]
    x = signal(basis, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, y = basis.analyze(x), basis.synthesize(x)
    torch.testing.assert_close(u, basis.analyze(x.double()).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, basis.synthesize(x.double()).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fresh", [lambda: dct(5), lambda: dct(4, 5), lambda: dense(rotation(5)), lambda: haar(5)]
)
def test_a_basis_first_used_for_inference_can_be_trained_through(fresh):
    """Matrices cached under inference mode are still good for gradients: d(V^T x)/dx = V."""
    basis, x = fresh(), signal(fresh(), 2).float().requires_grad_()
    with torch.inference_mode():
        basis.analyze(x)
    basis.analyze(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


# What each basis diagonalises.


@pytest.mark.parametrize("name", COSINES)
def test_dct_is_scipys(name):
    """D_kj = sqrt(2/N) cos(pi k (j + 1/2) / N), row 0 over sqrt(2)."""
    basis = BASES[name]
    x = signal(basis, 3)
    axes = range(1, x.ndim)
    np.testing.assert_allclose(
        basis.analyze(x), scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho"), atol=1e-13
    )
    np.testing.assert_allclose(
        basis.synthesize(x), scipy.fft.idctn(x.numpy(), axes=axes, norm="ortho"), atol=1e-13
    )


def test_dct_is_scipys_at_every_shape_and_dtype_in_turn():
    """What is planned for one signal serves no other: more shapes than are kept, there and back."""
    basis, axes = dct(3, 4), (-2, -1)
    before = [(n, m) for n in range(9) for m in range(9)]
    for lead in [*before, *before[::-1], (), (5,), (2, 1, 3)]:
        x = signal(basis, *lead)
        whole = scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho")
        for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
            found = basis.analyze(x.to(dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, whole, rtol=0, atol=bound)
        turned = signal(basis, *lead).mT.contiguous().mT  # the same numbers, otherwise in memory
        np.testing.assert_allclose(basis.analyze(turned), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", FOURIER)
def test_hartley_is_cos_plus_sin(name):
    """H_kj = cas(2 pi sum_axis k j / N) / sqrt(n), cas = cos + sin."""
    shape = BASES[name].shape
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    index = index.reshape(-1, len(shape))
    angle = 2 * np.pi * (index[:, None] * index / np.array(shape)).sum(-1)
    expected = (np.cos(angle) + np.sin(angle)) / math.sqrt(len(index))
    np.testing.assert_allclose(columns(BASES[name].analyze, shape), expected, atol=1e-13)


@pytest.mark.parametrize("name", COSINES + FOURIER)
def test_frequencies_are_those_of_the_difference_laplacian(name):
    """Eigenvalues of -second differences, edges reflected or periodic: sum_axis 2 - 2 cos omega."""
    basis = BASES[name]
    mode = "reflect" if name in COSINES else "wrap"
    matrix = sum(
        -scipy.ndimage.convolve1d(impulses(basis.shape), [1, -2, 1], axis=axis, mode=mode)
        for axis in range(1, len(basis.shape) + 1)
    ).reshape(len(impulses(basis.shape)), -1)
    axes = [2 - 2 * np.cos(omega) for omega in frequencies(basis)]
    expected = sum(np.meshgrid(*axes, indexing="ij"))
    np.testing.assert_allclose(diagonal_of(basis, matrix.T), expected, atol=1e-12)


@pytest.mark.parametrize("name", COSINES + FOURIER + ["haar-1d", "haar-2d"])
def test_squared_frequencies_add_over_axes(name):
    """laplacian_kl = omega_k^2 + omega_l^2."""
    axes = [omega**2 for omega in frequencies(BASES[name])]
    expected = sum(np.meshgrid(*axes, indexing="ij"))
    np.testing.assert_allclose(BASES[name].laplacian, expected, rtol=1e-14)


@pytest.mark.parametrize("name", FOURIER)
def test_hartley_diagonalises_even_periodic_kernels(name):
    """k(-r) = k(r): V^T A V = diag(fft k), for kernels that are not even axis by axis."""
    basis = BASES[name]
    axes = tuple(range(len(basis.shape)))
    kernel = signal(basis).numpy()
    kernel = kernel + np.roll(np.flip(kernel), 1, axes)
    one_axis = np.roll(np.flip(kernel, -1), 1, -1)
    assert len(axes) == 1 or abs(kernel - one_axis).max() > 0.1
    where = itertools.product(*map(range, basis.shape))
    matrix = np.stack([np.roll(kernel, shift, axes).ravel() for shift in where], 1)
    found = diagonal_of(basis, matrix)
    np.testing.assert_allclose(found, np.fft.fftn(kernel).real, atol=1e-12)


@pytest.mark.parametrize("name", COSINES)
def test_dct_diagonalises_symmetric_kernels_with_reflected_edges(name):
    """Half-sample symmetric edges: eigenvalue sum_j k_j prod_axis cos(omega j)."""
    basis = BASES[name]
    rank = len(basis.shape)
    half = normal(*(2,) * rank).numpy()
    reach = [np.array([1, 0, 1])] * rank
    kernel = half[np.ix_(*reach)]
    blurred = [scipy.ndimage.convolve(x, kernel, mode="reflect") for x in impulses(basis.shape)]
    expected = np.zeros(basis.shape)
    for offset in itertools.product((-1, 0, 1), repeat=rank):
        waves = [np.cos(w * j) for w, j in zip(frequencies(basis), offset, strict=True)]
        weight = half[tuple(np.abs(offset))]
        expected += weight * np.prod(np.meshgrid(*waves, indexing="ij"), axis=0)
    found = diagonal_of(basis, np.stack([x.ravel() for x in blurred], 1))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(8,), (4, 8)])
@pytest.mark.parametrize("block", [2, 4])
def test_haar_without_fine_details_is_block_means(shape, block):
    """Dropping details over intervals of `block` samples or fewer leaves means of blocks."""
    basis = haar(*shape)
    kept = [omega < 0.99 * math.pi / block for omega in frequencies(basis)]
    mask = np.prod(np.meshgrid(*kept, indexing="ij"), axis=0)
    x = signal(basis)
    coarse = basis.synthesize(torch.as_tensor(mask) * basis.analyze(x)).numpy()
    expected = x.numpy()
    for axis, n in enumerate(shape):
        halves = (*shape[:axis], n // block, block, *shape[axis + 1 :])
        means = expected.reshape(halves).mean(axis + 1)
        expected = np.repeat(means, block, axis)
    np.testing.assert_allclose(coarse, expected, atol=1e-13)


def test_haar_frequencies_are_pi_over_the_interval():
    """One mean, then 1, 2, 4 details over intervals of 8, 4, 2 samples: omega = pi / m."""
    expected = [0] + [math.pi / 8] + [math.pi / 4] * 2 + [math.pi / 2] * 4
    np.testing.assert_allclose(frequencies(haar(8))[0], expected)


@pytest.mark.parametrize("n", range(1, 12))
def test_haar_of_any_length_has_details_of_mean_zero(n):
    """Row 0 is the constant; each detail takes one value left, one right, and sums to zero."""
    q = columns(haar(n).analyze, (n,))
    np.testing.assert_allclose(q @ q.T, np.eye(n), atol=1e-13)
    np.testing.assert_allclose(q[0], n**-0.5)
    for row in q[1:]:
        values = np.unique(row[row != 0].round(12))
        assert len(values) == 2 and values[0] < 0 < values[1]


def test_dense_is_its_matrix():
    """u = Q x on flattened axes, with the frequencies it was given."""
    q, squared = rotation(20, seed=4), normal(20).abs()
    basis = dense(q, 4, 5, squared=squared)
    np.testing.assert_allclose(columns(basis.analyze, (4, 5)), q, atol=1e-14)
    torch.testing.assert_close(basis.laplacian, squared.reshape(4, 5))


# Equality.


def test_bases_are_equal_when_they_are_the_same_map():
    """Equal and of equal hash: same kind, same shape, same matrix, also after a copy."""
    same = [dct(4, 5), hartley(4), dense(rotation(6)), haar(4), pixel(3)]
    again = [dct(4, 5), hartley(4), dense(rotation(6)), haar(4), pixel(3)]
    for i, a in enumerate(same):
        assert [a == b for b in again] == [i == j for j in range(len(again))]
        assert hash(a) == hash(again[i]) and a == copy.deepcopy(a)
    assert dense(rotation(6)) != dense(rotation(6, seed=1))
    assert dct(4, 5) != dct(5, 4) and dct(4) != "dct(4)"


# Refusals.


@each
def test_a_signal_of_another_shape_is_refused(name):
    basis = BASES[name]
    wrong = torch.zeros(*basis.shape[:-1], basis.shape[-1] + 1)
    for transform in (basis.analyze, basis.synthesize):
        with pytest.raises(ValueError, match="cannot act on a signal of shape"):
            transform(wrong)
        with pytest.raises(ValueError, match="cannot act on a signal of shape"):
            transform(torch.zeros(()))


def test_the_sentence_names_basis_and_signal():
    with pytest.raises(ValueError) as error:
        dct(32, 32).analyze(torch.zeros(8, 3, 28, 28))
    assert str(error.value) == ("basis dct(32, 32) cannot act on a signal of shape (8, 3, 28, 28).")


@pytest.mark.parametrize("make", [pixel, dct, hartley, haar])
@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_lengths_must_be_positive(make, shape):
    with pytest.raises(ValueError, match=rf"{make.__name__} needs one positive length"):
        make(*shape)


def test_dense_bases_must_be_orthonormal():
    with pytest.raises(ValueError, match=r"Q Q\^T differs from I by .*torch.linalg.qr or eigh"):
        dense(rotation(6) * 1.001)
    with pytest.raises(ValueError, match=r"needs a 20 x 20 matrix; got \(6, 6\)"):
        dense(rotation(6), 4, 5)


def test_coefficients_without_frequencies_say_so():
    with pytest.raises(ValueError, match=r"pixel\(3\) has no frequencies. Use dct"):
        _ = pixel(3).laplacian
    with pytest.raises(ValueError, match=r"dense\(6\) was given no frequencies. Pass `squared`"):
        _ = dense(rotation(6)).laplacian
