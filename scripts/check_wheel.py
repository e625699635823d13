"""Install a built wheel away from the checkout and ask it a question there.

python scripts/check_wheel.py dist
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

OF_THE_CHECKOUT = ("benchmarks/", "/study", "/report/", "/svg.py", "/embedded.py", "/tiny-")
"""Parts of paths of what only this repository's own pages and models need."""


def check_contents(wheel: Path) -> None:
    """Fail where the wheel holds more than the package.

    Raises:
        SystemExit: names the first such file.
    """
    for name in ZipFile(wheel).namelist():
        if not name.startswith("videonsa") or any(part in name for part in OF_THE_CHECKOUT):
            raise SystemExit(f"{wheel.name} holds {name}: want the package alone")


def main() -> None:
    """Fail unless the one wheel in the folder works with nothing but its own files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    (wheel,) = parser.parse_args().dist.resolve().glob("*.whl")
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
        subprocess.run([*pip, wheel], check=True)
        environment = os.environ | {"PYTHONPATH": str(site)}
        run = [sys.executable, "-P", "-m", "videonsa"]
        where = subprocess.run(
            [sys.executable, "-P", "-c", "import videonsa; print(videonsa.__file__)"],
            check=True,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        ).stdout.strip()
        if not where.startswith(str(site)):
            raise SystemExit(f"imported {where}: want the wheel's own files under {site}")
        demo = [*run, "demo", "--out", Path(folder, "demo")]
        subprocess.run(demo, check=True, cwd=folder, env=environment)
        show = [*run, "train", "videonsa-7b", "--show"]
        subprocess.run(show, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    print(f"{wheel.name} works outside the checkout")


if __name__ == "__main__":
    main()
