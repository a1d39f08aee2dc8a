"""Compressive memory of linear attention: fixed-size M and z that keys and values are folded into."""

from longmem.ops.compressive.chunked import retrieve, update
from longmem.ops.compressive.dispatch import fold, mix, read_and_fold
from longmem.ops.compressive.features import (
    FEATURE_MAPS,
    Dpfp,
    EluPlusOne,
    FeatureMap,
    Learned,
    get_feature_map,
)
from longmem.ops.compressive.naive import read_and_fold_naive, retrieve_naive, update_naive
from longmem.ops.compressive.normaliser import warn_if_fixed
from longmem.ops.compressive.state import EPS, RULES, CompressiveState, Rule

__all__ = [
    "EPS",
    "FEATURE_MAPS",
    "RULES",
    "CompressiveState",
    "Dpfp",
    "EluPlusOne",
    "FeatureMap",
    "Learned",
    "Rule",
    "fold",
    "get_feature_map",
    "mix",
    "read_and_fold",
    "read_and_fold_naive",
    "retrieve",
    "retrieve_naive",
    "update",
    "update_naive",
    "warn_if_fixed",
]
