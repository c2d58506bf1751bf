"""Known models: families whose config.json has no scaling although they were trained with it.

known_models.json has an entry for each: `name`; `pattern`, a regular expression that the model's name must
contain, ignoring case; `config`, the allowed values of keys of config.json (null: missing); `rope_scaling`,
what the config should have had; `source`, where that is documented.

A config that has a scaling is believed instead. Having none may be stated ("default", as transformers 5
writes it) or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """An entry of known_models.json."""

    name: str
    pattern: str
    config: Mapping[str, list[Any]]
    rope_scaling: Mapping[str, Any]
    source: str

    def matches(self, name: str, config: Mapping[str, Any]) -> bool:
        """Return whether a model with this name and this config.json is one of these."""
        has_name = re.search(self.pattern, name, re.IGNORECASE) is not None
        return has_name and all(config.get(key) in values for key, values in self.config.items())


_FILE = Path(__file__).with_name("known_models.json")
KNOWN_MODELS = tuple(KnownModel(**entry) for entry in json.loads(_FILE.read_text(encoding="utf-8")))
