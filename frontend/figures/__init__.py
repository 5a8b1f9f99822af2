"""One file per figure: records in, a Plotly figure out, nothing else."""
