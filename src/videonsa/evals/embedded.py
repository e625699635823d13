"""Score a model on rendered clips it was never trained on, whole and with parts taken away.

`python -m videonsa.evals.embedded --out FILE.json` answers at least 200 questions of each kind
under each condition; `python -m videonsa.evals.report` turns the JSON into docs/results.md.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, count, islice
from pathlib import Path
from typing import Any
