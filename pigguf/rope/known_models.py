"""Known families: what prose alone tells of published models whose config.json is silent about scaling.

known_models.json holds them, a family an entry: `name`, as it is told; `pattern`, which the model's name must
hold, whatever its case; `config`, the values that keys of config.json may have in it (null: absent);
`rope_scaling`, as such a config should have said it; `source`, where it is told.

Left out: models whose config has a scaling: then it is believed, and no name. That it has none may be
said ("default", as transformers 5 writes it) or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KnownFamily:
    """An entry of known_models.json."""

    name: str
    pattern: str
    config: Mapping[str, list[Any]]
    rope_scaling: Mapping[str, Any]
    source: str

    def fits(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a model of that name with that config.json is one of the family."""
        named = re.search(self.pattern, name, re.IGNORECASE) is not None
        return named and all(config.get(key) in values for key, values in self.config.items())


_FILE = Path(__file__).with_name("known_models.json")
KNOWN = tuple(KnownFamily(**entry) for entry in json.loads(_FILE.read_text(encoding="utf-8")))
