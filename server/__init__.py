"""HTTP: the API, the stream and the guard in front of them. No torch, no SQL, no Plotly."""
