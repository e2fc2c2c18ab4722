"""SentinelLMs: encoders that read keyed text (Mishra, Li and Deo, AAAI 2024), as published and hardened.

Guarantee class: heuristic. A server that holds the transformed weights of an open model recovers the tokens, in either form.
"""

from privtensors.obfuscation.sentinel.calibration import NoiseCost, calibrate
from privtensors.obfuscation.sentinel.conversion import Converted, convert
from privtensors.obfuscation.sentinel.data import Example, LocalData, load_data
from privtensors.obfuscation.sentinel.finetuning import FineTuned, finetune
from privtensors.obfuscation.sentinel.owner import Answer, Owner, load_owner
from privtensors.obfuscation.sentinel.recovery import Recovery, recover
from privtensors.obfuscation.sentinel.training import TrainingOptions
from privtensors.obfuscation.sentinel.words import KeyedText, KeyedWords, WordHash

__all__ = [
    "Answer",
    "Converted",
    "Example",
    "FineTuned",
    "KeyedText",
    "KeyedWords",
    "LocalData",
    "NoiseCost",
    "Owner",
    "Recovery",
    "TrainingOptions",
    "WordHash",
    "calibrate",
    "convert",
    "finetune",
    "load_data",
    "load_owner",
    "recover",
]
