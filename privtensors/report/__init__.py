"""Reports for people, rendered with rich. Imports no torch."""

from __future__ import annotations

from privtensors.report.epsilon_plot import plot_epsilon
from privtensors.report.spending import bars, ledger_rows, remarks, spending
from privtensors.report.who_sees_what import who_sees_what

__all__ = ["bars", "ledger_rows", "plot_epsilon", "remarks", "spending", "who_sees_what"]
