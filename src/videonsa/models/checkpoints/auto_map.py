"""How transformers' Auto classes find this package from a checkpoint: `auto_map` and a module.

The module that stands beside the weights holds no code of the model. It imports this package, or
says that it is missing.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

MODULE = "modeling_videonsa"
AUTO_MAP: Mapping[str, str] = MappingProxyType(
    {
        "AutoConfig": f"{MODULE}.VideoNSAConfig",
        "AutoModelForImageTextToText": f"{MODULE}.VideoNSAForConditionalGeneration",
    }
)
"""The field of a config.json, for `from_pretrained(..., trust_remote_code=True)`."""
_SOURCE = '''\
"""Lets transformers load this checkpoint where the package videonsa is installed.

    AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)

After `import videonsa.models` the Auto classes know the model without this module.
"""

try:
    from videonsa.models.config import VideoNSAConfig
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
except ModuleNotFoundError as error:
    raise ImportError(
        f"this checkpoint needs the package videonsa ({error}): pip install videonsa"
    ) from error

__all__ = ["VideoNSAConfig", "VideoNSAForConditionalGeneration"]
'''


def write_module(folder: Path) -> None:
    """Write the module that `AUTO_MAP` names."""
    (folder / f"{MODULE}.py").write_text(_SOURCE, "utf-8")
