"""The clients of the conformance suite: what each environment holds, where it is, and how it is made.

`python -m tests.conformance.environments [NAME ...]` makes them below `.venv-conformance/`, one virtual environment
each, and leaves alone those whose table line is unchanged. The newest clients need none: they are in the environment
that runs the tests (the `test` and `demo` extras).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENVIRONMENTS", "NEWEST", "Environment", "build"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-conformance"
INSTALL_LIMIT_S = 900.0

_TORCH_PARTS = ("torch", "torchgen", "functorch")
_TORCH_NEEDS = ("filelock", "typing_extensions", "sympy", "networkx", "jinja2", "fsspec", "numpy")
"""What torch imports; torch itself is linked from here, never installed again."""


@dataclass(frozen=True)
class Environment:
    """One set of clients. `torch`: lent from this environment; `without`: taken out after the installation."""

    name: str
    requirements: tuple[str, ...] = ()
    torch: bool = False
    without: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Its interpreter; the newest clients' is the one that runs the tests."""
        return self.folder / "bin" / "python" if self.requirements else Path(sys.executable)

    def command(self, name: str) -> Path:
        """A command that its packages installed."""
        return self.python.parent / name

    @property
    def is_ready(self) -> bool:
        """Whether it is there, as the table says."""
        return not self.requirements or (self._mark.is_file() and self._mark.read_text() == self._wanted)

    @property
    def _mark(self) -> Path:
        return self.folder / "made-of"

    @property
    def _wanted(self) -> str:
        says = repr((self.requirements, self.torch, self.without, sys.version_info[:3], sys.prefix))
        return hashlib.sha256(says.encode()).hexdigest()

    def build(self) -> bool:
        """Make it (again) unless it is ready; returns whether there was something to do."""
        if self.is_ready:
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, with_pip=True, symlinks=True)
        if self.torch:
            self._lend_torch()
        needs = _TORCH_NEEDS if self.torch else ()
        self._pip("install", *self.requirements, *needs)
        if self.without:
            self._pip("uninstall", "--yes", *self.without)
        self._mark.write_text(self._wanted)
        return True

    def _lend_torch(self) -> None:
        """Links to our torch, and a `.pth` that puts them last: what is installed there comes first."""
        ours = Path(sysconfig.get_paths()["purelib"])
        lent = self.folder / "lent"
        lent.mkdir()
        for part in (*_TORCH_PARTS, *(path.name for path in ours.glob("torch-*.dist-info"))):
            if (ours / part).exists():
                (lent / part).symlink_to(ours / part)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (self.folder / "lib" / version / "site-packages" / "zz-lent.pth").write_text(f"{lent}\n")

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
        subprocess.run(command, check=True, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=INSTALL_LIMIT_S)


NEWEST = Environment("newest")

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        NEWEST,
        Environment("hub030", ("huggingface_hub==0.30.2",)),  # the oldest; has no hf_xet unless asked for
        Environment("hub036", ("huggingface_hub==0.36.2", "hf_xet==1.8.0")),
        Environment("hub133", ("huggingface_hub==1.33.0", "hf_xet==1.8.0")),
        Environment("hub2-noxet", ("huggingface_hub>=2,<3",), without=("hf_xet",)),
        Environment("transformers445", ("transformers==4.45.2", "huggingface_hub==0.36.2"), torch=True),
        Environment("transformers457", ("transformers==4.57.6", "huggingface_hub==0.36.2"), torch=True),
        Environment("modelscope137", ("modelscope==1.37.1", "setuptools<81")),
    )
}


def build(names: list[str]) -> None:
    """Make those named, or all of them."""
    for name in names or list(ENVIRONMENTS):
        made = ENVIRONMENTS[name].build()
        print(f"{name}: {'made' if made else 'ready'}", flush=True)


if __name__ == "__main__":
    build(sys.argv[1:])
