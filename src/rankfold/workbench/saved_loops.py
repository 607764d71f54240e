"""Loops on disk: the state and the model of a search that trains, from which it resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankfold._documents import parse_json
from rankfold._files import check_writable, write_atomic
from rankfold._hashing import json_hash
from rankfold._state import load_state_
from rankfold.errors import CorruptArtifact
from rankfold.records import Plan
from rankfold.storage.state import stored_state
from rankfold.storage.weights import Weights, weights_metadata, write_weights
from rankfold.surgery import plan_of

ALIKE = 1e-3
"""Relative difference up to which outputs count as those of the same network: rounding differs between machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchIdentity:
    """What a search depends on: a search with another identity has other loops.

    Parameters
    ----------
    facts : mapping
        Facts to compare exactly, as JSON values.
    outputs : sequence of float
        Numbers that tell the original's outputs on the data, in pairs of size and value (`data_probe`). They reveal
        what no fact shows, such as an attribute that selects another head.
    """

    facts: Mapping[str, Any]
    outputs: Sequence[float]

    def has_outputs(self, outputs: Sequence[float]) -> bool:
        """Return whether outputs agree with these, up to `ALIKE`."""
        if len(outputs) != len(self.outputs):
            return False
        sizes = [size for size in self.outputs[::2] for _ in range(2)]
        return all(abs(a - b) <= ALIKE * size for a, b, size in zip(outputs, self.outputs, sizes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLoop:
    """What was saved: the state of the loop, further facts about the model, its plan and its tensors by name."""

    state: dict[str, Any]
    facts: dict[str, Any]
    plan: Plan
    tensors: Mapping[str, Tensor]

    def load_(self, model: nn.Module) -> None:
        """Load the tensors into a model to which the plan has been applied."""
        load_state_(model, self.tensors)


class SavedLoops:
    """One file per loop in a folder, written whole.

    Parameters
    ----------
    folder : Path
        The folder, which is created with the first file.
    identity : callable
        Returns the `SearchIdentity`. If it returns None, the search cannot be identified, and nothing is saved.

    Raises
    ------
    RankfoldError
        If the folder is not writable.
    """

    def __init__(self, folder: str | Path, identity: Callable[[], SearchIdentity | None]) -> None:
        self.folder = Path(folder)
        self._identify = identity
        check_writable(self.folder)

    def write(self, name: str, state: Mapping[str, Any], model: nn.Module, facts: Mapping[str, Any]) -> None:
        """Save a loop with its compressed model."""
        identity, file = self._identity, self._file(name)
        if identity is None or file is None:
            return
        tensors, aliases = stored_state(model)
        plan = plan_of(model).to_json()
        documents = {"state": dict(state), "facts": dict(facts), "outputs": list(identity.outputs)}
        more = {"plan": plan, **{key: json.dumps(value) for key, value in documents.items()}}
        metadata = weights_metadata(tensors, aliases, plan, more)
        write_atomic(file, lambda temporary: write_weights(temporary, tensors, metadata))

    def read(self, name: str) -> SavedLoop | None:
        """Return a loop; None if it was not saved, its file is damaged, or the original's outputs differ."""
        identity, file = self._identity, self._file(name)
        if identity is None or file is None:
            return None
        try:
            weights = Weights(file)
            values = {key: parse_json(weights.metadata.get(key, ""), source=str(file)) for key in ("state", "facts")}
            if not identity.has_outputs(parse_json(weights.metadata.get("outputs", ""), source=str(file))):
                return None
            plan = Plan.from_json(weights.metadata.get("plan", ""), source=str(file))
            return SavedLoop(**values, plan=plan, tensors=weights.tensors())
        except (FileNotFoundError, NotADirectoryError, CorruptArtifact):
            return None

    def _file(self, name: str) -> Path | None:
        if self._identity is None:
            return None
        return self.folder / f"loop-{json_hash({**self._identity.facts, 'loop': name})[:32]}.safetensors"

    @cached_property
    def _identity(self) -> SearchIdentity | None:
        return self._identify()
