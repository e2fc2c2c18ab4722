"""Audits of what this package claims: one-run lower bounds on ε, checks of each part of a private step, and bugs planted to try both."""

from __future__ import annotations

from privtensors.audit.canaries import Claim
from privtensors.audit.detectors import check_noise, check_oracle, check_sampler
from privtensors.audit.dp import AuditOptions, AuditResult, audit_run
from privtensors.audit.findings import Finding
from privtensors.audit.guessing import Outcome, play
from privtensors.audit.one_run import epsilon_lower_bound, p_value
from privtensors.audit.planted import Bug, planted_bugs
from privtensors.audit.setup import Setup
from privtensors.audit.table import BugRow, Schedule, bug_table, check_audit
from privtensors.audit.tradeoff import PrivacyCurve, curve_p_value, refutes, schedule_lower_bound
from privtensors.audit.trainers import train_by, train_by_fit

__all__ = [
    "AuditOptions",
    "AuditResult",
    "Bug",
    "BugRow",
    "Claim",
    "Finding",
    "Outcome",
    "PrivacyCurve",
    "Schedule",
    "Setup",
    "audit_run",
    "bug_table",
    "check_audit",
    "check_noise",
    "check_oracle",
    "check_sampler",
    "curve_p_value",
    "epsilon_lower_bound",
    "p_value",
    "planted_bugs",
    "play",
    "refutes",
    "schedule_lower_bound",
    "train_by",
    "train_by_fit",
]
