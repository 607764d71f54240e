"""Artefacts: a folder with ``plan.json`` and ``model.safetensors``; no pickle, no data, no decomposition to load."""

from rankfold.storage.artifact import load as load
from rankfold.storage.artifact import save as save
from rankfold.storage.artifact import unwrap as unwrap
