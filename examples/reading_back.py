"""Read a recording back as NumPy arrays: `python examples/reading_back.py runs.db`. With pandas, as a table."""

import sys

import numpy as np

import root_dash

with root_dash.open(sys.argv[1]) as store:
    run = store.runs()[0]  # the newest
    print(f"{run.name}: {run.frames} frames, newest step {run.last_step}")

    for layer in store.layers(run.id):
        norms = store.history(layer.id, "grad_norm")  # .steps, .values
        print(f"  {layer.name:12} {layer.algorithm:6} median gradient norm {np.median(norms.values):.2e}")

    matrix = next(layer for layer in store.layers(run.id) if layer.is_matrix)
    spectrum = store.spectrum(matrix.id)  # the newest; .momentum, .base, .update
    print(f"singular values of the update of {matrix.name}: {spectrum.update.min():.2f} to {spectrum.update.max():.2f}")

    try:
        import pandas as pd
    except ImportError:
        pass
    else:
        loss = store.scalar(run.id, "loss")
        print(pd.Series(loss.values, index=loss.steps, name="loss").rolling(10).mean().tail(3))
