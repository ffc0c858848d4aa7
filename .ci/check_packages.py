"""Checks what the wheel and the sdist in a folder contain, and that the wheel works.

The wheel is installed into an empty environment, with what it depends on and no more,
and runs the snippets of the README there.

Usage: python .ci/check_packages.py FOLDER
"""

import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
CACHES = {"__pycache__", "_build", ".ipynb_checkpoints"}


def source_files() -> set[str]:
    """Lists the files of the package in the checkout."""
    files = (path for path in (ROOT / "clipjax").rglob("*") if path.is_file())
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if not CACHES & set(path.parts)
    }


def check_wheel(path: pathlib.Path) -> None:
    """Expects the package, py.typed, the licence, and nothing else."""
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    package = {name for name in names if name.startswith("clipjax/")}
    metadata = [name for name in names if name.split("/")[0].endswith(".dist-info")]
    others = set(names) - package - set(metadata)
    assert not others, f"the wheel has files that do not belong there: {others}"
    differing = package ^ source_files()
    assert not differing, f"the wheel and clipjax/ differ in {differing}"
    assert "clipjax/py.typed" in package, "the wheel lacks py.typed"
    assert any(name.endswith("LICENSE") for name in metadata), "no licence"


def check_metadata(path: pathlib.Path, version: str) -> None:
    """Expects links of the README to be absolute, and one version everywhere."""
    archive = zipfile.ZipFile(path)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    readme = archive.read(name).decode().partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", readme)
    relative = [link for link in links if not link.startswith(("https://", "#"))]
    assert links and not relative, f"relative links in the README: {relative}"
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation, f"CITATION.cff is not of {version}"


def run_readme(wheel: pathlib.Path) -> None:
    """Installs the wheel into an empty environment, and runs the README's snippets."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = pathlib.Path(folder, "bin", "python")
        install = [python, "-m", "pip", "--disable-pip-version-check", "install"]
        subprocess.run([*install, "--quiet", wheel.resolve()], check=True)
        code = "import clipjax, sys; assert clipjax.__file__.startswith(sys.argv[1])"
        snippets = [ROOT / "docs" / "run_snippets.py", ROOT / "README.md"]
        for command in (["-c", code, folder], snippets):
            subprocess.run([python, "-W", "error", *command], cwd=folder, check=True)


def check_sdist(path: pathlib.Path) -> None:
    """Expects what it takes to build, test and document, and no caches."""
    names = [pathlib.PurePosixPath(name) for name in tarfile.open(path).getnames()]
    inside = {"/".join(name.parts[1:]) for name in names}
    expected = source_files() | {"pyproject.toml", "LICENSE", "README.md"}
    expected |= {"CHANGELOG.md", "CITATION.cff", "tests/catalogue.py", "docs/conf.py"}
    assert expected <= inside, f"the sdist lacks {expected - inside}"
    caches = [name for name in names if CACHES & set(name.parts)]
    assert not caches, f"the sdist has caches: {caches}"


def main(folder: pathlib.Path) -> None:
    """Checks one wheel and one sdist of the version in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stem = f"{project['name']}-{project['version']}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    check_wheel(wheel)
    check_metadata(wheel, project["version"])
    check_sdist(folder / f"{stem}.tar.gz")
    print(f"The wheel and the sdist of {stem} hold what they should.")
    run_readme(wheel)
    print("The README runs in an empty environment that has the wheel.")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
