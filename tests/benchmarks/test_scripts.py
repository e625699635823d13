"""The scripts of `benchmarks`, run as files."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHADOWED = """
import sys
import videonsa.bench.attention_inputs, videonsa.models.families.qwen2_5_vl
print([name for name, module in sys.modules.items()
       if (getattr(module, "__file__", None) or "").startswith(sys.path[0])])
"""


def test_no_script_stands_where_a_package_is_looked_for():
    """Python puts a script's folder first: a `kernels.py` there was taken for the package."""
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{SHADOWED}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
