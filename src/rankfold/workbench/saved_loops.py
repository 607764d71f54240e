"""Loops on disk: the state and the model of a search that trains, from which it resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

Identity = Callable[[], Mapping[str, Any] | None]


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
        Returns everything that the loops depend on, as JSON values: another search has other files. If it returns None,
        the search cannot be identified, and nothing is saved.

    Raises
    ------
    RankfoldError
        If the folder is not writable.
    """

    def __init__(self, folder: str | Path, identity: Identity) -> None:
        self.folder = Path(folder)
        self._identity = identity
        check_writable(self.folder)

    def write(self, name: str, state: Mapping[str, Any], model: nn.Module, facts: Mapping[str, Any]) -> None:
        """Save a loop with its compressed model."""
        file = self._file(name)
        if file is None:
            return
        tensors, aliases = stored_state(model)
        plan = plan_of(model).to_json()
        more = {"plan": plan, "state": json.dumps(dict(state)), "facts": json.dumps(dict(facts))}
        metadata = weights_metadata(tensors, aliases, plan, more)
        write_atomic(file, lambda temporary: write_weights(temporary, tensors, metadata))

    def read(self, name: str) -> SavedLoop | None:
        """Return a loop; None if it was not saved, or its file is damaged."""
        file = self._file(name)
        if file is None:
            return None
        try:
            weights = Weights(file)
            values = {key: parse_json(weights.metadata.get(key, ""), source=str(file)) for key in ("state", "facts")}
            plan = Plan.from_json(weights.metadata.get("plan", ""), source=str(file))
            return SavedLoop(**values, plan=plan, tensors=weights.tensors())
        except (FileNotFoundError, NotADirectoryError, CorruptArtifact):
            return None

    def _file(self, name: str) -> Path | None:
        if self._key is None:
            return None
        return self.folder / f"loop-{json_hash({**self._key, 'loop': name})[:32]}.safetensors"

    @cached_property
    def _key(self) -> Mapping[str, Any] | None:
        return self._identity()
