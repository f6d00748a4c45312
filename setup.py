"""Every folder with a module in it is a package; everything else about the project is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
FOLDERS = ("api", "commands", "display", "engine", "explorer", "kernels", "store")


def find_packages() -> list[str]:
    """The package and all of its folders, by name: one that holds a module, and those above it."""
    modules = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    folders = {folder for module in modules for folder in module.parents}
    return sorted(".".join(["actstore", *folder.parts]) for folder in folders)


# Its own name, because the package lies where this file does: setuptools leaves its script out of a wheel.
setup(packages=find_packages(), script_name="setup.py")
