"""What other projects call our keys and choices: timm, MAE, MMAction, Hugging Face, Lightning, fairseq, detectron2.

Words are compared in lower case, with `_` for `-`, without what is before the last dot.
"""

from __future__ import annotations

import functools

# Ours <- theirs. `{}` is the value given; `{now}` our present one, where theirs is in another unit. Of several entries
# with a word, the first whose keys a script has is taken.
TRAINING = {
    "trainer.max_epochs={}": "epoch epochs num_epochs n_epochs nb_epochs max_epoch max_epochs total_epochs "
    "train_epochs num_train_epochs ep",
    "trainer.max_steps={}": "step steps iter iters max_iter max_iters num_steps total_steps train_steps num_iters "
    "max_step max_update total_num_update num_train_steps",
    "data.batch_size={}": "b bs batch batchsize batch_size train_batch_size per_device_train_batch_size "
    "batch_size_per_gpu samples_per_gpu videos_per_gpu ims_per_batch mini_batch_size max_sentences "
    "per_gpu_batch_size eval_batch_size val_batch_size per_device_eval_batch_size global_batch_size "
    "validation_batch_size",
    "trainer.accumulate_grad_batches={}": "accum_iter accum_grad accum accumulate accumulation accumulation_steps "
    "gradient_accumulation gradient_accumulation_steps grad_accum grad_accum_steps update_freq "
    "accumulate_grad cumulative_iters",
    "model.lr={}": "lr learning_rate learningrate max_lr peak_lr init_lr optimizer_lr lr_rate",
    "model.blr={}": "base_lr base_learning_rate lr_base",
    "model.weight_decay={}": "wd decay l2",
    "model.betas={}": "opt_betas adam_betas beta",
    "model.warmup_epochs={}": "warmup warmup_epoch lr_warmup_epochs",
    "model.warmup_epochs={now}": "warmup_steps warmup_iters warmup_ratio warmup_updates num_warmup_steps warmup_factor",
    "model.optimizer={}": "opt optim optimizer",
    "model.label_smoothing={}": "smoothing",
    "model.mixup={}": "mixup_alpha",
    "model.layer_decay={}": "ll layer_wise_lr_decay lr_decay_rate layer_lr_decay llrd",
    "model.net.image.drop_path={}": "drop_path_rate stochastic_depth drop_connect",
    "model.image_mask_ratio={} model.audio_mask_ratio={}": "mask_ratio masking_ratio mask",
    "model.frozen=true": "freeze freeze_backbone freeze_encoder linear_probe",
    "model.net.checkpoint_layers={}": "grad_checkpointing gradient_checkpointing use_checkpoint "
    "activation_checkpointing",
    "model.net.fusion={}": "fusion_type fusion_mode fusion_kind fuse",
    "model.pretrained={}": "pretrain pretrained pretrained_path pretrained_weights pretrain_ckpt "
    "pretrained_checkpoint checkpoint ckpt weights init initial_checkpoint init_from finetune finetune_from "
    "model_path load_from model_name_or_path restore_file load load_weights start_weights",
    "ckpt_path={}": "resume_from_checkpoint resume_from resume_ckpt resume_path ckpt_path resume_checkpoint",
    "trainer.gradient_clip_val={}": "clip_grad clip_norm clip_grad_norm grad_clip gradient_clip gradient_clipping "
    "max_grad_norm max_norm clip clip_value",
    "trainer.check_val_every_n_epoch={}": "eval_freq eval_every eval_interval eval_period val_interval val_every "
    "val_freq validate_interval validation_interval val_period test_freq check_val_every evaluation_strategy",
    "trainer.val_check_interval={now}": "eval_steps",
    "trainer.log_every_n_steps={}": "log_interval log_freq log_every log_steps logging_steps print_freq print_every "
    "log_period",
    "callbacks.checkpoints.every_n_epochs={}": "save_freq save_every save_interval save_period save_every_n_epochs "
    "checkpoint_freq save_ckpt_freq ckpt_interval",
    "callbacks.checkpoints.every_n_train_steps={}": "save_steps checkpoint_period save_interval_updates "
    "checkpoint_steps",
    "callbacks.checkpoints.keep={}": "save_total_limit max_keep_ckpts keep_last_epochs save_top_k keep_checkpoints "
    "checkpoint_hist",
    "trainer.limit_train_batches={}": "max_train_samples train_batches limit limit_batches steps_per_epoch "
    "num_batches iters_per_epoch",
    "trainer.limit_val_batches={}": "max_eval_samples val_batches",
    "trainer.num_nodes={}": "nodes nnodes n_nodes num_machines machines",
    "trainer=ddp": "ddp distributed multi_gpu dist launcher distributed_backend backend data_parallel",
    "trainer=ddp trainer.devices={}": "gpu gpus n_gpu n_gpus num_gpus ngpus gpu_ids gpu_id cuda_devices nproc "
    "nproc_per_node world_size distributed_world_size num_processes cuda cuda_visible_devices device_ids "
    "devices",
    "trainer={}": "device accelerator platform",
    "trainer=cpu": "cpu use_cpu no_cuda",
    "trainer.precision={}": "dtype mixed_precision amp_dtype",
    "trainer.precision=16-mixed": "fp16 amp use_amp half use_fp16 native_amp apex",
    "trainer.precision=bf16-mixed": "bf16 bfloat16 use_bf16",
    "trainer.precision=32-true": "fp32 no_amp full_precision",
    "trainer.deterministic=true": "deterministic cudnn_deterministic",
    "trainer.profiler=simple": "profile profiling",
    "trainer.sync_batchnorm={}": "sync_bn syncbn",
    "trainer.detect_anomaly=true": "anomaly detect_nan",
    "logger={}": "report_to log_with logger trackers tracker",
    "logger=wandb": "wandb use_wandb",
    "logger=mlflow": "mlflow use_mlflow",
    "logger=tensorboard": "tensorboard use_tensorboard tb",
    "compile={}": "torchcompile torch_compile jit",
    "debug=fast": "debug dry_run dryrun quick smoke_test fast sanity_check fast_dev",
    "scale=demo": "demo toy tiny",
    "test={}": "do_test do_eval evaluate eval run_test do_predict test_after_training",
    "validate_before={}": "val_first validate_first eval_on_start",
    "callbacks.knn.k={}": "knn_k nb_knn",
    "model/net={}": "model arch backbone encoder size model_size model_name net architecture vit model_type",
    "experiment={}": "e exp experiment recipe cfg config config_file config_name cn cfg_file task mode workflow",
}
DATA = {
    "data={}": "dataset datasets dataset_name data_name data_set ds database dataset_type",
    "data.root={}": "d data_dir data_path data_root dataroot datapath datadir dataset_dir dataset_path dataset_root "
    "root root_dir path train_dir data_folder",
    "data.num_workers={}": "j worker workers num_worker num_workers n_workers nworkers dataloader_num_workers "
    "workers_per_gpu num_cpus",
    "data.image_size={}": "img_size imgsz input_size image_size resolution crop_size im_size img_dim res spatial_size",
    "data.audio_seconds={}": "audio_length audio_len clip_length clip_duration audio_duration audio_dur duration "
    "seconds clip_len window",
    "data.index.seconds={}": "window window_seconds window_size window_length segment_seconds segment_length length "
    "chunk_seconds clip_seconds clip_len clip_length clip_duration duration",
    "data.index.annotations={}": "csv csv_file labels_file label_file ann_file annotation annotation_file table",
    "data.train_split={}": "train_set split train train_list",
    "data.val_split={}": "val_set valid_split valid_subset val valid",
    "data.eval_split={}": "test_split test_set eval_set",
    "data.holdout_share={}": "val_fraction validation_split val_ratio val_size",
    "data.class_balanced={}": "balanced weighted_sampler balanced_sampling",
    "data.samples.sources={}": "num_mix n_mix num_sources mix",
    "seed={}": "manual_seed random_seed seed_everything rng_seed random_state",
    "run.name={}": "n name exp_name run_name experiment_name expname tag run_id run_version job_name version",
    "paths.log_dir={}": "o out output output_dir outdir out_dir save_dir savedir save_path work_dir workdir exp_dir "
    "log_dir logdir logs logging_dir default_root_dir checkpoint_dir model_dir tensorboard_logdir results_dir "
    "dirpath",
}
SAME = {  # of one script, before the tables above
    "eval": {
        "ckpt_path={}": "c checkpoint ckpt weights model model_path pretrained load_from resume resume_from "
        "resume_from_checkpoint path checkpoint_path load m restore_file",
        "data.eval_split={}": "split subset gen_subset test_split",
    },
    "predict": {
        "ckpt_path={}": "c checkpoint ckpt weights model model_path pretrained load_from checkpoint_path m load net",
        "video={}": "i v in input inputs file filename path clip video_path video_file input_file source src "
        "vid videos",
        "input={}": "videos folder dir data data_dir list file_list input_dir path",
        "output={}": "o out output_dir outdir out_dir save_dir save_path dest destination results output_path dst",
        "device={}": "gpu cuda accelerator trainer gpus devices",
        "batch_size={}": "b bs batch",
        "masks_per_second={}": "fps frame_rate framerate",
        "hop_seconds={}": "hop stride step hop_length",
        "top_k={}": "k topk n_classes top",
        "query={}": "q example like",
        "index={}": "db database gallery corpus",
        "sources={}": "num_sources n_sources n speakers num_speakers",
        "boxes={}": "box bbox bboxes regions rois",
        "num_workers={}": "j workers num_worker n_workers",
        "time_limit={}": "timeout max_time",
        "task={}": "t mode command cmd action do experiment pipeline",
        "paths.log_dir={}": "log_dir logdir logs",
    },
    "prepare": {
        "command={}": "c cmd action task mode do stage step",
        "workers={}": "j jobs num_workers n_jobs nproc num_proc n_workers threads processes",
        "force={}": "overwrite f redo rerun replace",
        "time_limit={}": "timeout max_time",
        "output={}": "o out output_dir outdir out_dir dest dst save_dir target",
        "pack.short_side={}": "size resize image_size short_edge resolution",
        "pack.quality={}": "quality jpeg_quality q",
        "pack.clips_per_chunk={}": "chunk_size shard_size clips_per_shard",
        "splits={}": "split subset subsets",
        "sets={}": "set datasets",
    },
    "benchmark": {
        "benchmark={}": "b bench name target suite task command model what",
        "benchmark.rounds={}": "repeats repetitions runs iters n repeat",
        "benchmark.steps={}": "num_steps iterations",
        "benchmark.device={}": "gpu cuda trainer accelerator",
        "reference={}": "compare baseline",
        "paths.log_dir={}": "o out output output_dir log_dir",
        "run.name={}": "run_name exp_name",
    },
    "convert": {
        "input={}": "i in checkpoint ckpt src source weights ckpt_path model path pretrained",
        "output={}": "o out dst dest target save_path output_path output_file",
        "export={}": "format to export_format",
        "check={}": "verify video test_input",
    },
    "study": {
        "study={}": "name experiment sweep ablation",
        "study.seeds={}": "seed seeds n_seeds num_seeds repeats trials",
        "study.list=true": "list dry_run dryrun plan show",
        "study.quick=true": "quick fast debug smoke_test demo toy",
        "study.processes={}": "processes jobs n_jobs num_jobs workers num_workers parallel",
        "study.scale={}": "scale",
    },
    "doctor": {"smoke_train={}": "train smoke", "time_limit={}": "timeout"},
}
UNUSED = {  # what has no counterpart: why, in a clause
    "logger=tensorboard, csv, wandb, mlflow or a list of them says where curves and pictures go": "neptune comet "
    "log_model visualizer aim clearml",
    "logger=wandb has logger.wandb.project, entity, offline; logger=mlflow has logger.mlflow.tracking_uri": "project "
    "entity wandb_project wandb_entity wandb_mode tracking_uri mlflow_tracking_uri",
    "every run has its last checkpoints, and segmentation its best": "early_stopping patience earlystopping monitor "
    "load_best_model_at_end metric_for_best_model",
    "the rate is warmed up and then follows a cosine to 0": "scheduler lr_scheduler sched lr_scheduler_type "
    "lr_policy min_lr warmup_lr gamma step_size milestones cosine decay_epochs lr_schedule",
    "Lightning starts the processes": "local_rank rank dist_url master_port master_addr init_method dist_backend port",
    "a run has a folder of its own": "overwrite_output_dir overwrite exist_ok",
    "train.py trains, eval.py evaluates": "do_train train_only",
}
CHOICES = {  # of config groups and keys; theirs -> ours
    "model/net": {
        "tiny": "vit_t vit_tiny ti t vit_ti mini nano",
        "small": "vit_s vit_small s deit_small",
        "base": "vit_b vit_base b vit mae_vit_base vit_b_16 deit_base default",
        "large": "vit_l vit_large l vit_h vit_huge huge h g giant mae_vit_large",
    },
    "trainer": {
        "gpu": "cuda cuda:0 single_gpu 0 1 one_gpu nvidia",
        "ddp": "gpus multi_gpu multigpu distributed dp all fsdp deepspeed multi ddp_spawn",
        "cpu": "mps none",
        "slurm": "cluster submitit srun",
    },
    "logger": {"tensorboard": "tb tensorboardx", "none": "null false no off", "wandb": "w&b weights_and_biases"},
    "scale": {"demo": "small tiny toy test debug", "paper": "full large real published"},
    "debug": {"fast": "true 1 yes default on"},
    "trainer.precision": {
        "16-mixed": "fp16 float16 half amp mixed 16bit fp16-mixed",
        "bf16-mixed": "bfloat16 bf16_mixed",
        "32-true": "fp32 float32 full 32bit tf32 float single",
        "64-true": "fp64 float64 double",
    },
    "trainer.accelerator": {"gpu": "cuda:0 nvidia", "cpu": "none"},
    "model.optimizer": {"adamw": "adam", "lars": "sgd"},
    "device": {"cuda": "gpu cuda:0 cuda:1 0 1 true"},
    "benchmark.device": {"cuda": "gpu cuda:0 0 1 true"},
    "level": {"pooled": "mean avg pool average cls", "tokens": "token none all patches"},
    "task": {
        "separate": "separation sep split source_separation",
        "segment": "segmentation seg localize localise mask masks",
        "classify": "classification cls label recognize",
        "features": "feature embed embeddings embedding extract encode feat",
        "search": "find nearest neighbours neighbors similar retrieve retrieval knn",
    },
    "command": {
        "demo": "generate gen toy make download create",
        "verify": "check validate scan test",
        "pack": "packed convert shard compress webdataset lmdb",
    },
}


@functools.cache
def words(script: str) -> dict[str, list[str]]:
    """Each word of others -> what it may mean for a script, the likeliest first."""
    found: dict[str, list[str]] = {}
    for table in (SAME.get(script, {}), TRAINING, DATA):
        for ours, theirs in table.items():
            for word in theirs.split():
                found.setdefault(word, []).append(ours)
    return found
