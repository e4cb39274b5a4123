"""From a command line to settings."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.labels import LabelSource
from vitlight.data.mixing import Mixing
from vitlight.errors import InputError, did_you_mean
from vitlight.training.classifier import ImageClassifier
from vitlight.training.ema import check_average
from vitlight.training.found_run import run_of
from vitlight.training.losses import check_loss
from vitlight.training.optim import Optimizer
from vitlight.training.pretrained import check_weights_settings
from vitlight.training.rollback import check_rollback
from vitlight.training.run_settings import RunSettings
from vitlight.training.schedule import Duration, Schedule

__all__ = ["ExperimentCLI", "make_parsers"]

# What the plan derives, or what would make the numbers inexact, is not offered; where to turn instead.
_DERIVED = {
    "max_epochs": "model.duration.epochs",
    "max_steps": "model.duration.samples",
    "min_epochs": "model.duration",
    "min_steps": "model.duration",
    "max_time": "model.duration",
    "limit_train_batches": "model.duration.samples",
    "limit_val_batches": "data.val_fraction",
    "limit_test_batches": "data.test",
    "overfit_batches": "data.num_train_samples",
    "val_check_interval": "run.num_evaluations",
    "check_val_every_n_epoch": "run.num_evaluations",
    "num_sanity_val_steps": "run.num_evaluations",
    "log_every_n_steps": "run.log_every_steps",
    "reload_dataloaders_every_n_epochs": "data",
    "use_distributed_sampler": "data",
    "enable_checkpointing": "run.checkpoint_every_steps",
    "default_root_dir": "run.root",
    "fast_dev_run": "model.duration.samples",
    "limit_predict_batches": "data.test",
}
_GROUPS = ("model", "data", "run", "trainer")
_MODEL_FROM_DATA = {"image_size": "data.image_size", "num_classes": "data.num_classes", "in_channels": "data.channels"}


class ExperimentCLI(LightningCLI):
    """LightningCLI's subcommands and settings, parsed and checked; `vitlight.training.run` does what they say.

    args: the words after `vitlight`. Raises InputError.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self._args = _with_recorded_config(list(args))
        super().__init__(
            ImageClassifier,
            ShardedImages,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = _parsers()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    @staticmethod
    def _add_trainer(parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False, instantiate=False, skip=set(_DERIVED))

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self._add_trainer(parser)
        parser.add_lightning_class_args(ImageClassifier, "model")
        parser.add_lightning_class_args(ShardedImages, "data")
        parser.add_class_arguments(RunSettings, "run")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data.num_classes", "model.num_classes")
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.channels", "model.in_channels")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand, *words = self._args or [""]
        chosen = self._subcommand_parsers.get(subcommand)
        try:
            if chosen is None:
                self.config = parser.parse_args(self._args)
            else:  # the main parser would only call it, and then check everything once more: half of the time
                self.config = Namespace(subcommand=subcommand, **{subcommand: chosen.parse_args(words)})
        except jsonargparse.ArgumentError as error:
            raise InputError(_one_line(error, self._args)) from error

    def _parse_ckpt_path(self) -> None:
        """The experiment's own config is complete; nothing is read from the checkpoint."""

    def _set_seed(self) -> None:
        """Left to the run."""

    def instantiate_classes(self) -> None:
        """Left to the run."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Left to the run."""

    @property
    def settings(self) -> Namespace:
        """The parsed settings of the chosen subcommand."""
        return self.config[self.subcommand]

    def build_run_settings(self) -> RunSettings:
        return RunSettings(**vars(self.settings.run))

    def build_data(self) -> ShardedImages:
        settings = dict(vars(self.settings.data))
        for name, group in (("augmentation", Augmentation), ("mixing", Mixing), ("labels", LabelSource)):
            settings[name] = group(**vars(settings[name]))
        return ShardedImages(**settings)

    def build_model_settings(self) -> dict[str, Any]:
        """Arguments of ImageClassifier, checked."""
        settings = dict(vars(self.settings.model))
        for name in _MODEL_FROM_DATA.keys() & (settings["model_options"] or {}).keys():
            raise InputError(f"model.model_options has {name}, which follows from {_MODEL_FROM_DATA[name]}; set that")
        settings["duration"] = Duration(**vars(settings["duration"]))
        settings["optimizer"] = Optimizer(**vars(settings["optimizer"]))
        settings["schedule"] = Schedule(**vars(settings["schedule"]))
        check_loss(settings["loss"], settings["label_smoothing"])
        check_average(settings["ema_decay"], settings["ema_warmup"])
        check_rollback(settings["rollback_lr_factor"])
        names = ("weights", "weights_digest", "weights_layout", "weights_head", "head_bias_init")
        check_weights_settings(**{name: settings[name] for name in names})
        return settings

    def build_model(self) -> ImageClassifier:
        return ImageClassifier(**self.build_model_settings())

    def build_trainer_settings(self) -> dict[str, Any]:
        """Arguments of the Trainer, with callbacks, strategy and plugins made into objects."""
        return dict(vars(_trainer_parser().instantiate(Namespace(trainer=self.settings.trainer)).trainer))

    def with_seed(self, seed: int) -> "ExperimentCLI":
        """The same settings with another `seed_everything`, without the tenth of a second that parsing takes."""
        other = copy.copy(self)
        other.config = self.config.clone()
        for group in (other.settings, other.settings.data, other.settings.model):
            group["seed_everything" if group is other.settings else "seed"] = seed
        return other

    def dump(self) -> str:
        """The resolved settings as YAML that can be given to --config again."""
        return self._parser(self.subcommand).dump(self.settings, skip_unset=False)


@functools.cache
def _parsers() -> tuple[Any, Any, Any]:
    """The parsers take half a second to make, and a sweep parses every cell with the same ones."""
    maker = ExperimentCLI.__new__(ExperimentCLI)
    maker.trainer_class, maker.trainer_defaults, maker.seed_everything_default = pl.Trainer, {}, 0
    maker.parser_class, maker.auto_configure_optimizers = LightningArgumentParser, False
    # An abbreviation would be another name for a setting: half a misspelt one, and unknown when the next is added.
    kwargs = {"exit_on_error": False, "allow_abbrev": False}
    LightningCLI.setup_parser(
        maker, True, {**kwargs, "prog": "vitlight"}, {name: dict(kwargs) for name in maker.subcommands()}
    )
    return maker.parser, maker._subcommand_parsers, maker._subcommand_method_arguments


@functools.cache
def _trainer_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser()
    ExperimentCLI._add_trainer(parser)
    return parser


def make_parsers() -> None:
    """Before the first command line: what takes longest about it, and is the same for all."""
    _parsers()
    _trainer_parser()


def _with_recorded_config(args: list[str]) -> list[str]:
    """`validate` and `test` of a run, or a run's checkpoint, need no --config: the run's experiment.yaml is read."""
    if not args or args[0] == "fit" or any(arg.split("=")[0] in ("--config", "-c") for arg in args):
        return args
    for position, arg in enumerate(args):
        if arg.startswith("--ckpt_path"):
            path = arg.partition("=")[2] or (args[position + 1] if position + 1 < len(args) else "")
            run = run_of(Path(path))
            if run is not None:
                return [args[0], "--config", str(run / "experiment.yaml"), *args[1:]]
    return args


def _one_line(error: Exception, args: Sequence[str]) -> str:
    """jsonargparse's message in one line, with the nearest settings where a name is unknown."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    words = text.replace("'", " ").replace('"', " ").replace("=", " ").replace(",", " ").split()
    names = _setting_names(args[0] if args else "")
    mentioned = [word.lstrip("-") for word in words if word.lstrip("-").split(".")[0] in _GROUPS]
    for name in mentioned:
        if name in names:
            continue
        leaf = name.removeprefix("trainer.").split(".")[0]
        if name.startswith("trainer.") and leaf in _DERIVED:
            return f"{name} is derived from the data plan and can't be set; use {_DERIVED[leaf]}"
        if "is not expected" in text or "not accepted" in text or "Unrecognized" in text or "unrecognized" in text:
            return f"unknown setting {name}{did_you_mean(name, names)}"
    return text if len(text) <= 400 else text[:400] + " ..."


def _setting_names(subcommand: str) -> set[str]:
    _, parsers, _ = _parsers()
    chosen = parsers.get(subcommand)
    if chosen is None:
        return set()
    return {action.dest for action in chosen._actions if action.dest not in ("help", "config")}
