import ast
import sys
from pathlib import Path

import recbole_diffusion.diffusion_utils as diffusion_utils


def test_the_sub_package_needs_torch_alone():
    for path in Path(diffusion_utils.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}, path


def test_all_names_exist():
    for name in diffusion_utils.__all__:
        assert hasattr(diffusion_utils, name)
