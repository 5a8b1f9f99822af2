"""The panels of a layer's page, in their order: verdict, distribution, matrix, statistics."""

from root_dash.frontend.panels.layer import errors, evolution, histogram, mask, qq, spectrum, statistics, verdict

PANELS = (
    verdict.PANEL,
    histogram.PANEL,
    qq.PANEL,
    evolution.PANEL,
    spectrum.PANEL,
    errors.PANEL,
    mask.PANEL,
    *statistics.PANELS,
)
