"""Print the requirements that pyproject.toml declares, one a line: the dependencies ("base") and those of named extras."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = [line for name in sys.argv[1:] for line in (project["dependencies"] if name == "base" else extras[name])]
print("\n".join(line for line in wanted if not line.startswith(f"{project['name']}[")))
