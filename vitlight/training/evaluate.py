"""`vitlight validate` and `vitlight test`: one checkpoint, evaluated."""

import json
from pathlib import Path

from vitlight.errors import InputError
from vitlight.models.position_grid import keep_position_grid
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.found_run import find_checkpoint, read_experiment, run_of
from vitlight.training.record import RunDirectory, finite_or_none
from vitlight.training.trainer import build_trainer

__all__ = ["evaluate"]


def evaluate(cli: ExperimentCLI) -> int:
    """Print the exact counts as one JSON line, and one for each evaluation set, which the checkpoint's run keeps, too.

    At another image size than the run's, its position embeddings and relative biases are resized. Returns the exit code;
    raises InputError for what there is none of, and for a checkpoint of another network.
    """
    if cli.settings.ckpt_path is None:
        raise InputError("--ckpt_path is not given; name a run, runs/NAME/RUN_ID, or one of its checkpoints")
    data, checkpoint = cli.build_data(), find_checkpoint(Path(cli.settings.ckpt_path))
    data.prepare()
    split = "val" if cli.subcommand == "validate" else "test"
    if split == "val" and not len(data.val_ids):
        raise InputError("data.val_fraction=0.0 leaves no validation images; use `vitlight test` or hold some out")
    run_dir = run_of(checkpoint)
    if run_dir is not None:
        its = cli.settings.model
        its.model_options = keep_position_grid(its.arch, its.model_options, data.image_size, read_experiment(run_dir))
    model = cli.build_model()
    arguments = {**cli.build_trainer_settings(), "logger": False, "callbacks": []}
    arguments["enable_progress_bar"] = bool(arguments.get("enable_progress_bar"))
    trainer = build_trainer(
        **arguments, enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=checkpoint.parent
    )
    run = trainer.validate if split == "val" else trainer.test
    run(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    if trainer.is_global_zero:
        for result in [*({"split": split, **counts} for counts in model.results.values()), *model.set_scores.results]:
            plain = {name: finite_or_none(value) for name, value in result.items()}
            print(json.dumps({"checkpoint": str(checkpoint), **plain}, allow_nan=False))
        evaluated = RunDirectory(checkpoint.absolute().parent.parent)
        if evaluated.experiment_path.is_file():
            model.set_scores.keep(evaluated.path)
    return 0
