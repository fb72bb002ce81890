"""Structured linear operators on signals."""

from sfumato.algebra.combine import apply as apply
from sfumato.algebra.linear import MatrixFree as MatrixFree
from sfumato.algebra.linear import Operator as Operator
from sfumato.algebra.operators import Dense as Dense
from sfumato.algebra.operators import Diagonal as Diagonal
from sfumato.algebra.operators import identity as identity
from sfumato.algebra.operators import scaled as scaled
from sfumato.algebra.operators import zero as zero
