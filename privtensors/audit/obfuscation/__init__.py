"""Attacks on keyed obfuscation, and what follows from them. Every figure is measured on the scheme at hand; none is quoted."""

from __future__ import annotations

from privtensors.audit.obfuscation.attack import Attack, Attacker, Signature, Tables, View
from privtensors.audit.obfuscation.audit import ObfuscationAudit, ObfuscationOptions, audit
from privtensors.audit.obfuscation.climbing import HillClimbing
from privtensors.audit.obfuscation.contest import Play, RandomGuess, brute_force_digits, play
from privtensors.audit.obfuscation.decipher import Decipherment, FrequencyRank
from privtensors.audit.obfuscation.known import KnownPlaintext
from privtensors.audit.obfuscation.material import Material, encode_with, material
from privtensors.audit.obfuscation.own import load_open, target_of_folders
from privtensors.audit.obfuscation.plot import plot_recovery
from privtensors.audit.obfuscation.prompts import Invariant, PromptDecoding
from privtensors.audit.obfuscation.rows import ColumnMatching, RowMatching, UnitMatching
from privtensors.audit.obfuscation.scoring import Probe, Recovery
from privtensors.audit.obfuscation.seeds import IdsAsTheyAre, SeedEnumeration
from privtensors.audit.obfuscation.spectral import Spectral
from privtensors.audit.obfuscation.states import NormProfile, StateMatching, states_of
from privtensors.audit.obfuscation.targets import Schemes, Target, answers_of, tables_of
from privtensors.audit.obfuscation.utility import Classifier, Examples, Utility
from privtensors.audit.obfuscation.verdict import Outcome, Row, Verdict, statements, verdicts

__all__ = [
    "Attack",
    "Attacker",
    "Classifier",
    "ColumnMatching",
    "Decipherment",
    "Examples",
    "FrequencyRank",
    "HillClimbing",
    "IdsAsTheyAre",
    "Invariant",
    "KnownPlaintext",
    "Material",
    "NormProfile",
    "ObfuscationAudit",
    "ObfuscationOptions",
    "Outcome",
    "Play",
    "Probe",
    "PromptDecoding",
    "RandomGuess",
    "Recovery",
    "Row",
    "RowMatching",
    "Schemes",
    "SeedEnumeration",
    "Signature",
    "Spectral",
    "StateMatching",
    "Tables",
    "Target",
    "UnitMatching",
    "Utility",
    "Verdict",
    "View",
    "answers_of",
    "audit",
    "brute_force_digits",
    "encode_with",
    "load_open",
    "material",
    "play",
    "plot_recovery",
    "statements",
    "states_of",
    "tables_of",
    "target_of_folders",
    "verdicts",
]
