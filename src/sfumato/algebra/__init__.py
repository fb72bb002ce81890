"""Linear algebra of corruptions: orthonormal bases and structured linear operators."""

from sfumato.algebra.basis import Basis as Basis
from sfumato.algebra.basis import dct as dct
from sfumato.algebra.basis import dense as dense
from sfumato.algebra.basis import haar as haar
from sfumato.algebra.basis import hartley as hartley
from sfumato.algebra.basis import pixel as pixel
from sfumato.algebra.combine import apply as apply
from sfumato.algebra.operators import Composed as Composed
from sfumato.algebra.operators import Dense as Dense
from sfumato.algebra.operators import Diagonal as Diagonal
from sfumato.algebra.operators import MatrixFree as MatrixFree
from sfumato.algebra.operators import Operator as Operator
from sfumato.algebra.operators import Sum as Sum
from sfumato.algebra.operators import identity as identity
from sfumato.algebra.operators import scaled as scaled
from sfumato.algebra.operators import zero as zero
