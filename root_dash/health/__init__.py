"""Diagnosis: rules that turn the frames of a run into verdicts. NumPy and the records alone, no I/O."""

from root_dash.health.fold import RULES, Health, replay
from root_dash.records.verdict import SEVERITIES, Changes, Measured, Severity, Verdict, from_json, to_json

__all__ = [
    "RULES",
    "SEVERITIES",
    "Changes",
    "Health",
    "Measured",
    "Severity",
    "Verdict",
    "from_json",
    "replay",
    "to_json",
]
