# The dashboard alone: it reads what a trainer recorded and needs no torch.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/root-dash \
 && /opt/root-dash/bin/pip install --no-cache-dir --constraint constraints.txt ".[postgres]"

FROM ${BASE}
# A volume that is mounted on /data for the first time takes its owner over from here.
RUN useradd --uid 1000 --create-home viewer && install --directory --owner=viewer --group=viewer /data
COPY --from=build /opt/root-dash /opt/root-dash
ENV PATH=/opt/root-dash/bin:$PATH
USER viewer
EXPOSE 8050
CMD ["root-dash", "serve", "/data/root-dash.db", "--host", "0.0.0.0"]
