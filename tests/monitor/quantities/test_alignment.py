"""The angle of gradient and momentum against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from root_dash.monitor.quantities.alignment import ALIGNMENT
from tests.monitor.quantities.measured import heavy_tailed, statistics_of, vectors


def test_alignment_is_the_cosine_at_every_scale() -> None:
    """Gradients of 1e30 against momenta of 1e-30 have the angle of their directions."""
    gradient, momentum = heavy_tailed(2, 300).unbind()
    columns = statistics_of(ALIGNMENT, vectors(gradient[None] * 1e33, momentum[None] * 1e-27))
    g, m = gradient.double().numpy(), momentum.double().numpy()
    assert columns["alignment"].item() == pytest.approx(g @ m / np.linalg.norm(g) / np.linalg.norm(m), rel=1e-4)
