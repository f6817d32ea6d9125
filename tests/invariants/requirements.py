"""The requirements of the API, of hosts' identities and of ingest, each with tests that hold it.

Their texts are short here: an identifier's first words. What is of later work is said so, with what
is missing; it is then required to have no test that claims it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """What must hold, and the tests that show it. `later`: what is still to be built of it."""

    text: str
    tests: tuple[str, ...]
    later: str = ""


_APP, _DSM = "tests/app/test_", "tests/app/dsm/test_"
_INGEST, _NODE = "tests/ingest/test_", "tests/supervisor/test_"
_SERVICE = "tests/integration/test_service.py::"

REQUIREMENTS: dict[str, Requirement] = {
    "CP1": Requirement(
        "the tenant comes from the principal alone; another's object is as an absent one",
        (
            f"{_APP}isolation.py::test_another_tenant_s_object_is_as_absent_as_an_absent_one",
            f"{_APP}isolation.py::test_nothing_of_another_tenant_is_in_any_answer",
            f"{_APP}walls.py::test_a_foreign_object_takes_as_long_as_an_absent_one",
            f"{_APP}walls.py::test_a_foreign_object_takes_as_many_queries_as_an_absent_one",
            f"{_APP}probes.py::test_probes_across_tenants",
        ),
    ),
    "CP2": Requirement(
        "a route without a privilege does not start",
        (
            f"{_APP}isolation.py::test_every_route_is_in_the_matrix",
            f"{_APP}walls.py::test_a_route_that_names_no_privilege_does_not_start",
            f"{_APP}isolation.py::test_whoever_lacks_a_privilege_is_told_which",
        ),
    ),
    "CP3": Requirement(
        "unknown fields and fields of the server are refused",
        (
            f"{_APP}walls.py::test_no_body_takes_a_field_that_is_not_its_own",
            f"{_APP}sites.py::test_bad_fields_are_named",
            f"{_APP}fuzz.py::test_no_operation_answers_what_it_does_not_say",
        ),
    ),
    "CP4": Requirement(
        "row-level security is the second wall",
        (
            f"{_APP}service.py::test_the_database_s_wall_stands_for_every_table_and_verb",
            f"{_APP}isolation.py::test_without_both_walls_the_matrix_sees_the_leak",
        ),
    ),
    "CP5": Requirement(
        "a pooled connection carries nothing of who had it before",
        (f"{_APP}walls.py::test_two_tenants_on_one_connection_stay_apart",),
    ),
    "CP6": Requirement(
        "people and machines come in by what cannot be guessed, replayed or forged",
        (
            f"{_APP}users.py::test_a_person_logs_in_works_and_logs_out",
            f"{_APP}users.py::test_every_wrong_login_has_the_same_answer",
            f"{_APP}users.py::test_a_session_ends_when_idle_and_for_good_after_a_day_s_work",
            f"{_APP}isolation.py::test_who_has_no_token_or_the_wrong_kind_gets_the_same_refusal",
        ),
    ),
    "CP7": Requirement(
        "what destroys history waits and can be called back; what protects never waits",
        (
            f"{_APP}plans.py::test_a_journal_is_destroyed_only_after_its_group_and_its_delay",
            f"{_APP}plans.py::test_shorter_history_waits_and_can_be_cancelled",
        ),
    ),
    "CP8": Requirement(
        "one effect for each Idempotency-Key",
        (
            f"{_APP}sites.py::test_a_repeat_with_the_same_key_has_one_effect",
            f"{_APP}admission.py::test_a_hundred_repeats_at_once_have_one_effect",
            f"{_APP}provider_keys.py::test_each_mutating_route_answers_a_repeat_by_its_record",
            f"{_APP}provider_keys.py::test_what_broke_off_after_its_effect_is_not_done_again",
        ),
    ),
    "CP9": Requirement(
        "bodies, depths, pages, rates and waits have limits",
        (
            f"{_APP}admission.py::test_a_flood_is_refused_with_a_time_to_wait",
            f"{_APP}admission.py::test_who_did_not_come_in_uses_up_nothing",
            f"{_APP}depth.py::test_a_body_that_is_too_deep_or_too_large_harms_nobody",
            f"{_APP}protocol.py::test_slow_heads_are_let_go_and_others_are_served",
            f"{_APP}protocol.py::test_a_body_that_does_not_come_is_not_waited_for",
        ),
    ),
    "CP10": Requirement(
        "an error is a problem document and shows nothing of the inside",
        (
            f"{_APP}service.py::test_every_error_is_a_problem_of_the_catalogue",
            f"{_APP}service.py::test_a_defect_shows_its_request_s_id_and_nothing_else",
        ),
    ),
    "CP11": Requirement(
        "the audit log is only added to, and a change of it is seen",
        (
            f"{_APP}service.py::test_a_tampered_audit_log_does_not_verify",
            f"{_APP}sites.py::test_a_reader_misses_none_of_ten_thousand_events",
        ),
        later="its head in a locked bucket each day",
    ),
    "CP12": Requirement(
        "no ambiguous HTTP, no stranger's word on who calls",
        (
            f"{_APP}protocol.py::test_an_ambiguous_request_is_refused_and_nothing_behind_it_is_read",
            f"{_APP}protocol.py::test_control_a_lenient_server_answers_some_of_them",
            f"{_APP}protocol.py::test_only_a_configured_proxy_says_who_calls",
        ),
    ),
    "CP13": Requirement(
        "one description of the API, without an undocumented route",
        (
            f"{_APP}contract.py::test_the_description_has_no_warning",
            f"{_APP}isolation.py::test_every_route_is_in_the_matrix",
        ),
    ),
    "CP14": Requirement(
        "no secret is in what the service says or is started with",
        (
            f"{_APP}secrets_stay.py::test_no_secret_is_in_what_the_service_says",
            f"{_APP}service.py::test_a_secret_is_shown_once",
        ),
    ),
    "EN1": Requirement(
        "a join token works once, for minutes, for one certificate request",
        (
            f"{_APP}hosts.py::test_of_64_uses_of_a_token_at_once_one_counts",
            f"{_APP}hosts.py::test_every_bad_token_has_the_same_answer",
        ),
    ),
    "EN2": Requirement(
        "a host believes the root that its token pins, before it sends anything",
        (
            f"{_APP}enrol.py::test_nothing_is_sent_to_a_service_that_the_token_does_not_pin",
            f"{_APP}enrol.py::test_a_false_service_gets_no_certificate_request",
        ),
    ),
    "EN3": Requirement(
        "the key is the host's own; what a request asks for besides it is ignored",
        (
            f"{_APP}hosts.py::test_a_bad_request_is_refused_and_its_token_stays",
            f"{_APP}hosts.py::test_what_a_request_asks_for_besides_its_key_is_ignored",
        ),
    ),
    "EN4": Requirement(
        "a tenant's intermediate opens that tenant's doors alone",
        (
            f"{_DSM}door.py::test_only_a_leaf_of_the_tenant_that_its_name_claims_comes_in",
            f"{_NODE}door.py::test_strangers_are_refused_before_a_byte",
        ),
    ),
    "EN5": Requirement(
        "certificates live a day and renew themselves; days without renewal lose nothing",
        (
            f"{_APP}hosts.py::test_thirty_renewals_over_the_clock_and_one_in_the_grace",
            "tests/agent/test_tenants.py::test_certificates_renew_themselves_and_doctor_looks",
            "tests/integration/test_three_days.py"
            "::test_replication_goes_on_and_who_was_shut_out_stays_out",
        ),
    ),
    "EN6": Requirement(
        "who is shut out loses open connections and does not come back",
        (
            f"{_DSM}door.py::test_a_revoked_host_s_live_connection_ends_and_it_does_not_come_back",
            f"{_NODE}control.py::test_what_a_node_is_told_holds_at_once_and_is_kept",
        ),
    ),
    "EN7": Requirement(
        "one identity used twice is noticed, and neither writes wrong bytes",
        (
            "tests/agent/test_whole_host.py"
            "::test_a_copied_state_directory_run_twice_stops_one_of_them",
            "tests/agent/test_whole_host.py"
            "::test_a_cloned_host_fences_the_first_and_neither_writes_wrong_bytes",
            f"{_DSM}door.py::test_one_identity_on_two_machines_is_told",
        ),
    ),
    "EN8": Requirement(
        "TLS 1.3 alone, our protocol alone, no session that lets anybody in again",
        (
            f"{_DSM}door.py::test_an_old_version_of_tls_is_refused",
            f"{_DSM}door.py::test_no_session_lets_anybody_in_again",
            f"{_NODE}door.py::test_a_ticket_opens_no_door",
            f"{_INGEST}door.py::test_stranger_is_refused_before_a_byte",
            "tests/agent/test_link.py::test_only_a_server_that_is_the_right_one_is_spoken_to",
        ),
    ),
    "EN9": Requirement(
        "a client's certificate is checked in the process that uses it",
        (
            f"{_DSM}door.py::test_a_process_is_one_only_by_the_root_s_own_word",
            f"{_NODE}door.py::test_unknown_names_are_closed_without_a_byte",
        ),
    ),
    "EN10": Requirement(
        "agent and tap have no rights that they do not need, and no listening port",
        (
            "tests/infra/test_units.py::test_services_have_no_rights_that_they_do_not_need",
            "tests/integration/test_three_days.py"
            "::test_replication_goes_on_and_who_was_shut_out_stays_out",
        ),
        later="signed packages of the agent",
    ),
    "IN1": Requirement(
        "a frame belongs to the session's own stream, which is checked before memory is taken",
        (
            f"{_INGEST}hostile.py::test_bent_message_ends_the_session_by_name",
            f"{_INGEST}door.py::test_certificate_does_not_open_other_streams",
        ),
    ),
    "IN2": Requirement(
        "limits before trust",
        (
            f"{_INGEST}hostile.py::test_malformed_messages_beside_healthy_streams",
            f"{_INGEST}door.py::test_connections_that_never_finish_their_handshake_are_bounded",
            f"{_INGEST}simulated.py::test_hello_must_come_within_five_seconds",
            f"{_NODE}door.py::test_a_flood_of_silent_connections_leaves_the_door_open_to_others",
            "tests/wire/test_seal.py::test_decompression_is_bounded_before_memory_is_taken",
        ),
    ),
    "IN3": Requirement(
        "a process for each tenant, with nothing of another's",
        (
            f"{_NODE}alone.py::test_no_process_has_a_secret_of_another_tenant_in_its_memory",
            f"{_APP}datanodes.py::test_a_tenant_s_own_credential_goes_to_its_record_alone",
        ),
        later="a user and a control group of its own for each; credentials by session policy",
    ),
    "IN4": Requirement(
        "the parser is a fixed layout, and total",
        (
            "tests/wire/test_messages.py::test_body_is_total",
            "tests/wire/test_golden.py::test_fuzzing_finds_nothing",
        ),
    ),
    "IN5": Requirement(
        "a tenant's quota is told to its agents and held against those that do not mind it",
        (
            f"{_NODE}noisy_neighbour.py"
            "::test_a_tenant_that_saturates_its_quota_does_not_delay_another",
            f"{_NODE}noisy_neighbour.py::test_control_without_a_quota_the_same_agents_take_more",
            f"{_APP}datanodes.py::test_a_tenant_s_rate_reaches_its_record",
            f"{_APP}vpgs.py::test_a_plan_s_limits_hold",
        ),
        later="retained bytes",
    ),
    "IN6": Requirement(
        "garbage cannot roll good checkpoints out early",
        (),
        later="an alert of the analyser's, locks",
    ),
    "B1": Requirement(
        "each process of one site is killed in turn: no loss, states agree again",
        (f"{_SERVICE}test_each_process_may_die_while_hosts_write",),
    ),
    "C1": Requirement(
        "every route for own, other tenants, nobody and the provider",
        (
            f"{_APP}isolation.py::test_every_route_is_in_the_matrix",
            f"{_APP}isolation.py::test_who_has_no_token_or_the_wrong_kind_gets_the_same_refusal",
        ),
    ),
    "C2": Requirement(
        "one tenant's credential with another's stream, at the agent and at ingest",
        (
            f"{_NODE}door.py::test_strangers_are_refused_before_a_byte",
            "tests/agent/test_tenants.py::test_two_tenants_on_one_host_are_apart",
        ),
    ),
    "C3": Requirement(
        "at rest nothing of one tenant opens with another's keys",
        (
            "tests/wire/test_keys.py::test_another_tenants_key_opens_nothing",
            f"{_APP}key_service.py::test_nothing_of_one_tenant_opens_with_anothers_keys",
        ),
    ),
    "C4": Requirement(
        "a manager's hosts are those that run its machines",
        (f"{_DSM}managing.py::test_from_an_inventory_to_checkpoints_of_a_protected_group",),
    ),
    "C5": Requirement(
        "one tenant saturates its quota, another's RPO stays within policy",
        (
            f"{_NODE}noisy_neighbour.py"
            "::test_a_tenant_that_saturates_its_quota_does_not_delay_another",
        ),
    ),
}
