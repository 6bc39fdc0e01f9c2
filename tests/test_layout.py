"""A newcomer finds the tests of a module by its name: tests/<wing>/test_<module>.py, or here why they lie elsewhere."""

from pathlib import Path, PurePosixPath

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "src" / "fedelta"

ELSEWHERE = {
    # A package that shows one face is tested through it.
    "tree/*": "test_tree.py",
    "lowrank/*": "lowrank/test_lowrank.py",
    "diagnostics/*": "diagnostics/test_diagnostics.py",
    "topology/*": "topology/test_topology.py",
    "split/*": "split/test_partition.py",
    "runs/config/roster.py": "runs/test_roster.py",
    "runs/config/code_terms.py": "runs/config/test_terms.py",
    "runs/config/*": "runs/test_config.py",
    "runs/starter/*": "runs/test_starter.py",
    "runs/doctor.py": "cli/test_setup.py",
    "report/data_tables.py": "cli/test_init.py",
    "data/digests.py": "data/test_images.py",
    "data/idx.py": "data/test_named.py",
    "data/gaps.py": "tasks/test_gaps.py",
    "data/named/*": "data/test_named.py",
    "data/*": "data/test_sources.py",
    "testing/aggregators.py": "conformance/test_check_aggregator.py",
    "testing/*": "conformance/test_check_method.py",
    "tasks/_template.py": "docs/test_task_page.py",
    "tasks/choice_likelihood.py": "tasks/test_multiple_choice.py",
    "tasks/task/*": "tasks/test_task.py",
    "tasks/images/*": "tasks/test_image_classification.py",
    "tasks/metrics/*": "tasks/test_metrics.py",
    "tasks/text/gaps.py": "tasks/test_gaps.py",
    "tasks/text/*": "tasks/test_instruction.py",
    # A method without a file of its own has its formula, its numbers by hand, and the laws.
    "methods/fedadagrad.py": "methods/test_server_optimizers.py",
    "methods/fedadam.py": "methods/test_server_optimizers.py",
    "methods/fedyogi.py": "methods/test_server_optimizers.py",
    "methods/fedavgm.py": "methods/test_server_optimizers.py",
    "methods/_compose/*": "methods/test_compose.py",
    "methods/_fedgalore/*": "methods/fedgalore/test_fedgalore.py",
    "methods/fedgalore.py": "methods/fedgalore/test_fedgalore.py",
    "methods/_shared/*": "methods/test_formulas.py",
    "methods/_template.py": "methods/test_registry.py",
    "methods/centralised.py": "methods/test_client_rules.py",
    "methods/local_only.py": "methods/test_client_rules.py",
    "methods/fedex_lora.py": "methods/test_client_rules.py",
    "methods/ffa_lora.py": "methods/test_client_rules.py",
    "methods/flexlora.py": "methods/test_toy_numbers.py",
    "methods/flora.py": "methods/test_toy_numbers.py",
    "methods/hetlora.py": "methods/test_toy_numbers.py",
    "methods/svd_redistribution.py": "methods/test_toy_numbers.py",
    "methods/zeropad.py": "methods/test_toy_numbers.py",
    "methods/fedavg.py": "methods/test_toy_numbers.py",
    # What one visit and one round are made of shows in a run.
    "client.py": "models/test_clients.py",
    "adapted.py": "models/test_peft.py",
    "peers.py": "engines/test_server.py",
    "merging.py": "methods/test_toy_numbers.py",
    "engines/federation.py": "engines/test_server.py",
    "engines/manifests.py": "engines/test_checkpoint.py",
    "engines/census_answers.py": "engines/test_census.py",
    "engines/conduct.py": "engines/test_faults.py",
    "engines/rounds.py": "engines/test_server.py",
    "engines/letters.py": "engines/test_visits.py",
    "engines/memories.py": "engines/test_visits.py",
    "engines/settings.py": "engines/test_visits.py",
    "engines/choice.py": "engines/runners/test_batched.py",
    "engines/runners/_in_process.py": "engines/runners/test_batched.py",
    "engines/runners/sharded/*": "engines/runners/test_sharded.py",
    "engines/runners/_handover.py": "engines/runners/test_batched.py",
    "engines/remote.py": "sites/test_flower_rounds.py",
    "engines/runners/flower/*": "sites/test_flower_rounds.py",
    "engines/runners/sites/certificates.py": "sites/test_certificates.py",
    "engines/correspondence.py": "engines/test_node.py",
    "engines/mailbox.py": "engines/test_node.py",
    "engines/neighbours.py": "engines/test_node.py",
    "engines/runners/zenoh/*": "sites/test_zenoh.py",
    "exchange/codecs/*": "exchange/test_codecs.py",
    "exchange/channel.py": "engines/test_visits.py",
    "exchange/strict_json.py": "exchange/test_parcels.py",
    "models/adapter_config.py": "models/test_adapter_files.py",
    "models/adapter_entries.py": "models/test_adapter_files.py",
    "models/base_facts.py": "runs/test_exported.py",
    "models/base_files.py": "security/test_trust.py",
    "models/checkpointing.py": "engines/test_checkpointing.py",
    "models/fitting.py": "models/test_refusals.py",
    "models/initial.py": "models/test_peft.py",
    "models/lora_peers.py": "models/test_clients.py",
    "models/trainer/model.py": "models/trainer/test_client.py",
    "models/trainer/turn.py": "models/trainer/test_client.py",
    "models/devices.py": "models/test_loading.py",
    "models/dropout.py": "models/test_peft.py",
    "models/export.py": "models/test_loading.py",
    "models/lora_options.py": "models/test_peft.py",
    "models/toy.py": "conformance/test_check_method.py",
    "models/cohort/*": "models/cohort/test_grouped.py",
    "models/fast/first_token.py": "models/fast/test_compact.py",
    "models/fast/no_padding.py": "models/fast/test_compact.py",
    "models/fetched/onnx_weights.py": "models/fetched/test_dinov2.py",
    "models/fetched/wheels.py": "models/fetched/test_fetch.py",
    "models/layer_stack.py": "models/fast/test_activation_cache.py",
    "models/passes.py": "models/fast/test_compact.py",
    "models/products.py": "models/fast/test_frozen_gemm.py",
    "models/slots.py": "models/test_peft.py",
    "models/trial.py": "models/fast/test_activation_cache.py",
    "models/wide_heads.py": "models/test_peft.py",
    # What a user sees is tested as a user sees it.
    "cli/*": "cli/test_command.py",
    "report/outcome.py": "report/test_results.py",
    "report/summary.py": "report/test_results.py",
    "report/results/*": "report/test_results.py",
    "report/cautions.py": "report/test_page.py",
    "report/compared.py": "report/test_page.py",
    "report/grouping.py": "report/test_page.py",
    "report/standings.py": "report/test_page.py",
    "report/verdict.py": "report/test_page.py",
    "report/numerals.py": "report/test_page.py",
    "report/readings.py": "report/test_page.py",
    "report/study.py": "report/test_page.py",
    "report/page/*": "report/test_page.py",
    "report/drawing/*": "report/test_drawing.py",
    "report/*": "report/test_tables.py",
    "runs/digests.py": "runs/suite/test_cells.py",
    "runs/suite/*": "runs/suite/test_work.py",
    "runs/peer_post.py": "sites/test_gossip_runs.py",
    "runs/opening.py": "runs/test_given.py",
    "runs/facts.py": "runs/test_reports.py",
    "runs/best.py": "e2e/test_folders.py",
    "runs/own_methods.py": "e2e/test_folders.py",
    "runs/flower_app.py": "sites/test_flower_app.py",
    "runs/remote.py": "sites/test_remote.py",
    "runs/server_model.py": "sites/test_remote.py",
    "runs/*": "e2e/test_runs.py",
}
"""Modules without a file of their name, and the file that tests them; the first pattern that fits counts."""


def modules() -> list[PurePosixPath]:
    found = (p.relative_to(SOURCES) for p in SOURCES.rglob("*.py") if p.name != "__init__.py")
    return sorted(PurePosixPath(p.as_posix()) for p in found)


def own_file(module: PurePosixPath) -> bool:
    """A test file of the module's name in the folder that mirrors its own; a private folder's may lie one above."""
    name = f"test_{module.stem.lstrip('_')}.py"
    folder = TESTS.joinpath(*(part.lstrip("_") for part in module.parent.parts))
    private = module.parent.name.startswith("_")
    return (folder / name).is_file() or (private and (folder.parent / name).is_file())


def reason(module: PurePosixPath) -> str | None:
    patterns = (x for x in ELSEWHERE if len(PurePosixPath(x).parts) == len(module.parts) and module.match(x))
    return next(patterns, None)


def test_every_module_has_a_test_file_of_its_name_or_a_place_that_is_told_here() -> None:
    homeless = [str(m) for m in modules() if not own_file(m) and reason(m) is None]
    assert not homeless, "write tests/<wing>/test_<module>.py"


def test_no_exception_outlives_its_reason() -> None:
    used = {reason(m) for m in modules() if not own_file(m)} - {None}
    assert set(ELSEWHERE) == used
    assert not [place for place in ELSEWHERE.values() if not (TESTS / place).is_file()]
