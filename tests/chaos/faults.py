"""Which faults are injected, by which tests and harnesses; the table of docs/reliability.md.

    python -m tests.chaos.faults --write docs/reliability.md

tests/unit/test_faults.py compares the table with this list, and looks for every test.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

START = "<!-- written by: python -m tests.chaos.faults --write docs/reliability.md -->"
END = "<!-- end of the faults -->"


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    number: int
    injected: str
    result: str
    """What must come of it."""
    tests: tuple[str, ...] = ()
    """`file::test` below `tests/`."""
    runs: tuple[str, ...] = ()
    """Harnesses of `make chaos`, with what they are asked for."""


FAULTS = (
    Fault(
        1,
        "SIGKILL of a scoring job's driver, 20 times at random moments",
        "no row lost or doubled; each start commits something; a kill costs at most one chunk an "
        "actor",
        (
            "unit/archive/test_run.py::test_a_killed_driver_loses_no_commit_and_blocks_nobody",
            "unit/archive/test_run.py::test_a_crash_at_any_step_of_a_commit",
        ),
        ("kill_runs", "many_rows"),
    ),
    Fault(
        2,
        "SIGKILL of scoring actors; SIGSTOP of one for a minute",
        "no row lost or doubled; the other actors go on, and so does the stopped one; no death is "
        "counted",
        ("integration/test_score.py::test_a_killed_actor_costs_nothing",),
        ("kill_runs", "fault_runs --only stopped"),
    ),
    Fault(
        3,
        "a row that ends its worker by SIGSEGV, abort, or SIGKILL as when memory is short; one "
        "that asks for more than RLIMIT_AS; a decoder that dies",
        "at most 3 workers a row, then that row is quarantined, and no other; the job ends",
        (
            "integration/test_score.py::test_crashing_rows_are_quarantined_and_no_other_row",
            "unit/on_ray/test_supervisor.py::test_a_crashing_row_costs_three_workers_and_no_other_row",
            "unit/data/test_decode_child.py::test_killed_twice_on_one_image",
            "unit/data/test_decode_child.py::test_memory_limit",
        ),
        ("fault_runs --only rows", "kill_runs"),
    ),
    Fault(
        4,
        "SIGKILL of a training worker and of the driver, within saves and between; a save killed "
        "at 50 byte offsets and before each call of the system; SIGTERM; a node that is taken away",
        "the last whole checkpoint is found and loads; the final weights equal an undisturbed "
        "run's bit for bit",
        (
            "unit/training/test_cut_saves.py::test_a_save_that_is_killed_at_any_byte_costs_that_save_alone",
            "unit/training/test_cut_saves.py::test_a_save_that_is_killed_at_any_call_costs_that_save_alone",
            "unit/training/test_updates.py::test_a_node_that_is_about_to_go_saves_once_and_goes_on",
            "integration/test_train_ends.py::test_ctrl_c_and_sigterm_save_and_the_same_line_goes_on",
        ),
        ("kill_train",),
    ),
    Fault(
        5,
        "SIGKILL of replicas under 20 clients, of Serve's controller and of its proxy; a replica "
        "that stands still; one that cannot load its model",
        "answers, or 429 and 503 with Retry-After; no answer is another one; a stuck replica is "
        "replaced within 60 s; the proxy's open connections break, and it answers again; a model "
        "that does not load ends `medv serve` with its code",
        (
            "integration/test_serve.py::test_lost_replicas_cost_no_request",
            "unit/on_ray/test_front.py::test_lost_before_anything_was_sent",
            "unit/on_ray/test_front.py::test_lost_in_the_middle_of_a_stream",
            "unit/on_ray/test_endpoint.py::test_the_cause_is_named_and_nothing_else_of_the_stack",
            "unit/serving/test_scheduler.py::test_a_step_that_is_stuck_is_seen",
        ),
        ("serve_runs --only kills --only stuck", "fault_runs --only servers"),
    ),
    Fault(
        6,
        "SIGKILL of the raylet and of the head's server; of one of two nodes, and of the head of a "
        "cluster; of a node that the autoscaler had started; of a node in the middle of training",
        "without the node the job goes on, and so does elastic training, with the workers that are "
        "left; without a head it ends; the same command goes on",
        ("integration/test_ends.py::test_every_end_is_told_in_a_line_and_costs_no_row",),
        (
            "fault_runs --only nodes",
            "autoscale --only lost --only head --only train",
        ),
    ),
    Fault(
        7,
        "a full disk (a tmpfs of 400 kB, at every size of the room that is left), an input or "
        "output error, and a disk that is read-only, at every call: under rows, ledger, log, "
        "checkpoint, curves, audit log; fsync and rename that fail; no room for Ray's own folder",
        "exit code 5 with E1503, or E1511; no torn file is visible; the same command goes on",
        (
            "unit/archive/test_disk_faults.py::test_a_disk_that_fails_at_any_call",
            "unit/archive/test_disk_faults.py::test_a_disk_that_is_full_at_any_size",
            "unit/archive/test_disk_faults.py::test_a_disk_that_becomes_read_only",
            "unit/archive/test_store.py::test_a_full_disk_is_named_with_the_missing_bytes",
            "unit/archive/test_store.py::test_a_job_that_fills_the_disk_resumes_when_there_is_room",
            "unit/archive/test_store.py::test_a_crash_while_writing_leaves_the_old_file",
            "unit/archive/test_ledger.py::test_a_full_disk_leaves_the_ledger_as_it_was",
            "unit/archive/test_parquet.py::test_a_failing_disk_is_not_taken_for_a_damaged_file",
            "unit/training/test_disk_faults.py::test_a_disk_that_is_full_at_any_size_of_a_save",
            "unit/training/test_disk_faults.py::test_a_disk_that_does_not_keep_what_it_took",
            "unit/training/test_updates.py::test_an_error_of_one_workers_disk_is_the_same_on_both",
            "unit/training/test_watch.py::test_a_full_disk_under_the_curves_ends_the_run",
            "unit/training/test_watch.py::test_a_line_that_the_disk_takes_in_pieces_is_whole_or_the_last",
            "unit/on_ray/test_train.py::test_a_full_disk_under_the_driver_is_told",
            "unit/serving/test_audit.py::test_a_disk_that_fills_up",
            "integration/test_score.py::test_a_full_disk_under_an_actor",
            "integration/test_score.py::test_a_full_disk_under_the_driver",
        ),
        ("fault_runs --only disk",),
    ),
    Fault(
        8,
        "storage that takes its time with each call; an object store that answers 503 to 30 % of "
        "all requests, does not show new objects in listings, or fails at any one call; a PACS "
        "that is busy",
        "time alone; or E1511, and the same command goes on; no row lost or doubled, none "
        "quarantined",
        (
            "unit/archive/test_disk_faults.py::test_slow_storage_costs_time_alone",
            "unit/archive/test_store_faults.py::test_a_third_of_all_requests_is_refused",
            "unit/archive/test_store_faults.py::test_new_objects_that_listings_do_not_show_yet",
            "unit/archive/test_store_faults.py::test_a_part_that_listings_do_not_show_yet_is_not_called_missing",
            "unit/archive/test_store_faults.py::test_a_lock_is_kept_where_listings_are_late",
            "unit/archive/test_trouble.py::test_trouble_at_any_call_is_told_cleanly_and_quarantines_nothing",
            "unit/archive/test_trouble.py::test_a_run_folder_that_does_not_answer",
            "unit/dicomweb/test_client.py::test_what_passes_is_tried_again",
        ),
    ),
    Fault(
        9,
        "clients that send or read slowly, stand still, or leave in the middle",
        "408 for the slow sender; nobody else waits; what a client left is not computed any more",
        (
            "unit/serving/test_guard.py::test_a_body_may_not_take_for_ever",
            "unit/serving/test_guard.py::test_slow_and_broken_senders_over_a_socket",
            "unit/serving/test_stream.py::test_a_stream_that_nobody_reads_is_not_held_in_the_way",
            "unit/serving/test_stream.py::test_who_leaves_frees_the_engine",
            "integration/test_serve.py::test_who_leaves_is_not_computed_for",
        ),
        ("serve_runs --only attacks --only leave",),
    ),
    Fault(
        10,
        "a loss that is NaN, a gradient that is NaN or infinite, on one worker alone too; a loss "
        "a million times as large; a picture of the batch that is another one by now",
        "E1602 on all workers within the step, with the rows; never in a checkpoint; what is large "
        "and finite moves the weights no further than the clip; E1114 names the row",
        (
            "unit/training/test_run.py::test_a_number_that_is_not_finite_ends_the_run_and_is_not_saved",
            "unit/training/test_updates.py::test_a_gradient_that_is_not_finite_ends_the_run",
            "unit/training/test_bad_steps.py::test_an_infinite_gradient_ends_the_run_in_its_step",
            "unit/training/test_bad_steps.py::test_a_loss_that_explodes_moves_the_weights_no_further_than_the_clip",
            "integration/test_zero.py::test_a_gradient_that_is_not_finite_on_one_worker_stops_both",
            "unit/training/test_run.py::test_a_changed_image_is_named",
        ),
    ),
    Fault(
        11,
        "a GPU without memory (torch.OutOfMemoryError, raised on a CPU): in a step, in the vision "
        "tower, for a request alone, in training",
        "fewer requests run together, with the same answers; in training E1605 names the settings "
        "that need less",
        (
            "unit/engine/test_running.py::test_out_of_memory_halves_the_slots_and_changes_no_answer",
            "unit/engine/test_running.py::test_out_of_memory_in_the_middle_of_a_step",
            "unit/engine/test_running.py::test_out_of_memory_alone_is_an_error_that_the_engine_survives",
            "unit/engine/test_running.py::test_out_of_memory_in_the_vision_tower_waits_for_a_free_slot",
            "unit/training/test_run.py::test_out_of_memory_names_settings",
        ),
    ),
    Fault(
        12,
        "files cut short and flipped bits: rows, ledger, checkpoint, adapter, weights, input",
        "found by checksum and named; a damaged checkpoint is passed over",
        (
            "unit/archive/test_ledger.py::test_a_torn_last_line_is_dropped_at_every_length",
            "unit/archive/test_ledger.py::test_no_flipped_bit_goes_unnoticed",
            "unit/archive/test_run.py::test_damage_is_named_before_anything_is_done",
            "unit/archive/test_parquet.py::test_flipped_bits_anywhere_never_escape_the_catalogue",
            "unit/training/test_run.py::test_a_damaged_checkpoint_is_passed_over",
            "unit/model/test_lora.py::test_flipped_bits_are_found_or_harmless",
            "unit/model/test_weights.py::test_corrupt_files",
        ),
        ("bit_flips",),
    ),
    Fault(
        13,
        "a clock put forward and back by an hour, and past 2038, within Python and below it "
        "(libfaketime)",
        "no wait ends early, no duration is negative, the ledger keeps its order, a lock is "
        "neither let go nor kept by it",
        (
            "unit/archive/test_clocks.py::test_a_clock_that_jumps_at_every_look",
            "unit/archive/test_clocks.py::test_a_lock_is_neither_let_go_nor_kept_by_the_clock",
            "unit/archive/test_clocks.py::test_a_clock_that_the_system_sets",
            "unit/test_clocks.py::test_no_wait_goes_by_the_wall_clock",
            "unit/test_clocks.py::test_the_start_of_a_pool_is_measured_by_another_clock",
        ),
    ),
    Fault(
        14,
        "a name of the hub without its revision, with and without a network; half a download; "
        "another revision",
        "E1001, which names `@main`, and nothing is fetched; half a file is gone on with, or named "
        "by E1401, E1407 or E1418; E1502, as the weights have another digest",
        (
            "unit/test_hub.py::test_a_mistyped_folder_asks_no_network",
            "unit/test_hub.py::test_half_a_file_is_gone_on_with",
            "unit/model/test_no_network.py::test_a_name_of_the_hub_is_refused",
            "unit/model/test_weights.py::test_missing_files",
            "unit/model/test_weights.py::test_corrupt_files",
            "unit/model/test_weights.py::test_the_digest_follows_weights_config_and_tokenizer_only",
        ),
    ),
    Fault(
        15,
        "two jobs on one folder, on one machine and on two; a holder that stands still; one that "
        "is taken over",
        "the second is refused within 5 s (E1501, with host and process); a dead one's lock is "
        "no obstacle; who was taken over commits nothing more",
        (
            "unit/archive/test_lock.py::test_a_second_writer_is_refused_and_told_who_writes",
            "unit/archive/test_lock.py::test_a_stopped_process_still_holds_it",
            "unit/archive/test_lock.py::test_who_was_taken_over_notices",
            "unit/archive/test_lock.py::test_of_many_at_once_at_most_one_gets_it",
            "unit/archive/test_run.py::test_two_jobs_on_one_folder",
            "unit/archive/test_run.py::test_a_job_that_was_taken_over_cannot_commit",
        ),
    ),
    Fault(
        16,
        "settings, model or input that are others than before the kill",
        "E1502 or E1604 names the field; `--allow-mixed`, `--allow-added` or `--new-run` go on",
        (
            "unit/archive/test_run.py::test_a_changed_identity_is_refused_by_name",
            "unit/archive/test_run.py::test_a_changed_input_is_refused_by_name",
            "unit/on_ray/test_job.py::test_a_resume_with_another_torch_or_device_is_refused_by_name",
            "unit/training/test_run.py::test_another_run_is_refused",
            "unit/training/test_updates.py::test_checkpoints_of_another_run_are_refused",
        ),
    ),
    Fault(
        17,
        "200 ms there and back between a job and its object store, and 5 % of the packets a "
        "retransmission late (a proxy in place of tc netem, which not every kernel has)",
        "time alone",
        ("unit/archive/test_store_faults.py::test_a_store_that_is_far_away_costs_time_alone",),
    ),
    Fault(
        18,
        "another version of Ray, of torch, or of the run folder's form between two starts",
        "Ray: goes on, as nothing depends on it; torch, the form: E1502",
        (
            "unit/on_ray/test_job.py::test_ray_may_change_between_two_starts",
            "unit/on_ray/test_job.py::test_a_run_folder_of_another_form_is_refused",
            "integration/test_train_ends.py::test_ctrl_c_and_sigterm_save_and_the_same_line_goes_on",
            "unit/on_ray/test_job.py::test_a_resume_with_another_torch_or_device_is_refused_by_name",
        ),
    ),
    Fault(
        19,
        "SIGINT once and twice, SIGTERM",
        "once: what runs is committed; twice: ends at once; both keep what was committed",
        (
            "integration/test_ends.py::test_every_end_is_told_in_a_line_and_costs_no_row",
            "integration/test_score.py::test_ctrl_c_stops_between_chunks_and_the_same_command_goes_on",
            "integration/test_train_ends.py::test_ctrl_c_and_sigterm_save_and_the_same_line_goes_on",
        ),
    ),
    Fault(
        20,
        "ten times the requests that the endpoint can answer, for five minutes; 300 at once",
        "200, or 429 with Retry-After; memory grows by 200 MiB at most",
        (
            "unit/serving/test_limits.py::test_of_a_crowd_some_are_answered_and_the_others_told_to_come_back",
        ),
        ("serve_runs --only overload --only burst",),
    ),
)

TEXT = """
Each kind of fault is put into whole jobs, or into the part that meets it, on one machine without a
GPU and with the toy model. Tests run with `make test` and `make test-slow`; the harnesses of
`tests/chaos/`, in full, with `make chaos`, and each alone, as `python -m tests.chaos.kill_runs`,
most of them with `--short`. What needs root or libfaketime is skipped without, and says so.

| | injected | what must come of it | by |
|---|---|---|---|
"""
NOT_HERE = """
Not injected, as it takes more than one machine without a GPU: errors of real GPUs (Xid),
collectives of NCCL that hang, nodes that go with their network, the recovery of a head by KubeRay
with Redis, and nodes that a cloud really takes back. What stands for them here: a raised
torch.OutOfMemoryError, gloo, processes that are killed or stopped, a head that is started again,
and SIGTERM. On a cluster of your own, `kubectl delete pod --force` of a worker and of the head, in
the middle of a job that can be started again, is the way to try the rest.
"""


def table() -> str:
    """What stands between START and END."""
    lines = []
    for fault in FAULTS:
        files = list(dict.fromkeys(test.partition("::")[0] for test in fault.tests))
        by = [f"`{name}`" for name in (*fault.runs, *files)]
        lines.append(f"| F{fault.number} | {fault.injected} | {fault.result} | {', '.join(by)} |")
    return TEXT + "\n".join(lines) + "\n" + NOT_HERE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", type=Path, required=True)
    file = parser.parse_args().write
    before, _, rest = file.read_text().partition(START)
    after = rest.partition(END)[2]
    file.write_text(f"{before}{START}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
