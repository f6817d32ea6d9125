"""The verbs `enrol`, `renew` and `doctor` of the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from host_agent.control.enrol import EnrolmentFailed, Identity, enrol, renew

_DIRECTORY = "/etc/holdfast/identity"


def add_identity_verbs(verbs: Any) -> None:
    """`enrol`, `renew` and `doctor`: they need no configuration and no running agent."""
    joins = verbs.add_parser("enrol", help="make this machine a host of a tenant")
    joins.add_argument("--api", metavar="URL", required=True, help="https://NAME[:PORT]")
    joins.add_argument(
        "--token-file",
        metavar="FILE",
        required=True,
        help="the join token; - reads it from standard input, so that no list of processes has it",
    )
    joins.set_defaults(run=_enrol)
    renews = verbs.add_parser("renew", help="renew this host's certificate by its key")
    renews.set_defaults(run=_renew)
    looks = verbs.add_parser("doctor", help="look at everything between this host and its service")
    looks.set_defaults(run=_doctor)
    for verb in (joins, renews, looks):
        names = ("--directory", "--identity")
        verb.add_argument(*names, metavar="DIR", default=_DIRECTORY, help=_DIRECTORY)
        verb.add_argument("--json", action="store_true", help="print one JSON object")


def _enrol(given: argparse.Namespace) -> int:
    return _show(given, enrol(given.api, _token(given.token_file), Path(given.directory)))


def _renew(given: argparse.Namespace) -> int:
    return _show(given, renew(Path(given.directory)))


def _doctor(given: argparse.Namespace) -> int:
    # It brings the whole agent along, which the other verbs here do without.
    from host_agent.control.doctor import run_doctor

    return run_doctor(Path(given.directory), as_one_object=given.json)


def _token(file: str) -> str:
    if file == "-":
        return sys.stdin.readline()
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise EnrolmentFailed(f"{file} cannot be read: {reason}.", hint="Name a file.") from None


def _show(given: argparse.Namespace, identity: Identity) -> int:
    shown = identity.shown
    if given.json:
        print(json.dumps(shown))
        return 0
    print(f"This machine is {shown['host_id']} of tenant {shown['tenant_id']}.")
    print(f"  certificate and key  {shown['certificate_file']}")
    print(f"  believes servers by  {shown['ca_file']}")
    print(f"  valid until          {shown['expires_at']}; renew at {shown['renew_at']}")
    return 0
