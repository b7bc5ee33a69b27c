"""The error catalogue: every failure that a user can meet has a code, a reason word, a cause and a
way out.

A message holds the value, the rule and the way out. It never holds an object address, an absolute
path, a stack or the content of a row: those are patients' data.

Longer than a module should be: it is one list, which is looked up by code.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    reason: str
    """The word that stands in the `reason` column of a quarantined row."""
    cause: str
    fix: str


CATALOGUE: dict[str, Entry] = {
    # settings
    "E1001": Entry(
        "bad_setting",
        "A setting is unknown, of the wrong type, or outside its range.",
        "The message names the setting and the rule; `--help` lists all of them.",
    ),
    "E1002": Entry(
        "steps_do_not_divide",
        "gen_length must be a multiple of block_length, and steps of the number of blocks.",
        "Choose steps = blocks x whole number; with one block any number of steps works.",
    ),
    "E1003": Entry(
        "package_missing",
        "What was asked for needs an optional package that is not installed.",
        "Install the extra that the message names, e.g. pip install 'medv-ray[train]'.",
    ),
    "E1004": Entry(
        "package_changed",
        "An installed package is of a version that lacks something medv_ray uses of it.",
        "Install the version of that package which constraints.txt names.",
    ),
    # rows and archives
    "E1101": Entry(
        "missing_column",
        "The archive has no column of the name that was asked for.",
        "Name the columns with --image-column, --question-column, --id-column, --answer-column; "
        "the message lists those that there are.",
    ),
    "E1104": Entry(
        "bad_id",
        "The id has a control character, a lone surrogate, or more than 512 bytes.",
        "Use short, plain ids, as they name rows in reports; or --id-column none: ids are then "
        "made of file and row number.",
    ),
    "E1105": Entry(
        "unreadable_shard",
        "A file cannot be read: a shard that is empty, half-written or unlike its checksum; "
        "answers, questions or results of an evaluation in another form.",
        "Write a shard again (write to a temporary name, then rename); its rows are not scored. Of "
        "an evaluation, name the file or the folder that the message's command takes.",
    ),
    "E1106": Entry(
        "unsafe_member",
        "A tar member is a link, a device, an absolute path or a path with '..'.",
        "Pack regular files under relative names. Nothing is ever extracted to disk.",
    ),
    "E1107": Entry(
        "shard_changed",
        "A shard vanished or changed after the job planned it, or a PACS does not answer.",
        "Keep inputs unchanged while a job runs; put the shard back, or wait for the PACS, and run "
        "the same command again.",
    ),
    "E1108": Entry(
        "bad_image_path",
        "The image path leaves the archive's folder, is a URL, or is not a regular file.",
        "Give paths relative to the archive, without '..' and without links out of it; nothing is "
        "fetched.",
    ),
    "E1109": Entry(
        "bad_row",
        "A cell has the wrong type (an image that is no bytes, struct or path; a question that is "
        "no text).",
        "Check the column types against docs/archive.md.",
    ),
    "E1110": Entry(
        "empty_archive",
        "The archive holds no row, or cannot be listed.",
        "Check the path, or a PACS's query; rows are in parquet, tar, csv, jsonl, json or image "
        "files. The message says what was left out, and why.",
    ),
    "E1111": Entry(
        "image_missing",
        "The row names no image, or the named image does not exist.",
        "Put the file in place and run again with --retry-quarantined, or drop the row.",
    ),
    "E1112": Entry(
        "cell_too_large",
        "An encoded image, or a cell of text, is larger than the limit.",
        "Raise --set archive.max_image_bytes=... and image.max_bytes=..., or --max-cell-bytes, if "
        "the file is trusted.",
    ),
    # prepared datasets
    "E1113": Entry(
        "not_a_dataset",
        "The folder is no prepared dataset, is one of another format, or lacks the split.",
        "Make it with jobs/prepare_vqa.py; the message names what was found.",
    ),
    "E1114": Entry(
        "dataset_changed",
        "A file of a prepared dataset (an image, say) is missing, damaged or changed since it was "
        "written.",
        "Copy the folder again, whole, or prepare the dataset again.",
    ),
    "E1115": Entry(
        "source_not_found",
        "The source folder lacks the files that a dataset of this kind consists of.",
        "Unpack the release as it comes; the message names the files that are looked for.",
    ),
    "E1116": Entry(
        "unsafe_pickle",
        "A pickle holds more than lists, dicts, text and numbers. Loading it could run code: it "
        "was not loaded, and nothing of it ran.",
        "Do not trust the file. Take the release from its authors, or another form of the dataset.",
    ),
    "E1117": Entry(
        "no_answer",
        "A row has no answer text, hence nothing to learn from.",
        "Fill the answer column, or leave such rows out.",
    ),
    "E1118": Entry(
        "row_too_long",
        "Training rows are longer, image tokens included, than the stage or the model allows.",
        "Leave them out, raise --set stage.max_length=... up to what the model takes, or use fewer "
        "tokens an image: --set stage.aspect=square. Nothing is cut silently.",
    ),
    "E1119": Entry(
        "no_targets",
        "No token of the row is a target, so that there is nothing to learn from it.",
        "Look at the row with `medv data preview`; leave it out.",
    ),
    "E1120": Entry(
        "wrong_encoding",
        "A table of text is written in another encoding than UTF-8, or than the one that was "
        "named.",
        "Name it, as the message does: --encoding latin-1, cp1252, utf-16; or save the table as "
        "UTF-8. With --encoding utf-8, only the rows that are not UTF-8 are left out.",
    ),
    "E1121": Entry(
        "no_single_questions",
        "The rows are no single questions with known answers (dialogues, say), or too few.",
        "Prepare the dataset as single questions, a row each; a calibration takes 50 or more.",
    ),
    "E1122": Entry(
        "other_split",
        "The split is not the one that the recipe names: published versions of a dataset differ.",
        "Take the version that the message names; --any-split evaluates another one, under another "
        "digest.",
    ),
    "E1123": Entry(
        "predictions_do_not_fit",
        "A file of answers lacks ids or texts, names an id twice, or does not fit the questions.",
        "Each line is an object with an id and a text; --partial takes a file that lacks answers, "
        "or has others.",
    ),
    "E1124": Entry(
        "not_comparable",
        "Two results come from other recipes: another split, prompt, sampler or metric.",
        "Compare results of one digest; the message names what differs.",
    ),
    "E1125": Entry(
        "pacs_refuses",
        "The PACS wants a token, or another one; its certificate is not trusted; or it sends to "
        "another server, where a token is never sent.",
        "--token-file names a file with the token, or with `Basic user:password`; SSL_CERT_FILE "
        "one with your own authority's certificates. Then the same command goes on.",
    ),
    # images
    "E1201": Entry("empty_image", "The image has no bytes.", "Export the image again."),
    "E1202": Entry(
        "not_an_image",
        "The bytes are none of the allowed formats, whatever the name says (an HTML page, say), or "
        "are a DICOM object that holds no picture (a report).",
        "Allowed: JPEG, PNG, TIFF, BMP, GIF, WebP and, with medv-ray[dicom] installed, DICOM; "
        "change with --set image.formats=[...].",
    ),
    "E1203": Entry(
        "corrupt_image",
        "The image is cut short or damaged, and does not decode.",
        "Copy the file again from its source; a partial picture is never scored.",
    ),
    "E1204": Entry(
        "too_many_pixels",
        "The header announces more pixels than the limit; the image was not decoded.",
        "Downscale it, or raise --set image.max_pixels=... (memory grows with it).",
    ),
    "E1205": Entry(
        "too_small",
        "A side is shorter than the limit.",
        "Such images carry nothing to answer from; lower --set image.min_side=... to accept them.",
    ),
    "E1206": Entry(
        "extreme_aspect",
        "One side is too many times longer than the other.",
        "Crop it, or raise --set image.max_aspect=...",
    ),
    "E1207": Entry(
        "header_lies",
        "The header does not fit the pixels, or cannot be true.",
        "Export the image again with another program.",
    ),
    "E1208": Entry(
        "non_finite_pixels",
        "A float image holds NaN or infinite values.",
        "Replace them before scoring; which grey they stand for is a medical decision.",
    ),
    "E1209": Entry(
        "decoder_limit",
        "The decoder passed its time or memory limit, or crashed; it runs in a child process.",
        "Re-encode the image; raise --set image.decode_seconds / decode_bytes for large trusted "
        "files.",
    ),
    "E1210": Entry(
        "many_frames",
        "The file holds several pages or frames and the policy is to refuse them.",
        "Use --set image.frames=first (recorded in the warnings column), or split the file.",
    ),
    "E1211": Entry(
        "no_decode_rule",
        "The image's pixel mode or compression is not read here, or has no stated conversion to "
        "RGB. It may well be sound.",
        "Convert it to 8-bit grey or RGB first; the message names what reads it, if that is known.",
    ),
    "E1212": Entry(
        "phi_burned_in",
        "The DICOM header says that annotation, a name perhaps, is burned into the pixels.",
        "Clean the pixels and their BurnedInAnnotation first, or leave the image out; "
        "--set image.burned_in=flag shows it and says so in the warnings column.",
    ),
    "E1213": Entry(
        "nothing_shown",
        "The picture's transparency hides it: laid on the background it is of one colour.",
        "Save it without its alpha channel, or choose another --set image.background=...",
    ),
    "E1214": Entry(
        "slide_resolution",
        "A slide cannot be cut into tiles of the magnification asked for: it does not say how "
        "large its pixels are, or was scanned with larger ones.",
        "Use --set slides.assume_mpp=0.25 (micrometres a pixel of the scan) where it says nothing, "
        "a lower slides.magnification, or slides.read=thumbnail.",
    ),
    "E1215": Entry(
        "no_tissue",
        "No tile of the slide shows as much tissue as is asked for. Unstained slides show none.",
        "Look at the slide (slides.read=thumbnail); lower --set slides.tissue=..., or 0 for every "
        "tile.",
    ),
    "E1216": Entry(
        "part_of_slide",
        "The file is a further level, or the label, of a slide whose first file is a row of its "
        "own, or a label or macro image that nobody asked for.",
        "Nothing is to be done: the slide is read as a whole. --set slides.associated=[...] reads "
        "label and macro images.",
    ),
    # questions and prompts
    "E1301": Entry(
        "empty_question",
        "The question, or a column that --prompt names, is empty or white space.",
        "Fill the question column, or the one that `warnings` of the row names (empty_cell:NAME).",
    ),
    "E1302": Entry(
        "question_too_long",
        "The question is longer than the limit in bytes.",
        "Shorten it, or raise --set prompt.max_question_bytes=...",
    ),
    "E1303": Entry(
        "prompt_too_long",
        "Prompt, image tokens and answer together pass the model's maximum length.",
        "Shorten the question, choose image.aspect=square or a smaller gen_length. Nothing is cut "
        "silently.",
    ),
    "E1304": Entry(
        "bad_text",
        "The text holds a NUL or a lone surrogate and cannot be stored.",
        "Clean the text at its source.",
    ),
    "E1305": Entry(
        "non_finite_logits",
        "The model's logits for this row are NaN or infinite, although its weights are finite.",
        "Use --set model.dtype=float32 or bfloat16; float16 overflows on some images.",
    ),
    "E1306": Entry(
        "out_of_memory",
        "The row, tried alone by a worker with nothing else in memory, takes more than there is.",
        "Give a worker more (--num-gpus 1, a smaller --max-actors) and run with "
        "--retry-quarantined; or a row less (model.dtype=bfloat16, image.aspect=square), which is "
        "another run.",
    ),
    "E1307": Entry(
        "image_inside_text",
        "The question marks an image (`<image>`) inside its text, or in a later turn. Pictures "
        "stand before the first question.",
        "Move the mark to an end of the question, or take it out.",
    ),
    "E1308": Entry(
        "bad_choices",
        "The row's choices cannot be compared: fewer than two, a blank one, two equal ones, one "
        "with a token that may not be said, or one that is longer than gen_length.",
        "Correct them, or leave the cell empty: the question is then answered freely and nothing "
        "else. `--choices-column none` looks at no column of choices.",
    ),
    # checkpoints
    "E1309": Entry(
        "bad_canvas",
        "The template of the answer, its choices or its JSON schema cannot be filled: a blank "
        "without tokens, no choices or equal ones, a range without numbers, a keyword of JSON "
        "Schema that is not understood; or it takes more tokens than an answer may have.",
        "The message names the blank or the place in the schema. docs/canvas.md has the rules.",
    ),
    "E1401": Entry(
        "checkpoint_incomplete",
        "The checkpoint folder lacks a file: config.json, tokenizer, or a safetensors shard named "
        "by the index.",
        "Copy the folder again, complete; partial downloads are the usual cause.",
    ),
    "E1402": Entry(
        "missing_tensor",
        "The checkpoint lacks tensors that its config calls for.",
        "Check that config.json belongs to these weights.",
    ),
    "E1403": Entry(
        "unexpected_tensor",
        "The checkpoint holds tensors that its config has no place for.",
        "Check that config.json belongs to these weights.",
    ),
    "E1404": Entry(
        "wrong_shape",
        "A tensor's shape is not the one that config.json calls for.",
        "Check that config.json belongs to these weights.",
    ),
    "E1405": Entry(
        "non_finite_weight", "A weight is NaN or infinite.", "Take an earlier checkpoint."
    ),
    "E1406": Entry(
        "pickle_refused",
        "The weights come as a pickle (.bin, .pt, .pth, .ckpt); reading one can run code, so it "
        "is never opened.",
        "Convert the weights to safetensors with jobs/import_checkpoint.py, which runs nothing.",
    ),
    "E1407": Entry(
        "corrupt_weights",
        "A file of weights is cut short, damaged, or does not match its own checksum.",
        "Copy the file again.",
    ),
    "E1408": Entry(
        "bad_tokenizer",
        "The tokenizer lacks a special token that the model needs, or its ids do not fit the "
        "model.",
        "Use the tokenizer that came with the weights.",
    ),
    "E1409": Entry(
        "unsafe_checkpoint_path",
        "The weights index names a file outside the checkpoint folder.",
        "Do not use this checkpoint.",
    ),
    "E1410": Entry(
        "unknown_model",
        "config.json describes a model that is neither LLaDA, LLaDA-V nor LLaDA-MedV.",
        "Point --model at such a folder.",
    ),
    "E1411": Entry(
        "adapter_of_another_base",
        "The adapter was trained on other weights than those of the model folder.",
        "Point --model at the folder that it was trained on; both digests are in the message.",
    ),
    "E1412": Entry(
        "not_only_tensors",
        "A pickle of weights holds more than plain dense tensors (a function, an object, a sparse "
        "tensor). It may be an attack; nothing of it was run.",
        "Ask its author for safetensors. If you trust it: load it where it was made, and save "
        "state_dict() alone.",
    ),
    "E1413": Entry(
        "reader_limit",
        "The child process that reads a pickle passed its limit of memory or time, or crashed.",
        "No file of weights needs that much; do not use it.",
    ),
    "E1414": Entry(
        "no_kernel",
        "This torch, torchao or processor cannot multiply by weights that are quantised so.",
        "Use --set model.quantisation=int8 (or none), or the torch and torchao that "
        "constraints.txt names.",
    ),
    "E1415": Entry(
        "hub_not_found",
        "The hub has no such model, dataset, revision or file, or hides a private one.",
        "Check org/name@revision. A private one needs HF_TOKEN, or `hf auth login`, of an account "
        "that may see it. A local folder is meant by ./name.",
    ),
    "E1416": Entry(
        "hub_refuses",
        "The hub refuses: a gated model, a token that is wrong, or one that may not write.",
        "Accept a gated model's terms on its page; set HF_TOKEN to a token of that account, for "
        "`medv push` one that may write.",
    ),
    "E1417": Entry(
        "hub_unreachable",
        "The hub does not answer, or HF_HUB_OFFLINE is set, and the cache lacks what is asked for.",
        "Run the same command again, what has arrived is kept; or fetch it where there is a "
        "network (`hf download org/name --revision COMMIT`) and carry HF_HOME over.",
    ),
    "E1418": Entry(
        "hub_file_damaged",
        "A file of the hub arrived cut short, or is not of the digest that the hub names.",
        "Run the same command again: the damaged file is not kept. If it comes back, a proxy or "
        "a mirror (HF_ENDPOINT) changes files.",
    ),
    "E1419": Entry(
        "not_for_the_hub",
        "The folder is no exported model or adapter with a model card that names its licence.",
        "Export it with jobs/export_checkpoint.py, which writes README.md, and fill in `license:` "
        "at its top.",
    ),
    # runs
    "E1501": Entry(
        "output_in_use",
        "Another job writes to this output folder.",
        "Wait for it, or choose another --out. If that job is surely dead: --take-over.",
    ),
    "E1502": Entry(
        "run_changed",
        "The output folder belongs to a run with other settings, another model or another input.",
        "Use another --out; --new-run starts this one over; --allow-added scores what was only "
        "added; --allow-mixed continues whatever changed, and says so in run.json.",
    ),
    "E1503": Entry(
        "disk_full",
        "The output could not be written: no space is left.",
        "Free space and run the same command again; what was committed is kept.",
    ),
    "E1504": Entry(
        "worker_crash",
        "The row ended its worker process three times in a row.",
        "Look at the image in a sandbox; the row is left out and the job goes on.",
    ),
    "E1505": Entry(
        "pool_too_large",
        "The machines have no room for the actors or workers that were asked for; they would wait "
        "for ever.",
        "Use fewer (--min-actors, --max-actors; --num-workers) or smaller ones (--cpus-per-actor, "
        "workers.cpus_per_worker, --num-gpus). Each must fit one machine.",
    ),
    "E1506": Entry(
        "corrupt_run",
        "The ledger or a committed file does not match its checksum.",
        "Restore the file, or run again with --new-run.",
    ),
    "E1507": Entry(
        "not_a_run_folder",
        "The output folder is not empty and is not a run of this job, or it lies inside the input.",
        "Choose an empty folder outside the archive.",
    ),
    "E1508": Entry(
        "workers_keep_dying",
        "Workers died again and again, in scoring without finishing a chunk; no single row is to "
        "blame.",
        "Look at memory first (fewer workers, a smaller dtype), then at the worker's own log: "
        "logs/worker-*.err in the folder of Ray's session. The same line goes on.",
    ),
    "E1509": Entry(
        "internal_error",
        "A defect of medv_ray itself, while one row was processed; the row is quarantined.",
        "Please report it with the code and the name of the exception.",
    ),
    "E1510": Entry(
        "row_count",
        "answered + abstained + quarantined is not the number of rows.",
        "A defect: please report it. Nothing that was committed is lost.",
    ),
    "E1511": Entry(
        "output_unwritable",
        "The output could not be written or read: no permission, a read-only file system, an I/O "
        "error, or an object store that does not answer.",
        "Check the output's rights, its disk and the network; what was committed is kept.",
    ),
    "E1512": Entry(
        "ray_ended",
        "Ray, which runs the workers, did not start, was ended, lost one of its servers, or does "
        "not answer.",
        "Run the same command again; what was committed is kept. Where it did not start, leave it "
        "a core that is free, and room in /tmp or in the folder that RAY_TMPDIR names. If it comes "
        "back, look at memory and at Ray's own log, and at what --address or RAY_ADDRESS names.",
    ),
    "E1513": Entry(
        "environment_broken",
        "The worker's environment is broken: an image decoder does not start, a library does not "
        "load, or a sound picture is not read. It is no picture's fault: no row was quarantined.",
        "Mend what the message names (`pip install --force-reinstall pillow`, say; the limits of "
        "processes and open files) and run the same command again; what was committed is kept.",
    ),
    # training
    "E1601": Entry(
        "batch_does_not_divide",
        "stage.batch_size is not a multiple of stage.micro_batch_size times the workers.",
        "Change one of the three; the message names what fits.",
    ),
    "E1602": Entry(
        "not_finite",
        "Loss or gradient was NaN or infinite; the run stopped and saved nothing of that step.",
        "Look at the rows named by number; lower stage.lr, or use float32. The last checkpoint "
        "is whole.",
    ),
    "E1603": Entry(
        "training_checkpoint",
        "A training checkpoint is incomplete or does not match its digests.",
        "It is left aside and the one before is used; with none left, start with --new-run.",
    ),
    "E1604": Entry(
        "training_changed",
        "The run folder holds a training run of other settings, data, base model or versions.",
        "Put back what changed, or use another --out; --new-run starts this one over.",
    ),
    "E1605": Entry(
        "training_memory",
        "A worker ran out of memory in a training step.",
        "Lower stage.micro_batch_size, keep stage.gradient_checkpointing, set "
        "shard.offload_optimizer or use more workers: the result stays the same (but with "
        "stage.padding=end_of_text, which the first changes). Or train LoRA: "
        "stage.lora.rank=16. `medv plan train` says what fits.",
    ),
    # the endpoint
    "E1701": Entry(
        "bad_request",
        "A field of the request is unknown, missing, of the wrong type or outside its limits.",
        "The message names the field and the rule; /openapi.json and docs/serving.md list all.",
    ),
    "E1702": Entry(
        "api_key",
        "The API key is missing or wrong, or the file of keys cannot be used.",
        "Send `Authorization: Bearer KEY`. The file has one `name key` a line, keys of 16 "
        "characters or more; an endpoint that other machines can reach needs one.",
    ),
    "E1703": Entry(
        "body_too_large",
        "The request's body is larger than the endpoint takes.",
        "Send a smaller picture, or raise --set limits.max_body_bytes=...",
    ),
    "E1704": Entry(
        "url_not_fetched",
        "The picture's URL is none that the endpoint fetches.",
        "Send it as data:image/...;base64,... ; --set fetch.hosts=[...] allows https from hosts.",
    ),
    "E1705": Entry(
        "not_this_machine",
        "The endpoint has no API keys and the request came from another machine, or under another "
        "name than localhost.",
        "Give the endpoint keys (--keys-file).",
    ),
    "E1706": Entry(
        "not_found",
        "There is no such path, or no model, file or batch of that name.",
        "GET /v1/models lists the models, /v1/files and /v1/batches what this key has there.",
    ),
    "E1707": Entry(
        "too_many_requests",
        "The endpoint, or this API key, has as many requests as it may hold.",
        "Come back after the seconds that Retry-After tells; raise --set limits.ongoing=..., "
        "limits.queue or limits.per_key, or scaling.max_replicas.",
    ),
    "E1708": Entry(
        "unavailable",
        "No replica can answer now: it is being replaced, or did not answer in time.",
        "Come back after the seconds that Retry-After tells.",
    ),
    "E1709": Entry(
        "body_too_slow",
        "The request's body did not arrive in time.",
        "Send faster, or raise --set limits.body_seconds=...",
    ),
    "E1710": Entry(
        "media_type",
        "The body is no application/json, or it is compressed.",
        "Send JSON with Content-Type: application/json.",
    ),
    "E1711": Entry(
        "headers_too_large",
        "The request's headers are larger than the endpoint takes.",
        "Send fewer or shorter headers.",
    ),
    "E1712": Entry(
        "method",
        "The path does not take this HTTP method.",
        "/openapi.json lists methods by path.",
    ),
    "E1713": Entry(
        "no_batch_folder",
        "The endpoint has no folder for files and batches.",
        "Start it with --batch-folder FOLDER (batch.folder), or use `medv run-batch` without one.",
    ),
    "E1714": Entry(
        "batch_limit",
        "The API key has as many files, bytes or batches here as it may have, or a batch that is "
        "not over needs the file.",
        "Delete files, or cancel the batch; raise --set batch.files_per_key=... or "
        "batch.bytes_per_key=...",
    ),
    "E1715": Entry(
        "bad_line",
        "A line of a batch file is no request: no JSON, too long, a field that is missing, unknown "
        "or of the wrong type, another url or method, or a custom_id that an earlier line has.",
        "The error names the line, the field and the rule; docs/batch-files.md shows a line. Send "
        "the corrected lines as a new file.",
    ),
    "E1716": Entry(
        "line_not_run",
        "The batch was cancelled, or its completion_window ended, before this line was answered.",
        "Send the lines of the error file that have this code as a new batch.",
    ),
}


SHOW_NAMES = "MEDV_NAMES"
"""Set in the environment, names of pictures are printed. They may name patients, and what a command
prints is kept in logs."""


def shows_names() -> bool:
    """Whether names of pictures and of other files beside them may be printed."""
    return bool(os.environ.get(SHOW_NAMES))


def named(kind: str, name: str) -> str:
    """`image 'a.png'`, or `an image` where names are not shown."""
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{kind} {name!r}" if shows_names() else f"{article} {kind}"


class MedvError(Exception):
    """Base of all errors that a user can meet. `str(error)` is the message, code first."""

    exit_code = 1

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(code, detail)  # both stay in args, so that the error survives pickling

    @property
    def reason(self) -> str:
        """The catalogue's word for this code."""
        return CATALOGUE[self.code].reason

    def __str__(self) -> str:
        kind = type(self).__name__
        return f"{kind} {self.code}: {self.detail} `medv explain {self.code}` says more."


class SettingsError(MedvError, ValueError):
    """A setting is wrong; nothing was started."""

    exit_code = 2


class DataError(MedvError, ValueError):
    """A row, an image or a shard is bad. In a job its rows are quarantined and the job goes on."""


class CheckpointError(MedvError):
    """A checkpoint folder cannot be used."""

    exit_code = 2


class RunError(MedvError):
    """A run folder or the cluster does not allow the job to go on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        # 2: a setting. 3: settings, model or input changed. 4: output in use. 5: disk full.
        # 6: this environment is broken.
        codes = {"E1507": 2, "E1502": 3, "E1604": 3, "E1501": 4, "E1503": 5, "E1513": 6}
        self.exit_code = codes.get(code, 1)


def explain(code: str) -> str:
    """The catalogue's entry as text. Raises SettingsError for an unknown code."""
    entry = CATALOGUE.get(code.upper())
    if entry is None:
        raise SettingsError(
            "E1001",
            f"{code[:20]!r} is not a code of the catalogue ({min(CATALOGUE)} .. {max(CATALOGUE)}).",
        )
    return f"{code.upper()} {entry.reason}\n  cause: {entry.cause}\n  fix:   {entry.fix}"


def no_torchao(quantisation: str) -> SettingsError:
    """Of a model that is to be quantised without the package that does it."""
    return SettingsError(
        "E1003",
        f"model.quantisation={quantisation} needs pip install 'medv-ray[quant]'; or set it to "
        "none.",
    )


SHORT_OF_MEMORY = (
    "out of memory",  # torch, CUDA, Triton
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "DefaultCPUAllocator",  # torch's
    "not enough memory",
    "Cannot allocate memory",
)
"""What libraries say in errors that have no class of their own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of the GPU, was short."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in SHORT_OF_MEMORY)
