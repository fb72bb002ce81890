"""Laws of operators: what the algebra promises, against matrices made from unit vectors."""

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import GAINS, OPERATORS, columns, normal, rotation, spd, transform
from sfumato.algebra import (
    Composed,
    Dense,
    Diagonal,
    MatrixFree,
    Operator,
    Sum,
    apply,
    dct,
    dense,
    haar,
    hartley,
    identity,
    pixel,
    scaled,
    zero,
)
from sfumato.algebra.combine import energy

SIX = [name for name, (_, shape) in OPERATORS.items() if shape == (6,)]
each = pytest.mark.parametrize("name", OPERATORS)

mpmath.mp.dps = 50


def known() -> dict[str, np.ndarray]:
    """Matrices of the registry, typed once more."""
    g = np.exp(normal(6).numpy())
    d = transform(dct(6))
    plane = np.kron(transform(dct(4)), transform(dct(5)))
    h, w = transform(hartley(6)), transform(haar(6))
    signed = g * np.sign(normal(6, seed=1).numpy())
    diagonal = plane.T @ np.diag(np.exp(normal(4, 5).numpy().ravel())) @ plane
    return {
        "identity": np.eye(6),
        "zero": np.zeros((6, 6)),
        "minus-two": -2 * np.eye(6),
        "diagonal-pixel": np.diag(g),
        "diagonal-dct": np.kron(np.eye(2), diagonal),
        "diagonal-signed": h @ np.diag(signed) @ h,
        "diagonal-hard": w.T @ np.diag([1, np.exp(-1), 0, 0, np.exp(0.5), np.exp(-30)]) @ w,
        "dense": spd(6).numpy(),
        "dense-general": normal(6, 6).numpy(),
        "matrix-free": np.tril(np.ones((6, 6))),
        "composed": d.T @ np.diag(g) @ d @ np.diag(g),
        "sum": d.T @ np.diag(g) @ d + np.diag(g),
        "composed-free": np.eye(6)[::-1] @ d.T @ np.diag(g) @ d,
    }


KNOWN = known()


def get(name: str) -> tuple[Operator, tuple[int, ...], np.ndarray]:
    """Operator, shape of its signals, and the matrix that its values on unit vectors make."""
    operator, shape = OPERATORS[name]
    return operator, shape, columns(operator, shape)


def close(found, expected, tolerance: float = 1e-12, words: str = "") -> None:
    atol = tolerance * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=words)


def invertible(name: str) -> bool:
    """Whether the package has an inverse and a determinant: no matrix-free part, no sum."""
    return "free" not in name and name != "sum"


# What an operator is.


@pytest.mark.parametrize("name", KNOWN)
def test_operators_are_their_matrices(name):
    """A e_j is column j of V diag(g) V^T, or of the matrix it was given."""
    close(get(name)[2], KNOWN[name])


@each
def test_operators_are_linear(name):
    """A(2x - 3y) = 2 Ax - 3 Ay, over any batch."""
    operator, shape, _ = get(name)
    x, y = normal(4, *shape), normal(4, *shape, seed=1)
    torch.testing.assert_close(operator(2 * x - 3 * y), 2 * operator(x) - 3 * operator(y))


@each
def test_transposes_are_adjoint(name):
    """<Ax, y> = <x, A'y>, and A'' = A."""
    operator, shape, matrix = get(name)
    close(columns(operator.T, shape), matrix.T)
    close(columns(operator.T.T, shape), matrix)


@each
def test_the_matrix_method_is_the_matrix(name):
    operator, shape, matrix = get(name)
    assert operator.matrix(shape).dtype == torch.float64
    close(operator.matrix(shape).numpy(), matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each
def test_results_have_the_signals_dtype(name, dtype):
    operator, shape, matrix = get(name)
    x = normal(3, *shape).to(dtype)
    y = operator(x)
    assert y.dtype == dtype
    exact = torch.from_numpy(x.double().flatten(1).numpy() @ matrix.T).reshape(y.shape)
    size = float(np.abs(matrix).sum(1).max()) * float(x.abs().max())
    assert (y.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * size


@each
def test_operators_do_not_touch_their_argument(name):
    operator, shape, _ = get(name)
    x = normal(2, *shape)
    operator(x)
    assert torch.equal(x, normal(2, *shape))


# Products, sums, differences, over all pairs.


@pytest.mark.parametrize("left", SIX)
def test_products_of_pairs(left):
    """(A @ B) x = A (B x), and (A @ B)' = B' A'."""
    for right in SIX:
        (a, shape, x), (b, _, y) = get(left), get(right)
        close(columns(a @ b, shape), x @ y, words=right)
        close(columns((a @ b).T, shape), (x @ y).T, words=right)


@pytest.mark.parametrize("left", SIX)
def test_sums_and_differences_of_pairs(left):
    """(A + B) x = A x + B x, (A - B) x = A x - B x, (A + B)' = A' + B'."""
    for right in SIX:
        (a, shape, x), (b, _, y) = get(left), get(right)
        close(columns(a + b, shape), x + y, words=right)
        close(columns((a + b).T, shape), (x + y).T, words=right)
        close(columns(a - b, shape), x - y, words=right)
    close(columns(-a, shape), -x)


def test_structure_is_kept():
    """Operators that share a basis stay diagonal; I and 0 vanish from products and sums."""
    a, b = (Diagonal(normal(6, seed=i), None, dct(6)) for i in (0, 1))
    assert all(isinstance(op, Diagonal) for op in (a @ b, a + b, a - b, a @ b.inv(), -a))
    other = Diagonal(normal(6), None, pixel(6))
    assert isinstance(a @ other, Composed) and isinstance(a + other, Sum)
    free = OPERATORS["matrix-free"][0]
    for op in (free, a @ other, a + other):
        assert identity() @ op is op and op @ identity() is op
        assert zero() + op is op and op + zero() is op
        assert (zero() @ op).is_zero and (op @ zero()).is_zero
    assert zero().is_zero and scaled(0.0).is_zero and not identity().is_zero


def test_apply_adds_terms():
    """sum of A_i x_i, whatever bases they share."""
    names = ["diagonal-pixel", "diagonal-hard", "minus-two", "dense", "diagonal-hard", "sum"]
    terms = [(OPERATORS[name][0], normal(2, 6, seed=i)) for i, name in enumerate(names)]
    expected = sum(x.numpy() @ KNOWN[name].T for name, (_, x) in zip(names, terms, strict=True))
    close(apply(*terms).numpy(), expected)


# Inverse, root, determinant.


@each
def test_inverses(name):
    """A^-1 of numpy, or a sentence that names an alternative; A A^+ A = A at hard zeros."""
    operator, shape, matrix = get(name)
    if not invertible(name):
        with pytest.raises(NotImplementedError, match=r"has no inverse.* Use naive, ddim"):
            operator.inv()
    elif name == "diagonal-hard":
        close(columns(operator @ operator.inv() @ operator, shape), matrix)
    else:
        close(columns(operator.inv(), shape), np.linalg.pinv(matrix), 1e-9)


@each
def test_roots(name):
    """R R = A with R symmetric and R >= 0; indefinite and structureless operators are refused."""
    operator, shape, matrix = get(name)
    if "free" in name or name in ("composed", "sum"):
        with pytest.raises(NotImplementedError, match=r"has no symmetric root.*Dense for small n"):
            operator.sqrt()
    elif not np.allclose(matrix, matrix.T):
        with pytest.raises(ValueError, match=r"not symmetric .* has no symmetric root"):
            operator.sqrt()
    elif np.linalg.eigvalsh((matrix + matrix.T) / 2).min() < -1e-9:
        with pytest.raises(
            ValueError, match=r"no root of a negative .* not positive semi-definite"
        ):
            operator.sqrt()
    else:
        root = columns(operator.sqrt(), shape)
        close(root, root.T)
        assert np.linalg.eigvalsh(root).min() > -1e-7
        close(root @ root, matrix)


@each
def test_determinants(name):
    """log |det A| of numpy; -inf where a gain is a hard zero."""
    operator, shape, matrix = get(name)
    if not invertible(name):
        with pytest.raises(
            NotImplementedError, match=r"has no determinant. Use Diagonal, or Dense"
        ):
            operator.logdet(shape)
    elif name == "diagonal-hard":
        assert operator.logdet(shape) == -math.inf
    else:
        with np.errstate(divide="ignore"):
            expected = np.linalg.slogdet(matrix).logabsdet
        np.testing.assert_allclose(operator.logdet(shape), expected, atol=1e-12)


def test_the_pseudo_inverse_leaves_hard_zeros():
    """Gain e^a -> e^-a, 0 -> 0 and never inf, as numpy's pinv."""
    gains = torch.tensor([2.0, 0.0, -0.5, 0.0, 1.0, 3.0]).double()
    operator = Diagonal(gains.abs().log(), gains.sign(), haar(6))
    w = transform(haar(6))
    close(columns(operator.inv(), (6,)), np.linalg.pinv(w.T @ np.diag(gains) @ w))


def test_dense_refuses_an_inverse_that_would_be_rounding():
    q = rotation(6)
    for small in (0.0, 1e-18):
        gains = torch.tensor([1.0, 1, 1, 1, 1, small]).double()
        with pytest.raises(ValueError, match=r"is singular to rounding .* use Diagonal"):
            Dense(q @ torch.diag(gains) @ q.T, (6,)).inv()


def test_dense_roots_forgive_rounding_of_what_was_subtracted():
    """A - (A + rounding) has the root 0, not a negative eigenvalue; A - 1.01 A has none."""
    a = Dense(spd(6), (6,))
    again = a.sqrt() @ a.sqrt()
    assert (a - again)._matrix.abs().max() > 0
    assert columns((a - again).sqrt(), (6,)).max() < 1e-7
    with pytest.raises(ValueError, match="negative eigenvalue: one is -"):
        (a - scaled(1.01) @ a).sqrt()


# Numbers live as logs.


def test_products_and_ratios_of_tiny_gains_are_exact():
    """e^-5000 e^-5000, e^-5000 / e^-4999 and their roots: sums, differences, halves of logs."""
    a, b = (Diagonal(torch.full((6,), x).double(), None, dct(6)) for x in (-5000.0, -4999.0))
    assert (a @ a).log_gain.tolist() == [-10000.0] * 6
    assert (a @ b.inv()).log_gain.tolist() == [-1.0] * 6
    assert a.sqrt().log_gain.tolist() == [-2500.0] * 6
    torch.testing.assert_close(
        (b - a).log_gain, torch.full((6,), -4999 + math.log1p(-1 / math.e)).double()
    )
    close(columns(b.inv() @ a, (6,)), math.exp(-1) * np.eye(6))


@pytest.mark.parametrize("gap", [1e-9, 1e-6, 1e-3, 1.0, 40.0])
@pytest.mark.parametrize("level", [-300.0, -3.0, 5.0])
def test_variances_subtract_to_full_relative_accuracy(level, gap):
    """e^x - e^y = e^x (1 - e^(y - x)), relative error below 1e-12 for log gaps of 1e-9."""
    x = torch.tensor([level]).double()
    y = x - gap
    found = (Diagonal(x, None, pixel(1)) - Diagonal(y, None, pixel(1))).gain
    exact = mpmath.exp(float(x)) - mpmath.exp(float(y))
    assert abs(float(found) / exact - 1) < 1e-12


def test_equal_variances_cancel_to_zero():
    """V - K V K^T of a deterministic step is 0 exactly, up to the rounding of a few logs."""
    v = Diagonal(normal(6), None, dct(6))
    third = Diagonal(v.log_gain / 3, None, dct(6))
    for same in (v, third @ third @ third, v.sqrt() @ v.sqrt()):
        assert torch.isneginf((v - same).log_gain).all()
        assert not columns((same - v).sqrt(), (6,)).any()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.floats(-700, 700), st.floats(-700, 700), st.sampled_from([1, -1]), st.sampled_from([1, -1])
)
def test_signed_sums(x, y, sign_x, sign_y):
    """s e^x + r e^y to 1e-11 of mpmath, in either order, unless it cancels to rounding."""

    def one(log: float, sign: int) -> Diagonal:
        values = torch.tensor([[log], [sign]], dtype=torch.float64)
        return Diagonal(values[0], values[1], pixel(1))

    exact = sign_x * mpmath.exp(x) + sign_y * mpmath.exp(y)
    for total in (one(x, sign_x) + one(y, sign_y), one(y, sign_y) + one(x, sign_x)):
        found = float(total.sign or 1) * mpmath.exp(float(total.log_gain))
        larger = mpmath.exp(max(x, y))
        assert abs(found - exact) < 1e-11 * abs(exact) + 1e-12 * max(1, abs(x), abs(y)) * larger


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(-4, 4), min_size=12, max_size=12))
def test_signed_algebra_is_the_algebra_of_matrices(values):
    """(A + B)(A - B) = A^2 - B^2 for gains of any sign, zero among them."""
    gains = np.array(values).reshape(2, 6)

    def made(row: np.ndarray) -> Diagonal:
        value = torch.from_numpy(row)
        return Diagonal(value.abs().log(), torch.where(value < 0, -1.0, 1.0).double(), dct(6))

    a, b = map(made, gains)
    d = transform(dct(6))
    close(columns((a + b) @ (a - b), (6,)), d.T @ np.diag(gains[0] ** 2 - gains[1] ** 2) @ d)


# Gradients.

LIVE = normal(6, seed=3)
EXPRESSIONS = {
    "apply": lambda a, b: a,
    "product": lambda a, b: a @ b,
    "inverse": lambda a, b: a.inv(),
    "root": lambda a, b: a.sqrt(),
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - scaled(0.1) @ b,
    "negative": lambda a, b: -a,
    "ratio": lambda a, b: a @ b.inv(),
    "two-bases": lambda a, b: a @ Diagonal(LIVE, None, pixel(6)) + b,
    "posterior": lambda a, b: (a + b - a @ a @ (a + b).inv()).sqrt(),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_gradients_reach_the_log_gains(name):
    """d<w, A x>/d(log gain) equals central differences."""

    def value(g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        a, b = Diagonal(g, None, dct(6)), Diagonal(h, None, dct(6))
        return EXPRESSIONS[name](a, b)(normal(6, seed=8))

    leaves = [(0.1 * normal(6, seed=i)).requires_grad_() for i in (0, 1)]
    assert torch.autograd.gradcheck(value, leaves)


def test_gradients_reach_the_log_gains_through_logdet():
    """d log|det| / d(log gain) = 1."""
    g = normal(6).requires_grad_()
    (Diagonal(g, None, dct(6)) @ Diagonal(normal(6), None, pixel(6))).logdet((6,)).backward()
    torch.testing.assert_close(g.grad, torch.ones(6).double())


@pytest.mark.parametrize("name", [name for name in EXPRESSIONS if name != "inverse"])
@pytest.mark.parametrize("partner", ["same", "other", "dead"])
def test_hard_zeros_and_tiny_gains_make_no_nan(name, partner):
    """Gains 0 and e^-2000: values and gradients are finite whatever they meet."""
    g = GAINS.clone().requires_grad_()
    others = {"same": g, "other": GAINS.roll(1), "dead": torch.full((6,), -math.inf).double()}
    h = others[partner]
    if name in ("ratio", "posterior"):
        h = torch.where(torch.isneginf(h), h, h.clamp(min=-30.0))
    if name == "difference":
        g = torch.where(torch.isneginf(g), g, g + 3.0)
    g.retain_grad()
    value = EXPRESSIONS[name](Diagonal(g, None, dct(6)), Diagonal(h, None, dct(6)))(normal(6))
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert torch.isfinite(g.grad).all()


def test_scaled_by_zero_makes_no_nan():
    """d(v x)/dv is finite at v = 0, where log v is not."""
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scaled(v)(normal(6)).sum().backward()
    assert torch.isfinite(v.grad)


def test_gains_follow_what_they_are_made_of():
    """Gains are cached, and yet: gradients after no_grad, and new values after a step."""
    g = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    operator, x = Diagonal(g, None, pixel(6)), torch.ones(6, dtype=torch.float64)
    with torch.no_grad():
        operator(x)
    operator(x).sum().backward()
    torch.testing.assert_close(g.grad, x)
    with torch.no_grad():
        g += 1
        torch.testing.assert_close(operator(x), math.e * x)


def test_operators_first_used_for_inference_can_be_trained_through():
    """Gains cached under inference mode are still good for gradients: d(Ax)/dx = A'."""
    operator, x = Diagonal(normal(6), None, pixel(6)), normal(6).requires_grad_()
    with torch.inference_mode():
        operator(x)
    operator(x).sum().backward()
    torch.testing.assert_close(x.grad, normal(6).exp())


# Batches.


@pytest.mark.parametrize("signed", [False, True])
def test_batched_gains_act_on_their_own_sample(signed):
    """log_gain (B, 1, H, W): sample b meets gains b, in apply, matrix, logdet and unbind."""
    gains, sign = normal(3, 1, 4, 5), normal(3, 1, 4, 5, seed=1).sign() if signed else None
    operator = Diagonal(gains, sign, dct(4, 5))
    singles = [Diagonal(gains[b], None if sign is None else sign[b], dct(4, 5)) for b in range(3)]
    x = normal(3, 2, 4, 5)
    matrices, logdets = operator.matrix((2, 4, 5)), operator.logdet((2, 4, 5))
    for b, (single, part) in enumerate(zip(singles, operator.unbind(x.float()), strict=True)):
        torch.testing.assert_close(operator(x)[b], single(x[b]))
        torch.testing.assert_close(part(x.float())[b], single(x.float())[b])
        torch.testing.assert_close(part.gain, single.gain)
        close(matrices[b].numpy(), columns(single, (2, 4, 5)))
        torch.testing.assert_close(logdets[b], single.logdet((2, 4, 5)))


def test_batched_multiples_of_the_identity():
    """log_gain (B, 1, 1, 1) without a basis joins gains of any basis."""
    times = normal(3, 1, 1, 1)
    colour = Diagonal(normal(4, 5), None, dct(4, 5))
    x = normal(3, 2, 4, 5)
    for joint in (Diagonal(times) @ colour, colour @ Diagonal(times)):
        assert isinstance(joint, Diagonal)
        torch.testing.assert_close(joint(x), times.exp() * colour(x))
    torch.testing.assert_close((Diagonal(times) + colour)(x), times.exp() * x + colour(x))


def test_batched_matrices():
    """Dense (B, n, n), also on the last axes of larger signals, alone and with batched gains."""
    stack = normal(3, 6, 6)
    x = normal(3, 6)
    expected = torch.einsum("bij,bj->bi", stack, x)
    torch.testing.assert_close(Dense(stack, (6,))(x), expected)
    torch.testing.assert_close(Dense(stack, (6,)).T(x), torch.einsum("bji,bj->bi", stack, x))
    kron = torch.stack([torch.block_diag(m, m) for m in stack])
    torch.testing.assert_close(Dense(stack, (6,)).matrix((2, 6)), kron)
    gains = Diagonal(normal(6, 1, 6), None, pixel(6))
    joint = Dense(stack[0], (6,)) @ gains
    y = normal(6, 2, 6)
    torch.testing.assert_close(joint(y), torch.einsum("ij,bcj->bci", stack[0], gains(y)))


def test_signals_of_any_rank():
    """A basis of two axes inside five, and vectors."""
    operator = Diagonal(normal(4, 5), None, dct(4, 5))
    x = normal(2, 3, 2, 4, 5)
    torch.testing.assert_close(operator(x)[1, 2, 0], operator(x[1, 2, 0]))


# Refusals.


def test_matrix_free_has_no_inverse():
    with pytest.raises(NotImplementedError) as error:
        MatrixFree(torch.sin).inv()
    assert str(error.value) == (
        "MatrixFree has no inverse, which ancestral and noise-prediction need. "
        "Use naive, ddim or momentum, and the residual parametrization."
    )


def test_an_operator_needs_one_method_only():
    """A user's operator with `__call__`: products and sums work, the rest names an alternative."""

    class Flip(Operator):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x.flip(-1)

    flip = np.eye(6)[::-1]
    close(columns(Flip() @ Flip() + scaled(2.0) @ Flip(), (6,)), np.eye(6) + 2 * flip)
    close(
        (Flip() @ Dense(spd(6), (6,))).inv().matrix((6,)), scipy.linalg.inv(flip @ spd(6).numpy())
    )
    with pytest.raises(NotImplementedError, match=r"Flip has no transpose. Give MatrixFree a"):
        _ = Flip().T


def test_roots_of_negatives_name_the_coefficient():
    sign = torch.ones(2, 1, 4, 5).double()
    sign[1, 0, 3, 2] = -1
    with pytest.raises(ValueError, match=r"gain: coefficient \(3, 2\) is -1\. The operator is not"):
        Diagonal(torch.zeros(2, 1, 4, 5).double(), sign, dct(4, 5)).sqrt()
    with pytest.raises(ValueError, match="gain: every coefficient is -2"):
        scaled(-2.0).sqrt()


@pytest.mark.parametrize("shape", [(5,), (3, 1, 4, 1), (4, 5)])
def test_multiples_of_the_identity_have_one_gain(shape):
    """Times of shape (B,) would broadcast against the columns of an image: refused."""
    with pytest.raises(ValueError, match=r"one gain for each sample.* got .* such as pixel\(...\)"):
        Diagonal(torch.zeros(shape)) @ Diagonal(torch.zeros(4, 5), None, dct(4, 5))


def test_dense_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"signals of shape \(4, 5\) needs 20 x 20 matrices; got"):
        Dense(spd(6), (4, 5))
    for wrong in (torch.zeros(5), torch.zeros(6, 5), torch.zeros(())):
        with pytest.raises(ValueError, match=r"Dense on \(6,\) cannot act on a signal of shape"):
            Dense(spd(6), (6,))(wrong)
    with pytest.raises(ValueError, match=r"Dense on \(6,\) cannot act on a signal of shape \(5,\)"):
        Dense(spd(6), (6,)).matrix((5,))


def test_apply_needs_a_term():
    with pytest.raises(ValueError, match="at least one"):
        apply()


def test_operators_say_what_they_are():
    """repr names structure, basis and shapes."""
    free = MatrixFree(torch.flip)
    assert repr(Diagonal(normal(4, 5), None, dct(4, 5))) == "Diagonal(dct(4, 5), log_gain (4, 5))"
    assert repr(identity()) == "Diagonal(multiple of I, log_gain ())"
    assert repr(Dense(spd(6), (6,)).T) == "Dense(6,)"
    basis = dense(rotation(6))
    assert repr(free @ Diagonal(normal(6), None, basis)) == (
        "(MatrixFree(flip) @ Diagonal(dense(6), log_gain (6,)))"
    )
    assert repr(-(free + free)) == "-(MatrixFree(flip) + MatrixFree(flip))"


def test_a_batch_of_matrices_takes_one_to_each_sample():
    """Whatever axes stand between the sample and the signal."""
    matrices, x = normal(3, 6, 6), normal(3, 2, 6, seed=1)
    torch.testing.assert_close(Dense(matrices, (6,))(x), torch.einsum("bij,bcj->bci", matrices, x))


@pytest.mark.parametrize("basis", [None, dct(4)], ids=["multiple of I", "dct"])
def test_whole_numbers_are_no_signal(basis):
    """Gains cast to integers would be zeros, without a word."""
    gain = torch.zeros(() if basis is None else (4,), dtype=torch.float64) - 0.1
    with pytest.raises(TypeError, match=r"floating-point numbers; got torch.uint8"):
        Diagonal(gain, None, basis)(torch.full((2, 4), 200, dtype=torch.uint8))


def test_gains_are_float64_whatever_they_came_as():
    assert Diagonal(torch.zeros(4), torch.ones(4), dct(4)).log_gain.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4)], ids=str)
def test_gains_that_are_a_product_of_axes_are_fused(shape, dtype):
    """Heat as a matrix per axis is analysis, gains and synthesis; a floor is no product."""
    basis, x = dct(*shape), normal(2, *shape).to(dtype)
    heat = Diagonal(-0.3 * basis.laplacian, None, basis)
    assert heat.fused() is not None
    expected = basis.synthesize(heat.like(x) * basis.analyze(x))
    torch.testing.assert_close(heat(x), expected)
    torch.testing.assert_close(
        heat(x.double()).flatten(1), x.double().flatten(1) @ heat.matrix(shape).T
    )
    floor = heat + scaled(0.01)
    assert len(shape) == 1 or floor.fused() is None
    hard = Diagonal(torch.where(basis.laplacian > 1, -math.inf, 0.0).double(), None, basis)
    assert hard.fused() is None


def test_what_a_sum_cannot_hear_is_no_slow_subnormal():
    """Gains from 1 to 10^-60 in a basis that mixes: the signal to rounding, nothing near 10^-38.

    In pixels nothing is mixed, and 10^-35 stays itself.
    """
    log_gain, x = -torch.linspace(0, 60, 16, dtype=torch.float64) * math.log(10), normal(3, 16)
    mixed, alone = Diagonal(log_gain, None, dct(16)), Diagonal(log_gain, None, pixel(16))
    gain = mixed.like(x.float())
    assert not bool(((gain != 0) & (gain < 1e-31)).any()) and bool((gain[:8] > 0).all())
    torch.testing.assert_close(mixed(x.float()), mixed(x).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(alone(x.float()).double()[:, :9], alone(x)[:, :9], rtol=1e-6, atol=0)


def test_fused_heat_keeps_its_digits_where_gains_underflow():
    """10^-2197 is a zero in the matrix, and the mean of an image stays what it was."""
    basis = dct(64, 64)
    heat = Diagonal(-(23.0**2) / 2 * basis.laplacian, None, basis)
    x = normal(1, 64, 64)
    assert heat.fused() is not None
    torch.testing.assert_close(heat(x), basis.synthesize(heat.gain * basis.analyze(x)))
    torch.testing.assert_close(heat(x).mean(), x.mean())


@pytest.mark.parametrize("basis", [dct(4, 5), hartley(4, 5), pixel(4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_of_each_sample_and_a_colour_are_their_product(basis, dtype):
    """Parts that were not added up weigh as their sum does, with hard zeros and signs."""
    level, colour = 40 * normal(3, 1, 1, 1), 4 * normal(4, 5, seed=1)
    level[1], colour[2, 3] = -math.inf, -math.inf
    x = normal(3, 2, 4, 5, seed=2).to(dtype)
    for sign in (1.0, -1.0):
        apart = scaled(sign) @ Diagonal(level / 20) @ Diagonal(colour, None, basis)
        gain = sign * torch.exp(level / 20 + colour)
        for op, gains in (
            (apart, gain),
            (apart.inv(), torch.where(gain == 0, 0.0, 1 / gain)),
            (apart @ apart.inv(), (gain != 0).double()),
            (apart @ apart.T, gain**2),
            ((apart @ apart).sqrt(), gain.abs()),
        ):
            assert isinstance(op, Diagonal)
            expected = basis.synthesize(gains * basis.analyze(x.double()))
            room = 8 * float(expected.abs().max()) * torch.finfo(dtype).eps
            torch.testing.assert_close(op(x).double(), expected, rtol=0, atol=room)
            torch.testing.assert_close(
                op.gain, gains.expand(op.gain.shape), rtol=1e-12, atol=1e-300
            )


@pytest.mark.parametrize("second", [dct(4, 5), hartley(4, 5), None])
def test_the_energy_of_a_sum_is_its_norm(second):
    """Parseval or not: || sum of A x ||^2 by signals, for one basis, two, and none."""
    one, other = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    first = Diagonal(normal(3, 1, 4, 5), None, dct(4, 5))
    level = Diagonal(normal(3, 1, 1, 1)) if second is None else Diagonal(normal(4, 5), None, second)
    terms = [(first, one), (level, other), (first, other), (-first, one)]
    expected = sum(op(x) for op, x in terms).square().flatten(1).sum(1)
    torch.testing.assert_close(energy(*terms), expected)
