"""What a network predicts: x_0, the noise, the score, the velocity, preconditioned or not."""

from sfumato.estimation.predictions import Parametrization as Parametrization
from sfumato.estimation.predictions import Precondition as Precondition
from sfumato.estimation.predictions import coloured_noise as coloured_noise
from sfumato.estimation.predictions import noise as noise
from sfumato.estimation.predictions import previous as previous
from sfumato.estimation.predictions import residual as residual
from sfumato.estimation.predictions import score as score
from sfumato.estimation.predictions import unit_input as unit_input
from sfumato.estimation.predictions import velocity as velocity
from sfumato.estimation.predictions import wiener as wiener
from sfumato.estimation.predictions import x0 as x0
