"""Training on Detectron2's `DefaultTrainer`: its hooks, evaluation and checkpoint layout."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import GroupCheckpointer
from ..checkpoint.run_info import RunInfo, class_names
from ..checkpoint.stripping import stripped_note
from ..checkpoint.thresholds import store_threshold
from ..data.loader import build_test_loader, start_from
from ..data.workers import check_shared_memory
from ..evaluation.training_curves import VALIDATION
from ..inference.augmented import build_evaluated_model
from ..modeling.meta_arch import SetPredictor, task_of
from .best import Best, BestHook, NoImprovement
from .checkpointing import CheckpointHook
from .compiling import CompileReport, compile_parts
from .ema import MeanWeights, MeanWeightsHook
from .first_batches import FirstBatchesHook
from .freezing import freeze
from .interruption import StopSignals
from .loggers import RunLogger, build_loggers, check_installed
from .loggers.session import PicturesHook, logged
from .progress import ProgressBar, ProgressPrinter
from .report import LastEvaluation, ReportHook, read_evaluation, results_file
from .reporting import UserErrorsAside
from .resuming import Rates, check_resumed, check_whole
from .run_folder import check_is_new, give_folder_back, put_metrics_aside, take_folder
from .schedule import describe_schedule
from .setup import check_test_sets, scheduled, settled, with_seed, write_config
from .sharding import WholeCopy, is_sharded, shard
from .solver import amp_dtype_of, build_optimizer, clip_norm_of
from .train_step import TrainStep
from .training_data import build_training_loader, fingerprints_of, number_of_images
from .validation_loss import loss_meter_of, measures_loss

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Builds everything a training needs from a settled configuration.

    Attributes:
        last_evaluation: the latest evaluation, None before the first.
        whole_copy: of the model that is evaluated, if parameters are sharded; else None.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor cannot do DDP on a CPU; this is its order of things
        super(DefaultTrainer, self).__init__()
        cfg = settled(cfg)
        check_installed(cfg.LOGGERS)
        if comm.is_main_process():
            take_folder(cfg.OUTPUT_DIR)
            put_metrics_aside(cfg.OUTPUT_DIR)
        loader = self.build_train_loader(cfg)
        check_test_sets(cfg)
        self.cfg = cfg = scheduled(cfg, number_of_images(loader))
        self.task, self.signals = task_of(cfg), StopSignals()
        self.epoch_iters = iterations_of_epoch(cfg, loader)
        self.raw_model = self.build_model(cfg)
        if cfg.MODEL.COMPILE:
            compile_parts(self.raw_model, cfg.MODEL.COMPILE)
        if cfg.MODEL.EMA.ENABLED:
            self.mean = MeanWeights(self.raw_model, cfg.MODEL.EMA.DECAY, ramp=cfg.MODEL.EMA.RAMP)
        self.averaged = self.mean.model if cfg.MODEL.EMA.ENABLED else self.raw_model
        self.whole_copy = self._shard(cfg)
        optimizer = self.build_optimizer(cfg, self.raw_model)
        self._trainer = self._build_step(cfg, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.rates = Rates(optimizer)
        self.best, self.run_info, saved = Best(), RunInfo(cfg, fingerprints_of(cfg, loader)), {}
        self.last_evaluation: LastEvaluation | None = None
        if cfg.MODEL.EMA.ENABLED:
            saved["mean_weights"] = self.mean
        evaluated = self.whole_copy.model if self.whole_copy else self.averaged
        self.evaluated_model = build_evaluated_model(cfg, evaluated)
        self.checkpointer = GroupCheckpointer(
            self.raw_model,
            cfg.OUTPUT_DIR,
            load_only=cfg.MODEL.LOAD_ONLY,
            trainer=weakref.proxy(self),
            run=self.run_info,
            best=self.best,
            **saved,
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.saving = CheckpointHook(
            self.checkpointer,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=cfg.SOLVER.KEEP_CHECKPOINTS,
        )
        self.progress_bar = ProgressBar(self.task, self.epoch_iters)
        self.report_hook = ReportHook(cfg) if comm.is_main_process() else None
        self.loggers: list[RunLogger] = []
        self.register_hooks(self.build_hooks())

    def _shard(self, cfg: CfgNode) -> WholeCopy | None:
        """Shards the model and its mean, which cannot be copied afterwards."""
        if not is_sharded(cfg):
            return None
        whole_copy = WholeCopy(self.raw_model)
        shard(self.raw_model)
        if self.averaged is not self.raw_model:
            shard(self.averaged)
        return whole_copy

    def _build_step(
        self, cfg: CfgNode, loader: Iterable[list[dict]], optimizer: torch.optim.Optimizer
    ) -> TrainStep:
        return TrainStep(
            self.raw_model if self.whole_copy else wrap_for_processes(self.raw_model),
            loader,
            optimizer,
            clip_norm=clip_norm_of(cfg),
            amp_dtype=amp_dtype_of(cfg),
            seed=cfg.SEED,
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            max_skipped=cfg.DATALOADER.MAX_SKIPPED,
            nonfinite_budget=nonfinite_budget_of(cfg),
            signals=self.signals,
            whole_copy=self.whole_copy,
        )

    @property
    def last_batch(self) -> list[dict]:
        """The batch of the last iteration."""
        return self._trainer.last_batch

    @property
    def iterations_done(self) -> int:
        """The number of iterations done, after a step and after the training."""
        return min(self.iter + 1, self.max_iter)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes the run of the output folder, or starts from MODEL.WEIGHTS.

        Keys that differ from those of the run are applied and logged; the seed stays the run's.

        Raises:
            CheckpointError: the classes are not those of the run, or no checkpoint can be read.
        """
        super().resume_or_load(resume=resume)
        check_whole(self.run_info)
        note = "" if self.run_info.resumed else stripped_note(self.cfg.MODEL.WEIGHTS)
        if note:
            logger.info("%s is %s", self.cfg.MODEL.WEIGHTS, note)
        if self.start_iter:
            check_resumed(self.cfg, self.run_info)
            self.rates.apply(self.optimizer, self.scheduler)
            self.cfg = with_seed(self.cfg, self._trainer.seed)
            self.run_info.config = self.cfg.dump()
            if self.report_hook:
                self.report_hook.cfg = self.cfg

    def train(self) -> dict | None:
        """Runs the iterations that are left; returns the last evaluation's results, if any.

        Raises:
            RunFolderError: the output folder holds another run, or one is writing to it.
        """
        if comm.is_main_process():
            take_folder(self.cfg.OUTPUT_DIR)
            if not self.start_iter:
                check_is_new(self.cfg.OUTPUT_DIR)
        write_config(self.cfg)
        check_shared_memory(self.cfg, comm.get_local_size())
        # the seed is that of the run that is resumed, if one is
        seed = self._trainer.seed
        if not start_from(self.data_loader, start_iter=self.start_iter, seed=seed):
            logger.warning(
                "the training loader is not groupdetr_d2's: a resumed run %s other images than the "
                "uninterrupted one would have seen",
                "sees" if self.start_iter else "would see",
            )
        if comm.is_main_process():
            logger.info(describe_schedule(self.cfg, self.start_iter, self.epoch_iters))
        loop, aside = logging.getLogger(TrainerBase.__module__), UserErrorsAside()
        loop.addFilter(aside)
        try:
            with logged(self.loggers, self, Path(self.cfg.OUTPUT_DIR)):
                self._train_to_the_end()
        finally:
            loop.removeFilter(aside)
            give_folder_back(self.cfg.OUTPUT_DIR)
        return self.last_evaluation.results if self.last_evaluation else None

    def _train_to_the_end(self) -> None:
        try:
            with self.signals:
                super().train()
        except NoImprovement as end:
            logger.info("%s", end)
            if self.report_hook:
                self.report_hook.report()
        finally:
            self.progress_bar.close()

    def state_dict(self) -> dict:
        """Returns the state to resume from: its "iteration" is the last one that was done."""
        return {**super().state_dict(), "iteration": self.iterations_done - 1}

    @property
    def stop_signal(self) -> int:
        """The signal that asks to stop after this iteration, the same in every process; or 0."""
        return self._trainer.stop_signal

    def after_step(self) -> None:
        """Counts epochs, too, so that metrics.json can be read without the data set."""
        if self.epoch_iters:
            epoch = (self.iter + 1) / self.epoch_iters
            self.storage.put_scalar("epoch", epoch, smoothing_hint=False)
        super().after_step()

    @classmethod
    def build_model(cls, cfg: CfgNode) -> SetPredictor:
        """Builds the model on its device; the log gets its size instead of its printout."""
        torch.manual_seed(cfg.SEED)
        model = build_model(cfg)
        freeze(model, cfg.MODEL.FREEZE)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        logger.info(
            "%s, %s, K = %d groups of N = %d queries: %.2f M parameters, %.2f M of them trained",
            cfg.MODEL.META_ARCHITECTURE,
            cfg.MODEL.DETR.VARIANT,
            cfg.MODEL.DETR.NUM_GROUPS,
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
            total / 1e6,
            trained / 1e6,
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Builds AdamW. The training step clips gradients, whatever the optimizer is."""
        return build_optimizer(cfg, model, clips=False)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Builds the loader of the training sets, which a resumed run continues exactly."""
        return build_training_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Builds the loader of a test set, with the task's mapper."""
        mapper = task_of(cfg).build_mapper(cfg, is_train=False)
        mapper.is_train = measures_loss(cfg)  # whether there are "instances"
        images = task_of(cfg).data.images_of(dataset_name, is_evaluated=True)
        return build_test_loader(cfg, images, mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Builds the task's evaluator, which leaves its detections beside the run."""
        place = list(cfg.DATASETS.TEST).index(dataset_name)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", str(place) if place else "")
        return task_of(cfg).build_evaluator(dataset_name, output_folder or folder)

    def build_hooks(self) -> list[HookBase]:
        """Builds timing, schedule, checkpoints (before evaluation), evaluation, writers, report."""
        cfg = self.cfg
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.MODEL.EMA.ENABLED:
            built.append(MeanWeightsHook(self.mean, self.raw_model))
        built.append(self.saving)
        if cfg.DATASETS.TEST:
            built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
            built.append(BestHook(self.best, self.checkpointer, self.task, cfg.SOLVER.PATIENCE))
        if self.report_hook:
            writers = self.build_writers()
            self.loggers = [writer for writer in writers if isinstance(writer, RunLogger)]
            built.append(PicturesHook(self.loggers, self.task))
            built.append(hooks.PeriodicWriter(writers, period=20))
            picture = Path(cfg.OUTPUT_DIR, "first_batches.jpg")
            names, order = class_names(cfg), cfg.INPUT.FORMAT
            built.append(self.progress_bar)
            built.append(FirstBatchesHook(self.task, names, order, picture))
            built.append(self.report_hook)
            built += [CompileReport()] if cfg.MODEL.COMPILE else []
        return built

    def _evaluate(self) -> dict:
        """Evaluates; if that fails or is interrupted, what has been trained is saved.

        Returns:
            the results, in which the task's metrics are those of the first test set, and the losses
            on all test sets.
        """
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            results_file(self.cfg).unlink(missing_ok=True)  # an evaluator may write none
        meter = loss_meter_of(self.cfg, self.evaluated_model)
        if self.whole_copy:  # a process that fails could not collect the others' parts alone
            self.saving.save_ahead(self.iterations_done - 1)
        try:
            with self._weights_to_evaluate(), self.signals.at_once():
                results = self.test(self.cfg, meter or self.evaluated_model)
            losses = meter.losses() if meter else {}
        except BaseException:
            if not self.whole_copy:
                self.saving.save_now(self.iterations_done - 1)
            raise
        self._last_eval_results = results  # Detectron2 compares it with TEST.EXPECTED_RESULTS
        found = read_evaluation(self.cfg) if comm.is_main_process() else None
        self.last_evaluation = LastEvaluation(self.iterations_done, results, found, losses)
        if found:
            self.run_info.threshold = found.threshold
            store_threshold(self.cfg.OUTPUT_DIR, self.iterations_done, found.threshold)
        metrics = self.task.metrics_of(results)
        own = {self.task.kind: metrics} if metrics else {}
        return {**own, **results, **({VALIDATION: losses} if losses else {})}

    def _weights_to_evaluate(self) -> contextlib.AbstractContextManager:
        if self.whole_copy is None:
            return contextlib.nullcontext()
        return self.whole_copy.filled(self.averaged)

    def build_writers(self) -> list[EventWriter]:
        """Builds the progress line, metrics.json and the loggers of LOGGERS."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        printer = ProgressPrinter(
            self.max_iter, self.epoch_iters, self._trainer.device, self.task.shown_losses
        )
        return [
            printer,
            JSONWriter(os.path.join(folder, "metrics.json")),
            *build_loggers(self.cfg),
        ]


def wrap_for_processes(model: nn.Module) -> nn.Module:
    """Wraps the model in DistributedDataParallel where there are several processes."""
    if next(model.parameters()).device.type == "cpu":
        return create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    return create_ddp_model(model, broadcast_buffers=False)


def nonfinite_budget_of(cfg: CfgNode) -> int:
    """The number of iterations that may be left out because of numbers that are not finite."""
    return cfg.SOLVER.NONFINITE_BUDGET if cfg.SOLVER.ON_NONFINITE == "skip" else 0


def iterations_of_epoch(cfg: CfgNode, loader: Iterable) -> float | None:
    """The number of iterations of an epoch; None if the loader has no known length."""
    size = number_of_images(loader)
    return None if size is None else size / cfg.SOLVER.IMS_PER_BATCH
