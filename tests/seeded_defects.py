"""Seeded defects: one at a time is put into a copy of the tree, and its tests must fail.

`python -m tests.seeded_defects [NAME …] [--tests FILE_OR_NODE …]` from the root of a checkout.
Modules and test files may be moved: a row finds its source by its snippet, which must occur exactly
once in the packages, and its tests by the names of their functions anywhere below `tests/`.
"""

import argparse
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "bridge", "kernel", "pipelines")


class Defect(NamedTuple):
    """One line of source, what is put in its place, and the cheapest tests that notice."""

    name: str
    says: str
    before: str
    after: str
    tests: tuple[str, ...]  # names of functions, with [case] where one case is enough


DEFECTS = (
    # trainer
    Defect(
        "class-order",
        "the folders of the last class get label 0",
        "index = {name: label for label, name in enumerate(class_names)} | {None",
        "index = {name: label for label, name in enumerate(class_names[::-1])} | {None",
        ("test_a_folder_or_archive_is_read_in_the_order_of_its_names",),
    ),
    Defect(
        "test-labels-not-compared",
        "test labels are no part of what identifies a run's data",
        'for name in ("train_images", "train_labels", "test_images", "test_labels"):',
        'for name in ("train_images", "train_labels", "test_images"):',
        ("test_every_part_of_the_data_is_in_the_fingerprint",),
    ),
    Defect(
        "changed-file-read",
        "a file that was changed after it was listed is decoded all the same",
        "if found.st_mtime_ns != location.changed or (whole and",
        "if (whole and",
        ("test_a_file_that_changed_is_named",),
    ),
    Defect(
        "slot-of-another-image",
        "decoded pixels are kept under the image that was there before",
        "self._slot[old[old >= 0]] = -1",
        "self._slot[old[old >= 0]] = slots[old >= 0]",
        ("test_many_threads_read_the_same_pixels",),
    ),
    Defect(
        "entry-given-twice",
        "the later of two entries of an archive with one name is read",
        "if not parts or parts[-1] in folder:",
        "if not parts:",
        ("test_an_entry_that_would_be_moved_is_refused_by_name",),
    ),
    Defect(
        "missing-normalisation",
        "pixels are centred and not divided by their deviation",
        "result /= std",
        "result /= 1",
        ("test_normalised_train_images_have_mean_zero_and_deviation_one",),
    ),
    Defect(
        "flip-axis",
        "augmentation turns images upside down",
        "images.flip(-1)",
        "images.flip(-2)",
        ("test_flips_mirror_about_half",),
    ),
    Defect(
        "label-off-by-one",
        "an oracle may answer with the number of classes",
        "(answers < 0) | (answers >= self.classes)",
        "(answers < 0) | (answers > self.classes)",
        ("test_a_wrong_answer_is_refused",),
    ),
    Defect(
        "snapshot-alias",
        "the weights to go back to after divergence are those that diverged",
        "{name: tensor.clone() for name, tensor in",
        "{name: tensor for name, tensor in",
        ("test_hopeless_divergence_is_an_error_and_the_weights_are_those_of_the_start",),
    ),
    Defect(
        "batchnorm-of-the-last-batch",
        "BatchNorm keeps the running averages of training",
        'if config.statistics == "labelled":',
        'if config.statistics == "never":',
        ("test_every_setting_of_training_changes_the_weights[statistics-labelled]",),
    ),
    # bridge
    Defect(
        "relu-kink",
        "the ReLU has slope 1 at 0",
        "jnp.where(x <= 0, jnp.zeros_like(x), x)",
        "jnp.where(x < 0, jnp.zeros_like(x), x)",
        ("test_a_row_is_torchs_in_values_and_gradients_in_any_batch_and_dtype[relu]",),
    ),
    Defect(
        "pool-ties",
        "the last of equal maxima has the gradient",
        "(value > best) | jnp.isnan(value)",
        "(value >= best) | jnp.isnan(value)",
        (
            "test_a_row_is_torchs_in_values_and_gradients_in_any_batch_and_dtype[max-pool-ties-of-kinks]",
        ),
    ),
    Defect(
        "certificate-always-passes",
        "a mirror that disagrees is let through",
        "if self.disagreements:",
        "if False:",
        ("test_a_false_gradient_behind_true_values_is_found",),
    ),
    Defect(
        "certificate-of-nan",
        "an error that is no number is within its tolerance",
        "if not error <= tolerance:",
        "if error > tolerance:",
        ("test_gradients_that_are_no_numbers_are_found",),
    ),
    Defect(
        "stale-statistics",
        "a mirror given new weights keeps the old running statistics",
        "{name: arrays.get(name, array) for name, array in self.frozen.items()}",
        "dict(self.frozen)",
        ("test_the_function_outlives_the_weights_and_compiles_once",),
    ),
    Defect(
        "digest-unchecked",
        "values changed in a weight file are read",
        '!= entry["sha256"]:',
        "is None:",
        ("test_changed_values_are_refused",),
    ),
    Defect(
        "fsync-file",
        "a file takes its place before it is on the disk",
        "os.fsync(file.fileno())",
        "file.fileno()",
        ("test_a_full_disk_leaves_the_old_file",),
    ),
    Defect(
        "fsync-folder",
        "the new name may be lost with the power",
        "os.fsync(folder)",
        "pass",
        ("test_a_file_is_on_the_disk_before_it_takes_its_place_and_its_name_after",),
    ),
    Defect(
        "prefix-has-trained-weights",
        "what a trainable parameter changes is computed once for all rounds",
        "if node.name not in moved and not weights & trainable and before <= frozen:",
        "if node.name not in moved and before <= frozen:",
        ("test_tail_shares_parameters_and_asks_no_frozen_gradient",),
    ),
    Defect(
        "prefix-not-compared-among-others",
        "a frozen part that mixes its batch passes",
        "coupling = _coupled(sites, ours.leaks) or _coupled_prefix(probe, exact, prefix)",
        "coupling = _coupled(sites, ours.leaks)",
        ("test_a_prefix_that_mixes_its_batch_is_refused",),
    ),
    Defect(
        "depthwise-channels-swapped",
        "a depthwise convolution with several outputs a channel takes the channels in turn",
        "x = jnp.repeat(x, len(weight) // x.shape[1], axis=1)",
        "x = jnp.concatenate([x] * (len(weight) // x.shape[1]), axis=1)",
        ("test_a_row_is_torchs_in_values_and_gradients_in_any_batch_and_dtype[conv-depthwise]",),
    ),
    # kernel
    Defect(
        "absorb-sign",
        "predictions move away from an absorbed label",
        "drift=posterior.drift + (v @ step)",
        "drift=posterior.drift - (v @ step)",
        ("test_a_ridge_counts_repeated_labels",),
    ),
    Defect(
        "absorb-half",
        "an absorbed label lowers the covariance and not the variance",
        'variance=posterior.variance - np.einsum("ij,ij->i", v, v)',
        "variance=posterior.variance.copy()",
        ("test_a_label_that_was_predicted_changes_only_s",),
    ),
    Defect(
        "jitter-dropped",
        "the ridge of a posterior lacks the jitter its factor has",
        "ridge=ridge + jittered",
        "ridge=ridge",
        ("test_duplicates_within_the_labelled_set_need_jitter",),
    ),
    Defect(
        "sketch-sign",
        "all entries of a bucket share the signs of the first turn",
        "jax.lax.dynamic_slice_in_dim(signs, turn * buckets, buckets)",
        "jax.lax.dynamic_slice_in_dim(signs, 0, buckets)",
        ("test_an_entry_goes_with_its_sign_to_its_bucket",),
    ),
    Defect(
        "probes-not-averaged",
        "a kernel of random projections grows with the classes",
        "1.0 / (probes * classes)",
        "1.0 / probes",
        ("test_kinds_against_neural_tangents",),
    ),
    Defect(
        "coverage-clip",
        "what is covered already is taken off the gain",
        "jnp.maximum(covered - known[:, term, None], 0.0)",
        "covered - known[:, term, None]",
        ("test_a_greedy_batch_and_labels_after_it",),
    ),
    Defect(
        "padding-counted",
        "the first row of padding counts as a row of S",
        "np.arange(size) < len(chosen)",
        "np.arange(size) <= len(chosen)",
        ("test_blocks_cover_the_sample_in_one_shape",),
    ),
    Defect(
        "cross-term",
        "the cross term of a squared change counts once",
        "2 * own @ moves.T",
        "own @ moves.T",
        ("test_mlmoc_of_a_sample",),
    ),
    Defect(
        "scratch-key",
        "chunks of another network's kernel are taken up",
        "digest.update(own.data)",
        "pass",
        ("test_a_key_changes_with_every_entry_shape_and_setting",),
    ),
    Defect(
        "scratch-unchecked",
        "a chunk that a power cut zeroed is taken up",
        "if content[:_DIGEST] != self._digest(name, arrays, [data]):",
        "if False:",
        ("test_a_damaged_part_is_said_and_not_read",),
    ),
    Defect(
        "gram-transpose",
        "a tile of the Gram matrix is mirrored with its columns in the wrong order",
        "update(values[others, ones], block.T, out=values[others, ones])",
        "update(values[others, ones], block.T[:, ::-1], out=values[others, ones])",
        ("test_gram_and_products_are_added",),
    ),
    # pipelines
    Defect(
        "rows-of-other-weights",
        "rows of the frozen part are kept without its weights in their key",
        "key = key_of((), (self.prefix.digest(), self._of, made_by))",
        "key = key_of((), (self._of, made_by))",
        ("test_rows_of_another_kind_are_never_used[weights]",),
    ),
    Defect(
        "rows-not-forgotten",
        "rows of the frozen part outlive a change of its weights",
        "        if version == self._version:\n",
        "        if self._version is not None:\n",
        ("test_rows_follow_frozen_weights_that_change",),
    ),
    Defect(
        "seeds-shared",
        "every use of randomness draws the same numbers",
        "[seed, crc32(name.encode()), round_number]",
        "[seed, round_number]",
        ("test_streams_differ_by_seed_name_and_round_and_repeat",),
    ),
    Defect(
        "margin-order",
        "margin asks for the surest first",
        "ascending[:, -2] - ascending[:, -1]",
        "ascending[:, -1] - ascending[:, -2]",
        ("test_against_scikit_activeml",),
    ),
    Defect(
        "badge-label",
        "BADGE's pseudo-label is the least likely class",
        "errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1",
        "errors[np.arange(len(errors)), errors.argmin(axis=1)] -= 1",
        ("test_golden_first_pick_and_odds_of_the_second",),
    ),
    Defect(
        "coreset-labelled",
        "labelled images past the first block cover nothing",
        "for start in range(0, len(labelled), _BLOCK):",
        "for start in (0,):",
        ("test_against_brute_force_and_scikit_activeml",),
    ),
    Defect(
        "reward-weights",
        "likely draws of ALBL count more in its reward",
        "np.average(right, weights=1 / drawn)",
        "np.average(right, weights=drawn)",
        ("test_weighted_accuracy_by_hand",),
    ),
    Defect(
        "bald-passes",
        "every pass with dropout drops the same units",
        "for number, own in enumerate(passes_rng.spawn(samples)):",
        "for number, own in enumerate(np.random.default_rng(0) for _ in range(samples)):",
        ("test_more_samples_come_nearer_to_each_other",),
    ),
    Defect(
        "resume-skips-a-round",
        "a resumed run forgets the labels of its last round",
        "for line in run.rounds:\n        pool, labels =",
        "for line in run.rounds[:-1]:\n        pool, labels =",
        ("test_a_run_that_stopped_goes_on_to_the_same_end[1]",),
    ),
    Defect(
        "label-shift",
        "new labels come before those of the images before",
        "np.concatenate([labels, answers])",
        "np.concatenate([answers, labels])",
        ("test_each_image_is_trained_on_with_its_own_label",),
    ),
    Defect(
        "pending-of-another-run",
        "a training under other settings is taken up",
        'self._read()["of"] != self._of',
        'self._read()["of"] is None',
        ("test_what_is_pending_under_other_settings_is_not_used",),
    ),
    Defect(
        "kept-mirror",
        "a mirror kept from an earlier query keeps its weights",
        "made = mirror.with_weights(module.weights_of(prefix.tail if prefix else network))",
        "made = mirror",
        ("test_a_mirror_that_is_kept_is_given_the_present_weights",),
    ),
    Defect(
        "round-cache",
        "what was computed for other candidates is returned",
        "if entry is None or any(a is not b for a, b in zip(entry[0], of, strict=True)):",
        "if entry is None:",
        ("test_a_copy_with_other_candidates_has_logits_of_its_own",),
    ),
    Defect(
        "journal-late",
        "an answer is on the disk only with the next one",
        "self._write([*self.answers, line])",
        "self._write(self.answers)",
        ("test_an_answer_is_on_the_disk_before_it_is_absorbed",),
    ),
    Defect(
        "seal-unchecked",
        "answers of another run are taken for those of this one",
        'if seal_of(answers[:count]) != last["answers"]:',
        "if seal_of(answers[:count]) is None:",
        ("test_a_sequential_run",),
    ),
    Defect(
        "weights-unchecked",
        "the next training starts from weights that were exchanged",
        "found = digest(path.read_bytes())\n    if found",
        "found = expected\n    if found",
        ("test_a_run_whose_last_weights_were_changed",),
    ),
    Defect(
        "draws-alike",
        "sessions after successive trainings draw the same positions",
        'generator(state.seed, "order", state.round_number)',
        'generator(state.seed, "order")',
        ("test_sessions_after_successive_trainings",),
    ),
    Defect(
        "planted-link",
        "a temporary file is written through a link of its name",
        "    | os.O_EXCL\n",
        "",
        ("test_a_planted_link_is_not_followed",),
    ),
    Defect(
        "journal-unflushed",
        "what follows from the last answer is lost by a training",
        "self.flush()\n        self.run =",
        "self.run =",
        ("test_stopped_beside_an_answer_it_goes_on_to_the_same_end[trained-6]",),
    ),
    Defect(
        "stale-question",
        "the question stays the same after an answer",
        "self._events.append(event)\n        self._query = None",
        "self._events.append(event)",
        ("test_every_strategy_asks_about_each_candidate_at_most_once[mlmoc]",),
    ),
    Defect(
        "deviation-of-the-population",
        "intervals of few seeds are too narrow",
        "array.std(ddof=1)",
        "array.std(ddof=0)",
        ("test_interval_by_hand",),
    ),
    Defect(
        "frozen-in-train-mode",
        "the statistics of a frozen BatchNorm move, and its dropout drops",
        "if is_frozen(part):",
        "if False:",
        ("test_what_is_frozen_stays_in_eval_mode",),
    ),
    Defect(
        "all-is-trained",
        "a choice of what is trained freezes nothing",
        "parameter.requires_grad_(name in chosen and",
        "parameter.requires_grad_(",
        ("test_what_is_trained[head]",),
    ),
    Defect(
        "difference-sign",
        "random is ahead where a strategy is",
        "own.reindex(columns=shared) - reference.reindex(columns=shared)",
        "reference.reindex(columns=shared) - own.reindex(columns=shared)",
        ("test_differences_are_paired_by_seed",),
    ),
)


def source_of(defect: Defect, root: Path) -> Path | None:
    """The file that holds the snippet, if it occurs exactly once."""
    files = [file for name in PACKAGES for file in sorted((root / name).rglob("*.py"))]
    counts = {file: file.read_text("utf-8").count(defect.before) for file in files}
    found = [file for file, count in counts.items() if count]
    return found[0] if len(found) == 1 and counts[found[0]] == 1 else None


def nodes_of(tests: Sequence[str], root: Path) -> list[str]:
    """Pytest's names of test functions; of a test file's stem the file, of anything else itself."""
    nodes = []
    files = sorted((root / "tests").rglob("test_*.py"))
    for test in tests:
        name, bracket, case = test.partition("[")
        defines = re.compile(rf"^def {re.escape(name)}\(", re.MULTILINE)
        own = [str(file.relative_to(root)) for file in files if file.stem == name]
        own += [
            f"{file.relative_to(root)}::{name}{bracket}{case}"
            for file in files
            if defines.search(file.read_text("utf-8"))
        ]
        nodes += own or [test]
    return nodes


def copied(folder: Path) -> Path:
    """What git tracks and what it would, with the changes of the work tree, in a folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def put(file: Path, text: str) -> None:
    """Write source, and delete its bytecode, which is told by the second and the size alone."""
    file.write_text(text, "utf-8")
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def tried(nodes: Sequence[str], root: Path) -> tuple[str, str]:
    """Passed, failed or broken (nothing was run, or not to its end), and the line that says why."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *nodes]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"}
    ended = subprocess.run(
        command, check=False, cwd=root, env=environment, capture_output=True, text=True
    )
    lines = ended.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED ")]
    if ended.returncode == 0:
        return "passed", lines[-1] if lines else ""
    if ended.returncode == 1 and failed:
        return "failed", failed[0].removeprefix("FAILED ")
    return "broken", "\n".join([*lines[-15:], ended.stderr[-1000:]])


def spent() -> float:
    """Seconds of processor time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judged(defect: Defect, tests: Sequence[str], root: Path) -> tuple[str, str]:
    """What became of a defect, and the line that says why."""
    file = source_of(defect, root)
    if file is None:
        return "snippet not found", defect.before
    text = file.read_text("utf-8")
    put(file, text.replace(defect.before, defect.after))
    outcome, line = tried(nodes_of(tests, root), root)
    put(file, text)
    return {"passed": "MISSED", "failed": "caught", "broken": "BROKEN"}[outcome], line


def main() -> int:
    """0 if every defect is caught, and nothing fails without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeded_defects", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of defects; all without any")
    parser.add_argument("--tests", nargs="+", default=[], help="run these for each defect instead")
    asked = parser.parse_args()
    unknown = set(asked.names) - {defect.name for defect in DEFECTS}
    if unknown:
        parser.error(f"no such defect: {', '.join(sorted(unknown))}")
    chosen = [defect for defect in DEFECTS if not asked.names or defect.name in asked.names]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="seeded-defects-") as folder:
        root = copied(Path(folder))
        tests = asked.tests or list(dict.fromkeys(test for d in chosen for test in d.tests))
        outcome, why = tried(nodes_of(tests, root), root)
        say(f"{outcome:18}{'without a defect':32}{spent():5.0f} s  {why}")
        for defect in chosen:
            before = spent()
            verdict, line = judged(defect, asked.tests or defect.tests, root)
            verdicts.append(verdict)
            say(f"{verdict:18}{defect.name:32}{spent() - before:5.0f} s  {line}")
    caught = verdicts.count("caught")
    say(f"{caught} of {len(chosen)} caught; {spent():.0f} s of processor time")
    return 0 if caught == len(chosen) and outcome == "passed" else 1


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
