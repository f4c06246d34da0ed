"""Makes the peers' environments, one each, in .venv-bench. A peer that will not install is skipped, and named.

python -m benchmarks.peers.install [NAME ...]
"""

import os
import subprocess
import sys
import venv

from benchmarks.peers.catalogue import ENVIRONMENTS, PEERS, ROOT, Peer


def install(peer: Peer) -> str | None:
    """Installs a peer unless it is there; returns why not, or None."""
    wanted = "\n".join(peer.requirements)
    if peer.installed.is_file() and peer.installed.read_text(encoding="utf-8") == wanted:
        return None
    log = ENVIRONMENTS / f"{peer.name}.log"
    print(f"{peer.title}: installing into {peer.environment.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
    try:
        if not peer.python.is_file():
            venv.create(peer.environment, with_pip=True)
        commands = [["install", "--disable-pip-version-check", *peer.requirements]]
        if peer.unwanted:
            commands.append(["uninstall", "--yes", *peer.unwanted])
        with log.open("w", encoding="utf-8") as file:
            for command in commands:
                pip = [str(peer.python), "-m", "pip", *command]
                subprocess.run(pip, check=True, env=os.environ | dict(peer.build), stdout=file, stderr=file)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{error}; see {log.relative_to(ROOT)}"
    peer.installed.write_text(wanted, encoding="utf-8")
    return None


def main() -> None:
    names = sys.argv[1:]
    ENVIRONMENTS.mkdir(exist_ok=True)
    for peer in PEERS:
        if peer.requirements and (not names or peer.name in names):
            reason = install(peer)
            print(f"{peer.title}: {'ready' if reason is None else 'SKIPPED, ' + reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
