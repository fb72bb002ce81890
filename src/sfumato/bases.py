"""Orthonormal bases: `dct`, `hartley`, `haar`, `pixel`, `dense`."""

from sfumato.algebra.basis import Basis as Basis
from sfumato.algebra.basis import dct as dct
from sfumato.algebra.basis import dense as dense
from sfumato.algebra.basis import haar as haar
from sfumato.algebra.basis import hartley as hartley
from sfumato.algebra.basis import pixel as pixel
