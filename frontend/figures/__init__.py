"""One file per figure: a pure function from records to a Plotly figure."""
