# The dashboard alone: it reads what a trainer recorded and needs no torch.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY root_dash root_dash
COPY server server
COPY frontend frontend
RUN pip install --no-cache-dir --constraint constraints.txt ".[postgres]" && useradd --create-home viewer
USER viewer
EXPOSE 8050
CMD ["root-dash", "serve", "/data/root-dash.db", "--host", "0.0.0.0"]
