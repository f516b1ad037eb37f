"""What pip makes of the repository: a plugin and a program, and nothing is left once they are removed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP_TIMEOUT = 300.0
"""Seconds; pip fetches what pushd depends on, and what its build needs."""

WHERE = """
import pushd
import twisted.plugins.pushd_plugin
print(pushd.__file__)
print(twisted.plugins.pushd_plugin.__file__)
"""


def run(*command: str | Path, cwd: Path, env: dict[str, str], timeout: float = PIP_TIMEOUT) -> str:
    """Return what a command printed; it must have ended well."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Environment:
    """A virtual environment that shares nothing with the one that the tests run in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._elsewhere = path / "elsewhere"
        # Installing is configured by the machine; Python itself by nothing.
        self._installing = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        self._running = {"PATH": f"{path / 'bin'}:/usr/bin:/bin", "HOME": str(path)}
        run(sys.executable, "-m", "venv", path, cwd=path.parent, env=self._installing)
        self._elsewhere.mkdir()
        self.site = Path(
            self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        self._bare = self.files()

    def pip(self, *words: str | Path) -> str:
        return run(self._path / "bin/python", "-m", "pip", *words, cwd=self._elsewhere, env=self._installing)

    def run(self, program: str, *words: str) -> str:
        """Run an installed program, in a directory and with variables that lead nowhere else."""
        return run(self._path / "bin" / program, *words, cwd=self._elsewhere, env=self._running)

    def files(self) -> set[Path]:
        return {path for path in self._path.rglob("*") if not path.is_dir()}

    def unaccounted(self) -> set[Path]:
        """Return the files that came since the environment was made, and that no installed package owns.

        Without Twisted's caches: it writes one wherever it looks for plugins, and keeps it up to date.
        """
        owned = {
            Path(os.path.normpath(str(file.locate())))
            for package in distributions(path=[str(self.site)])
            for file in package.files or ()
        }
        return {path for path in self.files() - self._bare - owned if path.name != "dropin.cache"}

    @contextmanager
    def installed(self, *words: str | Path) -> Iterator[None]:
        self.pip("install", *words)
        try:
            yield
        finally:
            self.pip("uninstall", "--yes", "pushd")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("installed") / "environment")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is in the repository, and what would be: building leaves its traces there."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("git tells what belongs to the repository, and it is not there")
    copy = tmp_path_factory.mktemp("source")
    names = run(
        *("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        env=dict(os.environ),
    )
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def assert_it_works(environment: Environment, home: Path) -> None:
    """Check what a user would try first, and that it is the pushd of this installation that answers."""
    package, plugin = environment.run("python", "-c", WHERE).split()
    assert Path(package) == home / "pushd/__init__.py"
    assert Path(plugin) == home / "twisted/plugins/pushd_plugin.py"
    assert Path(package).with_name("py.typed").exists()
    assert "    pushd " in environment.run("twistd", "--help")
    assert "--channel=" in environment.run("twistd", "pushd", "--help")
    assert "pushd-client" in environment.run("pushd-client", "--help")
    assert "No broken requirements" in environment.pip("check")


def assert_nothing_is_left(environment: Environment) -> None:
    assert environment.unaccounted() == set()
    assert "    pushd " not in environment.run("twistd", "--help")


def test_a_wheel(environment: Environment, source: Path, tmp_path: Path) -> None:
    environment.pip("wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("pushd-*.whl")
    with environment.installed(wheel):
        assert_it_works(environment, environment.site)
        (package,) = (p for p in distributions(path=[str(environment.site)]) if p.name == "pushd")
        modules = {str(file) for file in package.files or () if file.suffix == ".py"}
        written = {str(path.relative_to(source)) for path in source.glob("pushd/**/*.py")}
        assert modules == written | {"twisted/plugins/pushd_plugin.py"}
    assert_nothing_is_left(environment)


def test_an_editable_install(environment: Environment, source: Path) -> None:
    with environment.installed("--editable", source):
        assert_it_works(environment, source)
    assert_nothing_is_left(environment)
