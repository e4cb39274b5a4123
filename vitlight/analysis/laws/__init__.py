"""Scaling laws: error against compute, or against model size and data, with intervals that cover what they promise."""

from vitlight.analysis.laws.checks import check, check_extrapolation
from vitlight.analysis.laws.fit import INTERVAL_METHODS, fit_law
from vitlight.analysis.laws.forms import FORMS, Form
from vitlight.analysis.laws.frontier import Frontier, compute_optimal
from vitlight.analysis.laws.law_fit import LawFit
from vitlight.analysis.laws.points import AXES, Points
from vitlight.analysis.laws.selection import FormScore, HeldOut, Selection, leave_largest_out, select_form
from vitlight.analysis.laws.solution import LOSSES

__all__ = [
    "AXES",
    "FORMS",
    "INTERVAL_METHODS",
    "LOSSES",
    "Form",
    "FormScore",
    "Frontier",
    "HeldOut",
    "LawFit",
    "Points",
    "Selection",
    "check",
    "check_extrapolation",
    "compute_optimal",
    "fit_law",
    "leave_largest_out",
    "select_form",
]
