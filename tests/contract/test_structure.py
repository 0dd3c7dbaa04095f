"""The packages have no circles of imports and no corridors of modules. Their layers: import-linter's contracts."""

from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {path.parent.name: path.parent for path in ROOT.glob("*/plaudit_*/__init__.py")}

# As many as one sees at a glance.
MAX_MODULES = 14


def circles(*packages):
    """Chains of imports that end where they begin; an import in a function or for type checkers alone counts too."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    ways_back = (
        (module, graph.find_shortest_chain(imported, module))
        for module in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(module))
    )
    return [" -> ".join([module, *way]) for module, way in ways_back if way]


def test_every_package_is_looked_at():
    assert PACKAGES.keys() == {"plaudit_client", "plaudit_demo", "plaudit_export", "plaudit_ppo", "plaudit_service"}


def test_no_module_imports_itself_in_a_circle():
    assert circles(*PACKAGES) == []


@pytest.mark.parametrize(
    "hidden",
    [
        "from circled.a import x",
        "import circled.a",
        "from circled import a",
        "def late():\n    from circled import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circled.a import x",
    ],
)
def test_a_circle_is_seen_wherever_its_import_stands(tmp_path, monkeypatch, hidden):
    monkeypatch.syspath_prepend(tmp_path)
    files = {"__init__": "", "a": "from circled.wing import b", "wing/__init__": "", "wing/b": hidden}
    for name, text in files.items():
        path = tmp_path / "circled" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert "circled.a -> circled.wing.b -> circled.a" in circles("circled")


def test_a_circle_through_the_package_itself_is_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "__init__.py").write_text("from whole.a import x")
    (tmp_path / "whole" / "a.py").write_text("from whole import y")
    assert "whole -> whole.a -> whole" in circles("whole")


# The client's SDK is one folder: its names are what users import.
WINGED = [PACKAGES[name] for name in sorted(PACKAGES.keys() - {"plaudit_client"})]
FOLDERS = sorted({path.parent for package in WINGED for path in package.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_folder_is_a_corridor(folder):
    modules = sorted(path.name for path in folder.glob("*.py") if path.name not in {"__init__.py", "__main__.py"})
    assert len(modules) <= MAX_MODULES, modules
