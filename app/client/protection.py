"""Calls about what is protected: machines, groups, checkpoints, operations, alerts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from app.alerts.schemas import AlertOutput
from app.checkpoints.schemas import CheckpointInput, CheckpointOutput, PinInput, TimelineOutput
from app.client.client import Client
from app.machines.schemas import LabelsInput, MachineOutput
from app.operations.schemas import OperationOutput
from app.operations.state import UNFINISHED
from app.profiles.schemas import ProfileInput, ProfileOutput
from app.vpgs.planning_schemas import ApplyInput, ConfirmInput, PlanInput, PlanOutput
from app.vpgs.schemas import (
    ForceSyncInput,
    MemberInput,
    MemberList,
    MemberOutput,
    VpgChange,
    VpgInput,
    VpgOutput,
    VpgWhole,
)

_POLL_SECONDS = 0.5


class Protection(Client):
    """As Client, with what is protected."""

    # --- machines

    def list_machines(self, **filters: Any) -> Iterator[MachineOutput]:
        """Those that hosts have or had; filters as GET /v1/machines has them."""
        return self._pages("/v1/machines", MachineOutput, filters)

    def get_machine(self, machine_id: str) -> MachineOutput:
        """One of them."""
        return self._send("GET", f"/v1/machines/{machine_id}", MachineOutput)

    def label_machine(self, machine_id: str, labels: dict[str, str]) -> MachineOutput:
        """Give it these labels and no others, whatever it had."""
        body = LabelsInput.model_construct(labels=labels)
        path = f"/v1/machines/{machine_id}"
        version = self._call("GET", path).headers["etag"]
        answer = self._call("PUT", f"{path}/labels", body, headers={"if-match": version})
        return MachineOutput.model_validate_json(answer.content)

    # --- groups

    def list_vpgs(self, **filters: Any) -> Iterator[VpgOutput]:
        """All that are not removed; filters as GET /v1/vpgs has them."""
        return self._pages("/v1/vpgs", VpgOutput, filters)

    def create_vpg(self, wanted: VpgInput) -> VpgOutput:
        """A new one."""
        return self._send("POST", "/v1/vpgs", VpgOutput, wanted)

    def get_vpg(self, vpg_id: str) -> VpgOutput:
        """What is wanted of it and what is known of it."""
        return self._send("GET", f"/v1/vpgs/{vpg_id}", VpgOutput)

    def replace_vpg(self, vpg_id: str, wanted: VpgChange) -> VpgOutput:
        """Give it these settings, whatever it had."""
        answer = self._change("PUT", f"/v1/vpgs/{vpg_id}", wanted)
        return VpgOutput.model_validate_json(answer.content)

    def put_vpg(self, name: str, wanted: VpgWhole) -> VpgOutput:
        """Make or change the group of this name, so that it is as it is written."""
        there = next(self.list_vpgs(name=name), None)
        headers = {}
        if there is not None:
            headers["if-match"] = self._call("GET", f"/v1/vpgs/{there.id}").headers["etag"]
        answer = self._call("PUT", f"/v1/vpgs/by-name/{name}", wanted, headers=headers)
        return VpgOutput.model_validate_json(answer.content)

    def list_vpg_machines(self, vpg_id: str) -> list[MemberOutput]:
        """The machines of a group."""
        return self._send("GET", f"/v1/vpgs/{vpg_id}/machines", MemberList).items

    def add_vpg_machine(self, vpg_id: str, wanted: MemberInput) -> list[MemberOutput]:
        """Take a machine into a group."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}/machines", MemberList, wanted).items

    def pause_vpg(self, vpg_id: str) -> VpgOutput:
        """Stop sending."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:pause", VpgOutput)

    def resume_vpg(self, vpg_id: str) -> VpgOutput:
        """Go on sending."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:resume", VpgOutput)

    def force_sync(self, vpg_id: str, wanted: ForceSyncInput) -> OperationOutput:
        """Read disks again."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:force-sync", OperationOutput, wanted)

    def delete_vpg(self, vpg_id: str) -> OperationOutput:
        """End its protection as it is now; its journal stays."""
        path = f"/v1/vpgs/{vpg_id}"
        version = self._call("GET", path).headers["etag"]
        answer = self._call("POST", f"{path}:delete", headers={"if-match": version})
        return OperationOutput.model_validate_json(answer.content)

    def plan_vpg(self, vpg_id: str, wanted: PlanInput) -> PlanOutput:
        """What a change would do."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:plan", PlanOutput, wanted)

    def apply_plan(self, vpg_id: str, wanted: ApplyInput) -> OperationOutput:
        """Do what a plan says."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:apply", OperationOutput, wanted)

    def destroy_journal(self, vpg_id: str, wanted: ConfirmInput) -> OperationOutput:
        """Destroy what is stored of a removed group, after the delay."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:destroy-journal", OperationOutput, wanted)

    # --- checkpoints

    def list_checkpoints(self, vpg_id: str, **filters: Any) -> Iterator[CheckpointOutput]:
        """The newest first; filters as the route has them."""
        return self._pages(f"/v1/vpgs/{vpg_id}/checkpoints", CheckpointOutput, filters)

    def take_checkpoint(self, vpg_id: str, wanted: CheckpointInput) -> OperationOutput:
        """Ask for one with a tag."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}/checkpoints", OperationOutput, wanted)

    def get_checkpoint(self, vpg_id: str, checkpoint_id: str) -> CheckpointOutput:
        """One of them."""
        path = f"/v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}"
        return self._send("GET", path, CheckpointOutput)

    def pin_checkpoint(self, vpg_id: str, checkpoint_id: str, wanted: PinInput) -> CheckpointOutput:
        """Keep it beyond the history window."""
        path = f"/v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}:pin"
        return self._send("POST", path, CheckpointOutput, wanted)

    def unpin_checkpoint(self, vpg_id: str, checkpoint_id: str) -> CheckpointOutput:
        """Keep it no longer."""
        path = f"/v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}:unpin"
        return self._send("POST", path, CheckpointOutput)

    def get_timeline(
        self, vpg_id: str, begin: datetime | None, end: datetime | None, buckets: int
    ) -> TimelineOutput:
        """A picture of its checkpoints."""
        span = {"from": begin, "to": end}
        query = {name: moment.isoformat() for name, moment in span.items() if moment is not None}
        path = f"/v1/vpgs/{vpg_id}/timeline"
        return self._send("GET", path, TimelineOutput, query={**query, "buckets": buckets})

    # --- operations

    def list_operations(self, **filters: Any) -> Iterator[OperationOutput]:
        """All of them; filters as GET /v1/operations has them."""
        return self._pages("/v1/operations", OperationOutput, filters)

    def get_operation(self, operation_id: str) -> OperationOutput:
        """How far it is, how it came out."""
        return self._send("GET", f"/v1/operations/{operation_id}", OperationOutput)

    def cancel_operation(self, operation_id: str) -> OperationOutput:
        """End it, or ask it to stop."""
        return self._send("POST", f"/v1/operations/{operation_id}:cancel", OperationOutput)

    def follow_operation(
        self, operation_id: str, seen: Callable[[OperationOutput], None]
    ) -> OperationOutput:
        """Wait for its end; `seen` hears of each change."""
        last: OperationOutput | None = None
        while True:
            now = self.get_operation(operation_id)
            if now != last:
                seen(now)
            if now.state not in UNFINISHED:
                return now
            last = now
            time.sleep(_POLL_SECONDS)

    # --- service profiles

    def list_service_profiles(self) -> Iterator[ProfileOutput]:
        """All of them."""
        return self._pages("/v1/service-profiles", ProfileOutput)

    def create_service_profile(self, wanted: ProfileInput) -> ProfileOutput:
        """A new one."""
        return self._send("POST", "/v1/service-profiles", ProfileOutput, wanted)

    def delete_service_profile(self, service_profile_id: str) -> None:
        """Remove it as it is now."""
        self._change("DELETE", f"/v1/service-profiles/{service_profile_id}")

    # --- alerts

    def list_alerts(self, **filters: Any) -> Iterator[AlertOutput]:
        """All of them; filters as GET /v1/alerts has them."""
        return self._pages("/v1/alerts", AlertOutput, filters)

    def acknowledge_alert(self, alert_id: str) -> AlertOutput:
        """Say that somebody knows."""
        return self._send("POST", f"/v1/alerts/{alert_id}:acknowledge", AlertOutput)
