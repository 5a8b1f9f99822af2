"""HTTP: the API, the stream of notices, and the guard in front of both. No torch, no SQL, no Plotly."""
