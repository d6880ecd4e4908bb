"""Training on Detectron2's `DefaultTrainer`: its hooks, evaluation and checkpoint layout."""

import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import GroupCheckpointer
from ..checkpoint.run_info import RunInfo
from ..checkpoint.thresholds import store_threshold
from ..data.checks import check_annotations
from ..data.loader import TrainingSet, build_test_loader, build_train_loader
from ..data.workers import check_shared_memory
from ..inference.augmented import build_evaluated_model
from ..modeling.meta_arch import SetPredictor, task_of
from .best import Best, BestHook, NoImprovement
from .checkpointing import CheckpointHook
from .compiling import CompileReport, compile_parts
from .ema import MeanWeights, MeanWeightsHook
from .freezing import freeze
from .interruption import StopSignals
from .progress import ProgressPrinter
from .report import LastEvaluation, ReportHook, read_evaluation
from .solver import amp_dtype_of, build_optimizer
from .train_step import TrainStep

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Builds everything a training needs from a settled configuration.

    Attributes:
        last_evaluation: the latest evaluation, None before the first.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor cannot do DDP on a CPU; this is its order of things
        super(DefaultTrainer, self).__init__()
        self.cfg, self.task, self.signals = cfg, task_of(cfg), StopSignals()
        self.training_set = TrainingSet(load_training_set(cfg))
        self.raw_model = self.build_model(cfg)
        if cfg.MODEL.COMPILE:
            compile_parts(self.raw_model, cfg.MODEL.COMPILE)
        optimizer = build_optimizer(cfg, self.raw_model)
        self._trainer = TrainStep(
            wrap_for_processes(self.raw_model),
            None,
            optimizer,
            clip_norm=clip_norm_of(cfg),
            amp_dtype=amp_dtype_of(cfg),
            seed=cfg.SEED,
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            max_skipped=cfg.DATALOADER.MAX_SKIPPED,
            nonfinite_budget=nonfinite_budget_of(cfg),
            signals=self.signals,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.best, self.run_info, saved = Best(), RunInfo(cfg), {}
        self.last_evaluation: LastEvaluation | None = None
        if cfg.MODEL.EMA.ENABLED:
            self.mean = saved["mean_weights"] = MeanWeights(self.raw_model, cfg.MODEL.EMA.DECAY)
        evaluated = self.mean.model if cfg.MODEL.EMA.ENABLED else self.raw_model
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
        self.report_hook = ReportHook(cfg) if comm.is_main_process() else None
        self.register_hooks(self.build_hooks())

    @property
    def epoch_iters(self) -> float:
        """The number of iterations of an epoch."""
        return len(self.training_set) / self.cfg.SOLVER.IMS_PER_BATCH

    @property
    def iterations_done(self) -> int:
        """The number of iterations done, after a step and after the training."""
        return min(self.iter + 1, self.max_iter)

    def train(self) -> dict | None:
        """Runs the iterations that are left; returns the last evaluation's results, if any."""
        seed_cfg = self.cfg.clone()
        seed_cfg.defrost()
        seed_cfg.SEED = self._trainer.seed  # of the run that is resumed, if one is
        check_shared_memory(self.cfg, comm.get_local_size())
        mapper = self.task.build_mapper(seed_cfg, is_train=True)
        self._trainer.data_loader = build_train_loader(
            seed_cfg, self.training_set, mapper, self.start_iter
        )
        try:
            with self.signals:
                super().train()
        except NoImprovement as end:
            logger.info("%s", end)
            if self.report_hook:
                self.report_hook.report()
        return self.last_evaluation.results if self.last_evaluation else None

    def state_dict(self) -> dict:
        """Returns the state to resume from: its "iteration" is the last one that was done."""
        return {**super().state_dict(), "iteration": self.iterations_done - 1}

    @property
    def stop_signal(self) -> int:
        """The signal that asks to stop after this iteration, the same in every process; or 0."""
        return self._trainer.stop_signal

    def after_step(self) -> None:
        """Counts epochs, too, so that metrics.json can be read without the data set."""
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
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Builds the loader of a test set, with the task's mapper."""
        mapper = task_of(cfg).build_mapper(cfg, is_train=False)
        return build_test_loader(cfg, dataset_name, mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Builds the task's evaluator, which leaves its detections beside the run."""
        place = list(cfg.DATASETS.TEST).index(dataset_name)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", str(place) if place else "")
        return task_of(cfg).build_evaluator(dataset_name, folder)

    def build_hooks(self) -> list[HookBase]:
        """Builds timing, schedule, checkpoints (before evaluation), evaluation, writers, report."""
        cfg = self.cfg
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.MODEL.EMA.ENABLED:
            built.append(MeanWeightsHook(self.mean, self.raw_model))
        period, keep = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.KEEP_CHECKPOINTS
        self.saving = CheckpointHook(self.checkpointer, period=period, keep=keep)
        built.append(self.saving)
        if cfg.DATASETS.TEST:
            built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
            built.append(BestHook(self.best, self.checkpointer, self.task, cfg.SOLVER.PATIENCE))
        if self.report_hook:
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
            built.append(self.report_hook)
            built += [CompileReport()] if cfg.MODEL.COMPILE else []
        return built

    def _evaluate(self) -> dict:
        """Evaluates; if that fails or is interrupted, what has been trained is saved."""
        try:
            with self.signals.at_once():
                results = self.test(self.cfg, self.evaluated_model)
        except BaseException:
            self.saving.save_now(self.iterations_done - 1)
            raise
        self._last_eval_results = results  # Detectron2 compares it with TEST.EXPECTED_RESULTS
        found = read_evaluation(self.cfg) if comm.is_main_process() else None
        self.last_evaluation = LastEvaluation(self.iterations_done, results, found)
        if found:
            self.run_info.threshold = found.threshold
            store_threshold(self.cfg.OUTPUT_DIR, self.iterations_done, found.threshold)
        return results

    def build_writers(self) -> list[EventWriter]:
        """Builds the progress line, metrics.json and tensorboard."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        printer = ProgressPrinter(
            self.max_iter, self.epoch_iters, self._trainer.device, self.task.shown_losses
        )
        return [
            printer,
            JSONWriter(os.path.join(folder, "metrics.json")),
            TensorboardXWriter(folder),
        ]


def load_training_set(cfg: CfgNode) -> list[dict]:
    """Loads and checks the dataset dicts of all training sets together."""
    fields, dicts = task_of(cfg).annotation_fields, []
    for name in cfg.DATASETS.TRAIN:
        found = get_detection_dataset_dicts(
            [name], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        dicts += [_with_fields_alone(d, fields) for d in check_annotations(name, found)]
    empty = sum(not d["annotations"] for d in dicts)
    logger.info("%d training images, %d of them without objects", len(dicts), empty)
    most = max(len(d["annotations"]) for d in dicts)
    if most > cfg.MODEL.DETR.NUM_OBJECT_QUERIES:
        logger.warning(
            "an image has %d objects, more than MODEL.DETR.NUM_OBJECT_QUERIES (%d): some of them "
            "can never be found",
            most,
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
        )
    return dicts


def _with_fields_alone(d: dict, fields: tuple[str, ...]) -> dict:
    """Drops what the task does not read: polygons would be most of the memory of a process."""
    return {**d, "annotations": [{k: a[k] for k in fields if k in a} for a in d["annotations"]]}


def wrap_for_processes(model: nn.Module) -> nn.Module:
    """Wraps the model in DistributedDataParallel where there are several processes."""
    if next(model.parameters()).device.type == "cpu":
        return create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    return create_ddp_model(model, broadcast_buffers=False)


def nonfinite_budget_of(cfg: CfgNode) -> int:
    """The number of iterations that may be left out because of numbers that are not finite."""
    return cfg.SOLVER.NONFINITE_BUDGET if cfg.SOLVER.ON_NONFINITE == "skip" else 0


def clip_norm_of(cfg: CfgNode) -> float:
    """The bound on the norm of all gradients together, 0 for none."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.CLIP_VALUE if clip.ENABLED else 0.0
