"""Lists the task modules of lmms-eval that cannot be imported in this environment, and why.

Run it with the Python of lmms-eval's environment: python scripts/lmms_eval_imports.py
With --listed, it prints a table of the tasks that this project lists, and of these alone.
"""

import contextlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path

from videonsa.evals.field.tasks import FOLDERS

os.environ["HF_HUB_OFFLINE"] = "1"  # what wants the network at import is listed as such
os.environ.setdefault("HF_HOME", os.path.expanduser("~/.cache/huggingface"))  # wanted by some
FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")


def task_modules(root: Path) -> list[Path]:
    """The files that task files name functions of."""
    files = [path for path in root.rglob("*yaml") if path.is_file()]
    named = {
        path.parent / f"{module}.py"
        for path in files
        for module in FUNCTION.findall(path.read_text("utf-8"))
    }
    return sorted(path for path in named if path.is_file())


def reason(path: Path) -> str | None:
    """Why a file cannot be imported, in one line; None if it can."""
    spec = importlib.util.spec_from_file_location("task_module", path)
    module = importlib.util.module_from_spec(spec)
    silent = io.StringIO()
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return None


def print_listed(root: Path) -> None:
    """Each listed task, and whether the modules of its folder can be imported."""
    reasons = {
        folder: [why for path in task_modules(root / folder) if (why := reason(path)) is not None]
        for folder in sorted(set(FOLDERS.values()))
    }
    print("| task | imports |\n| --- | --- |")
    for task, folder in FOLDERS.items():
        print(f"| {task} | {'; '.join(reasons[folder]) or 'yes'} |")


def main() -> None:
    """Try all."""
    spec = importlib.util.find_spec("lmms_eval.tasks")
    root = Path(spec.origin).parent
    if "--listed" in sys.argv[1:]:
        print_listed(root)
        return
    modules = task_modules(root)
    failed = {path: why for path in modules if (why := reason(path)) is not None}
    for path, why in failed.items():
        print(f"{path.relative_to(root)}: {why}")
    print(f"{len(failed)} of {len(modules)} task modules cannot be imported here")


if __name__ == "__main__":
    main()
