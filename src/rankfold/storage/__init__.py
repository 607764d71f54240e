"""Artifacts: folders with ``plan.json`` and ``model.safetensors``, which load without pickle, data or decomposition."""

from rankfold.storage.artifact import load as load
from rankfold.storage.artifact import save as save
from rankfold.storage.artifact import save_described as save_described
from rankfold.storage.folder import SOURCE_FILE as SOURCE_FILE
from rankfold.storage.folder import artifact_bytes as artifact_bytes
from rankfold.storage.folder import artifact_identity as artifact_identity
from rankfold.storage.folder import check_output as check_output
from rankfold.storage.folder import companion_file as companion_file
from rankfold.storage.network import Network as Network
