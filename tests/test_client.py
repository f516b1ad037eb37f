"""The command-line client as a whole: integration/test_client.py has the rest."""

import subprocess
import sys


def test_imports_neither_the_server_nor_what_is_slow() -> None:
    code = "import sys, pushd.client; print(*sys.modules, sep='\\n')"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = imported.splitlines()
    own = {"pushd", "pushd.client", "pushd.client_io", "pushd.client_options"}
    assert {name for name in names if name.startswith("pushd")} == own
    assert not {"twisted", "txredisapi", "prompt_toolkit"}.intersection(names)
