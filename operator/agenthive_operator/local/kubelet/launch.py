"""Becomes a container's program: drops the account, makes sure to die with the kubelet, then replaces itself.

Run as a script by the isolated interpreter (``python -I -S launch.py PARENT UID GID PROGRAM ARGV0 [ARG …]``; ``-``
for no account), so that the kubelet never runs Python code between fork and exec. Imports nothing of this project.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Replace this process by the program; returns only by an exception."""
    parent, uid, gid, program, *arguments = argv
    # Before the change of account: it may not reach this interpreter's files.
    libc = None
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed elsewhere

        libc = ctypes.CDLL(None)
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    if libc is not None:
        # After the change of account, which clears it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit("the kubelet died while this process started")
    # Python ignores these; a program must start with the defaults.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(program, arguments)  # noqa: S606 - the point of this module
    except OSError as error:
        sys.stderr.write(f"exec {program}: {error.strerror}\n")
        sys.exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
