"""After the loss: by the service, then against a stranger, then with nothing but bucket and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.demo.host import Seat
from infra.demo.judge import Judge, Moment, traces
from infra.demo.ledger import LedgerReport
from infra.demo.machine import Machine, Source
from infra.demo.notebook import last_page
from infra.demo.recovery import Safe, file_digest, folder_digest
from infra.demo.service import Tenant
from infra.demo.stranger import Intrusion, Side
from infra.demo.world import MACHINE, World, Written


@dataclass(frozen=True)
class Before:
    """What was known before the loss: the checkpoints, when the damage began (ns), and how many
    commits had been acknowledged then."""

    moments: Sequence[Moment]
    before: str
    after: str
    damage_at: int
    acknowledged_at_damage: int

    @property
    def moment(self) -> Moment:
        """The checkpoint before the damage."""
        return next(one for one in self.moments if one.tag == self.before)


class Aftermath:
    """The steps after the loss. `is_insider`: the stranger is the owner, which must be noticed."""

    def __init__(self, world: World, before: Before, *, is_insider: bool) -> None:
        self._world, self._before, self._is_insider = world, before, is_insider
        self._report = world.report
        self._judge = Judge(world.report)

    def run(self) -> None:
        """All of them, in order; DemoFailed."""
        self._recover_by_service()
        self._recover_notes()
        self._let_stranger_try()
        self._lose_service()
        self._recover_last_moment()
        self._show_damage()

    # --- while the service runs

    def _recover_by_service(self) -> None:
        world, moment = self._world, self._before.moment
        with self._report.step(f"Bring checkpoint '{moment.tag}' back on the shared host"):
            seat = world.acme_shared
            image = seat.restore(world.ledger, f"tag:{moment.tag}", MACHINE)
            self._digest = file_digest(image)
            self._judge.file_system(image)
            machine = self._start("recovered", Source(file=image))
            found = self._judge.database(machine, moment.acknowledged_before)
            if found is not None:
                self._judge.nothing_later(found, moment)
                self._judge.orderly_end(machine)
            machine.lose()
            self._report.facts["restore"] = {
                "selector": f"tag:{moment.tag}",
                "to": list(seat.target),
                "sha256": self._digest,
                "transactions": found.last if found else None,
                "acknowledged_before_checkpoint": moment.acknowledged_before,
            }

    def _start(self, name: str, source: Source) -> Machine:
        machine = self._world.make_machine(name)
        machine.start(source)
        return machine

    def _recover_notes(self) -> None:
        with self._report.step("Bring back what both tenants wrote beside it"):
            for one in self._world.written:
                self._recover_one(one)

    def _recover_one(self, one: Written) -> None:
        one.notebook.require()
        image = one.seat.restore(one.its_group, f"tag:{self._before.before}", one.machine)
        last = last_page(one.notebook.secret, image.read_bytes())
        at_least, at_most = one.noted
        self._report.check(
            f"{one.machine} of {one.seat.tenant.name} is as it was: page {at_least} was written,"
            f" {last} is the newest",
            last is not None and at_least <= last <= at_most + 1,
            acknowledged=at_least,
            found=last,
        )

    def _let_stranger_try(self) -> None:
        world = self._world
        with self._report.step("Globex tries everything that Acme has, with its own key"):
            acme = Side.of(world.acme, world.acme_shared.certificate)
            globex = Side.of(world.globex, world.at_globex.certificate)
            stranger = acme if self._is_insider else globex
            intrusion = Intrusion(acme, stranger, self._report)
            intrusion.check_api()
            intrusion.check_doors()
            secret, other = (world.of(one).notebook.secret for one in (world.acme, world.globex))
            seats = self._seats(stranger.tenant)
            files = [one for seat in seats for one in seat.path.rglob("*") if one.is_file()]
            intrusion.check_secret([secret.encode()], files)
            self._report.check(
                "and the other tenant was given its own",
                any(other.encode() in one.read_bytes() for one in files),
            )

    def _seats(self, tenant: Tenant) -> list[Seat]:
        """Where the tenant has folders on hosts that are left."""
        world = self._world
        seats = (world.acme_shared, world.globex_shared, world.at_globex)
        return [seat for seat in seats if seat.tenant is tenant]

    # --- when it is gone as well

    def _lose_service(self) -> None:
        world, moment = self._world, self._before.moment
        with self._report.step("Lose the service and every host; bucket and key are enough"):
            key = world.folder / "acme.recovery.key"
            words = ("--tenant-name", world.acme.name, "--reason", "for the safe")
            world.acme.run("keys", "export-recovery", *words, "--output", key.name)
            world.stop_all()
            self._report.check("nothing of it runs", not world.processes.running())
            objects, size, self._bucket_digest = folder_digest(world.service.bucket)
            self._report.facts["journal"] = {"objects": objects, "bytes": size}
            self._report.say(f"Left: {objects} objects ({size / 1e6:.1f} MB) and {key.name}")
            self._safe = Safe(
                world.service.store, key, world.processes, world.acme.id, world.ledger.id
            )
            self._list()
            exported = self._safe.export(f"tag:{moment.tag}", world.folder / "exported")
            self._report.check(
                "the exported disk is the one that the service brought back, bit for bit",
                file_digest(exported.image) == self._digest,
            )
            self._report.facts["export"] = {
                "selector": f"tag:{moment.tag}",
                "seconds": round(exported.seconds, 2),
            }

    def _list(self) -> None:
        found = str(self._safe.points())
        self._report.facts["checkpoints"] = [vars(one) for one in self._before.moments]
        for moment in self._before.moments:
            self._report.check(f"checkpoint '{moment.tag}' is offered", moment.tag in found)

    def _recover_last_moment(self) -> None:
        at = _rfc3339(self._before.damage_at)
        acknowledged = self._before.acknowledged_at_damage
        with self._report.step("Serve the disk as it was when the damage began"):
            served = self._safe.serve(f"time:{at}", self._world.folder / "served")
            self._report.say(f"Ready after {served.seconds:.1f} s: {served.uri}")
            machine = self._start("served", Source(uri=served.uri))
            found = self._judge.database(machine, acknowledged)
            if found is not None:
                self._judge.goes_on(machine, found)
                self._judge.orderly_end(machine)
            machine.lose()
            served.process.stop()
            self._report.facts["serve"] = {
                "selector": f"time:{at}",
                "ready_seconds": round(served.seconds, 2),
                "transactions": found.last if found else None,
                "acknowledged_before_damage": acknowledged,
            }
            self._tell_rpo(found)

    def _tell_rpo(self, found: LedgerReport | None) -> None:
        acknowledged = self._before.acknowledged_at_damage
        lost = acknowledged - found.last if found else None
        rpo = self._report.facts["rpo"]
        rpo["lost_at_the_moment_of_damage"] = None if lost is None else max(0, lost)
        rpo["after_checkpoint"] = acknowledged - self._before.moment.acknowledged_before
        self._report.say(
            f"RPO shown before the damage: {rpo['shown_seconds']} s. Commits lost by going back to"
            f" the damage's first instant: {rpo['lost_at_the_moment_of_damage']}; by going back to"
            f" the checkpoint: at most {rpo['after_checkpoint']}"
        )

    def _show_damage(self) -> None:
        after = self._before.after
        with self._report.step(f"Control: '{after}' does contain the damage"):
            served = self._safe.serve(f"tag:{after}", self._world.folder / "damaged")
            machine = self._start("control", Source(uri=served.uri))
            files = traces(machine)
            code, _ = machine.ask("ready")
            self._report.check("after the damage, the damage is there", files > 0, files=files)
            self._report.check("after the damage, the database does not start", code != 0)
            machine.lose()
            served.process.stop()
            unchanged = folder_digest(self._world.service.bucket)[2] == self._bucket_digest
            self._report.check("recovering wrote nothing into the bucket", unchanged)


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
