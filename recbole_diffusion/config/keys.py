"""The one table of this package's keys: what each means, what it may hold, and whether a result depends on it.

A key for a new model is one line here, and one in its props file, which holds the default. The checks, ``--help_keys``,
``--resume=auto``, the search and the record of a run all read this table; it imports the standard library alone.
"""

from __future__ import annotations

from functools import partial

from recbole_diffusion.config.kinds import Key


def _kind(kind: str):
    return partial(Key, kind=kind)


_integer, _number, _flag, _choice = map(_kind, ("integer", "number", "flag", "choice"))
_integers, _text, _texts, _path, _mapping, _any = map(_kind, ("integers", "text", "texts", "path", "mapping", "any"))
_name, _names, _interval, _shares, _candidates = map(_kind, ("name", "names", "interval", "shares", "candidates"))
_share = partial(_number, low=0, below=1)
_machine_flag, _machine_path = partial(_flag, changes="nothing"), partial(_path, changes="nothing", null=True)

MAX_SEED = 2**32 - 1
_ACTIVATIONS = ("gelu", "relu", "silu", "swish", "tanh")
_SEEN_ITEMS = ("candidates", "learned", "excluded")
_SCHEDULES = ("linear", "cosine", "sqrt", "trunc_linear", "trunc_cosine", "exponential")
_DISTANCES = ("cosine", "cosine_squared", "l2", "l1", "huber")
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")  # RecBole's sparse_adam takes no gradient of any model
_LEVELS = ("debug", "info", "warning", "error", "critical")

# Read by the models that have them in their props, and by no other.
MODEL_KEYS: dict[str, tuple[Key, ...]] = {
    "Model": (
        _integer("hidden_size", "size of the item embeddings and the hidden state (D)", low=1),
        _integer("n_layers", "number of transformer blocks", low=1, high=1000),
        _integer("n_decoder_layers", "number of blocks that restore the noised items (ADRec)", low=1, high=1000),
        _choice("decoder", "how the noised items are restored (ADRec)", choices=("attention", "mlp")),
        _integer("n_heads", "number of attention heads; divides hidden_size", low=1),
        _integer("inner_size", "inner size of the feed-forward network", low=1),
        _choice("hidden_act", "activation of the feed-forward network", choices=_ACTIVATIONS),
        _share("emb_dropout_prob", "dropout on the embeddings"),
        _share("hidden_dropout_prob", "dropout on the output of attention and feed-forward"),
        _share("attn_dropout_prob", "dropout on the attention weights"),
        _share("act_dropout_prob", "dropout after the activation of the feed-forward network"),
        _share("block_dropout_prob", "dropout on the output of a transformer block"),
        _number("layer_norm_eps", "added to the denominator of the layer norm", low=0),
        _choice("initializer", "how weights start", choices=("normal", "xavier", "torch")),
        _number("initializer_range", "standard deviation of the initializer normal", low=0),
        _number("embedding_std", "standard deviation of the first embeddings; null: as initializer", low=0, null=True),
        _flag("norm_first", "normalise before attention and feed-forward (SASRecPlus)"),
        _flag("use_position_embedding", "add a learned position embedding to the history"),
        _flag("position_embedding", "add the learned position embedding (SeqDiffRec)"),
        _flag("step_embedding", "add the embedding of the diffusion step (SeqDiffRec)"),
        _choice("positions_from", "where positions begin to count", choices=("start", "end", "target")),
        _flag("step_projection", "put a network behind the step's sinusoids (SeqDiffRec)"),
        _number("step_scale", "first value of a learned factor of the step embedding; null: none", low=0, null=True),
        _flag("embedding_norm", "layer norm over the sum of the embeddings (SeqDiffRec)"),
        _flag("tie_weights", "score with the item embeddings (SeqDiffRec)"),
        _flag("decoder_residual", "add the encoded history to the decoder's mean (CDDRec)"),
        _flag("cross_attention", "the history attends with the noised target (DiffuRecSys)"),
        _choice("cross_attention_query", "what asks in it, and not what answers", choices=("target", "history")),
        _choice("denoiser", "one linear layer, or two around a GELU", choices=("mlp1", "mlp2")),
        _path("item_embedding_file", "checkpoint of any model whose item embeddings these start from", null=True),
        _text("pretrain", "a model to train first, whose item embeddings these start from", null=True),
        _mapping("pretrain_config", "what differs for that model: {key: value}"),
        _integer("freeze_embedding_epochs", "first epochs that leave the item embeddings as they are", low=0),
        _choice("freeze_mode", "no update at all, or weight decay and momentum alone", choices=("none", "decay")),
        _choice("seen_items", "what the model's softmax does with the history", choices=_SEEN_ITEMS),
        _integer("seen_buckets", "ranges of age with a learned value each, for the seen_items learned", low=1),
        _flag("ragged", "compute real tokens alone, not the padding"),
        _flag("fused_denoiser", "compute once a batch what no step changes (DreamRec, PreferDiff)"),
        _integer("logits_chunk", "most item scores held at once by loss and top-k", low=1),
    ),
    "Diffusion": (
        _integer("num_steps", "number of diffusion steps (T)", low=1, high=10**6),
        _choice("noise_schedule", "how the betas grow", choices=_SCHEDULES),
        _number("beta_start", "first beta of the schedule linear", above=0, below=1),
        _number("beta_end", "last beta of the schedule linear", above=0, below=1),
        _number("beta_min", "least noise rate of the schedule exponential", above=0),
        _number("beta_max", "greatest noise rate of the schedule exponential", above=0),
        _choice("step_sampler", "how training draws its steps", choices=("uniform", "loss_aware")),
        _number("lambda_uncertainty", "lambda, constant or N(delta, delta): scale of what the history is given", low=0),
        _flag("noise_x_start", "noise the target once more before the forward process"),
        _number("offset_noise", "delta_c: the noise of training has the mean 0.1 delta_c", low=0),
        _flag("independent_steps", "a diffusion step for every position by itself (ADRec)"),
        _integer("noised_items", "the last items of the sequence that are noised", low=1, choices=("all",)),
        _share("condition_dropout_prob", "p_u: share of histories replaced by the null condition in training"),
        _flag("sample_target", "corrupt the targets (CDDRec)"),
        _flag("sample_preference", "sample around the decoder's mean (CDDRec)"),
    ),
    "Loss": (
        _choice("item_loss", "cross-entropy over all items, or n_sampled_items of them", choices=("full", "sampled")),
        _integer("n_sampled_items", "items drawn for a batch by the item_loss sampled", low=1),
        _number("loss_scale", "weight of the squared error beside the cross-entropy (ADRec)", low=0),
        _choice("training_rows", "rows for all targets, or a user's last (SeqDiffRec)", choices=("prefixes", "users")),
        _choice("mse_reduction", "reduction of the squared error over D (SeqDiffRec)", choices=("mean", "sum")),
        _flag("target_gradient", "let the loss move the target's embedding too (DreamRec, PreferDiff)"),
        _choice("distance", "distance of what is restored to what was noised (PreferDiff)", choices=_DISTANCES),
        _choice("negatives", "mean of the batch's other targets, or an item drawn", choices=("centroid", "sampled")),
        _number("generation_weight", "lambda: weight of the generation beside the ranking", low=0, high=1),
        _choice("ranking", "sigmoid of each sample, or of the batch's means", choices=("sample", "batch")),
        _number("ranking_scale", "gamma: steepness of the ranking", low=0),
        _number("cross_entropy_weight", "weight of a cross-entropy beside the loss (PreferDiff)", low=0),
        _choice("divergence", "inner products, or the divergence as printed (CDDRec)", choices=("dot", "kl")),
        _number("lambda_contrastive", "weight of the contrastive losses", low=0),
        _number("temperature", "tau of the contrastive losses", low=1e-3),
        _choice("augmentation", "the augmented view of a history", choices=("crop", "mask", "reorder")),
        _share("crop_ratio", "share of a history that the augmentation crop keeps"),
        _share("mask_ratio", "share of a history that the augmentation mask hides"),
        _share("reorder_ratio", "share of a history that the augmentation reorder shuffles"),
        _number("lambda_augmented", "weight of the divergence on the augmented view (CDDRec)", low=0),
        _choice("similarity", "what predictions are compared by (CDDRec)", choices=("dot", "cosine", "mixed")),
    ),
    "Inference": (
        _choice("inference", "every step of the chain, or straight to its end", choices=("reverse", "one_step")),
        _choice("sampler", "how a step of the chain is taken", choices=("ddpm", "ddim")),
        _choice("reverse_variance", "variance of a step of the sampler ddpm", choices=("posterior", "beta")),
        _integer("sampling_steps", "number of evenly spaced steps of the chain; null: all", low=1, null=True),
        _integer("valid_sampling_steps", "the same in validation alone; null: as sampling_steps", low=1, null=True),
        _number("ddim_eta", "share of the ddpm's noise that ddim keeps", low=0, high=1),
        _integers("inference_seeds", "seeds over which the scores are averaged", low=0, high=MAX_SEED, count=True),
        _number("guidance_scale", "w: strength of the guidance by the history", low=0),
    ),
}  # fmt: skip

# Read whatever the model.
RUN_KEYS: dict[str, tuple[Key, ...]] = {
    "Training": (
        _integer("epochs", "most epochs; early stopping ends sooner", low=1, changes="length"),
        _integer("stopping_step", "validations without a better valid_metric before training stops", low=1),
        _integer("train_batch_size", "rows of a training batch", low=1),
        _choice("learner", "optimizer", choices=_LEARNERS, any_case=True),
        _number("learning_rate", "learning rate", above=0, high=10),
        _number("weight_decay", "weight decay", low=0),
        _mapping("lr_scheduler", "how the learning rate falls", null=True, fields=(
            _choice("name", "its form", choices=("constant", "step", "cosine")),
            _integer("warmup_epochs", "epochs of linear growth at the start", low=0),
            _integer("start_epoch", "first epoch (from 0) with the lower rate, for step", low=0),
            _integer("step_size", "epochs between two reductions, for step", low=1),
            _number("gamma", "factor of a reduction, for step", low=0),
            _number("min_factor", "share of the rate at the end, for cosine", low=0),
        )),
        _mapping("clip_grad_norm", "greatest norm of the gradient, such as {max_norm: 1.0}", null=True, fields=(
            _number("max_norm", "the norm", above=0),
            _number("norm_type", "its order", above=0),
            _flag("error_if_nonfinite", "raise where it is not finite"),
            _flag("foreach", "compute all tensors at once", null=True),
        )),
        _mapping("train_neg_sample_args", "negatives that RecBole draws for its models", null=True, choices=("None",)),
        _integer("limit_train_batches", "batches an epoch, for a smoke run; null: all", low=1, null=True),
        _flag("enable_amp", "mixed precision by autocast, in training and inference"),
        _choice("amp_dtype", "its type; fp16 with enable_scaler", choices=("bf16", "fp16"), null=True),
        _flag("enable_scaler", "scale the loss, for fp16 on a GPU"),
        _integer("seed", "random seed of training", low=0, high=MAX_SEED),
        _flag("reproducibility", "deterministic algorithms, so that the same run twice gives the same bits"),
        _flag("shuffle", "shuffle the training rows before each epoch"),
        _integer("world_size", "total number of processes; -1: nproc", low=-1),
    ),
    "Evaluation": (
        _flag("paper_protocol", "use props/protocol.yaml for RecBole's models too, as every command here does"),
        _flag("mask_history", "whether early stopping follows the metrics with the history masked"),
        _mapping("eval_args", "split, order and candidates of the evaluation", fields=(
            _mapping("split", "such as {LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}", null=True, fields=(
                _choice("LS", "leave one out", choices=("valid_and_test", "valid_only", "test_only")),
                _shares("RS", "share of each part"),
                _shares("TS", "share of each part, by time"),
            )),
            _choice("group_by", "split each user's rows, or all", choices=("user", "none", "None"), null=True),
            _choice("order", "random or by time", choices=("RO", "TO")),
            _candidates("mode", "what the target is ranked among", null=True),
        )),
        _flag("repeatable", "items of the history stay candidates"),
        _integer("eval_batch_size", "rows of an evaluation batch", low=1),
        _integer("eval_step", "epochs between two validations; 0: none", low=0),
        _texts("metrics", "metrics to report"),
        _integers("topk", "lengths k of the ranked lists", low=1),
        _text("valid_metric", "the metric that early stopping follows, such as NDCG@10"),
        _integer("metric_decimal_place", "digits of a metric", low=0, high=15),
    ),
    "Data": (
        _text("model", "name of the model"),
        _text("dataset", "name of the dataset"),
        _mapping("per_model", "what differs for one model: {model: {key: value}}", null=True),
        _integer("MAX_ITEM_LIST_LENGTH", "longest history", low=1),
        _name("USER_ID_FIELD", "column of the users"),
        _name("ITEM_ID_FIELD", "column of the items"),
        _name("TIME_FIELD", "column of the times"),
        _name("RATING_FIELD", "column of the ratings", null=True),
        _name("LABEL_FIELD", "column of the labels, made where there is none", null=True),
        _name("NEG_PREFIX", "what the names of the columns of negatives begin with"),
        _name("LIST_SUFFIX", "what the names of the columns of histories end with"),
        _name("ITEM_LIST_LENGTH_FIELD", "column of the histories' lengths"),
        _interval("user_inter_num_interval", "how many interactions a user must have", null=True),
        _interval("item_inter_num_interval", "how many interactions an item must have", null=True),
        _flag("filter_inter_by_user_or_item", "count interactions again when users or items are gone"),
        _choice("rm_dup_inter", "which interaction of a user and an item stays", choices=("first", "last"), null=True),
        _mapping("val_interval", "interactions to keep, {column: interval}", null=True),
        _mapping("load_col", "columns to read of each file, {inter: [column, ..]}", null=True),
        _mapping("unload_col", "columns not to read of each file", null=True),
        _mapping("unused_col", "columns to read and to drop again", null=True),
        _texts("additional_feat_suffix", "further files of the dataset", null=True),
        _names("benchmark_filename", "files that are split already: train, valid, test", null=True),
        _names("alias_of_user_id", "columns of users beside USER_ID_FIELD", null=True),
        _names("alias_of_item_id", "columns of items beside ITEM_ID_FIELD", null=True),
        _names("numerical_features", "columns of numbers to embed"),
        _names("normalize_field", "columns of numbers to normalise", null=True),
        _flag("normalize_all", "normalise all columns of numbers", null=True),
        _mapping("discretization", "columns of numbers to sort into buckets", null=True),
        _mapping("threshold", "labels made of another column, {rating: 4}", null=True),
        _mapping("preload_weight", "columns of vectors, {column of ids: column of vectors}", null=True),
        _mapping("seq_len", "longest sequences of columns, {column: length}", null=True),
        _text("field_separator", "what separates the columns of a file"),
        _text("seq_separator", "what separates the values of a sequence in a column"),
        _text("encoding", "of the files, such as latin-1", null=True),
        _text("transform", "change of each batch, for RecBole's models that read it", null=True),
    ),
    "Machine": (
        _machine_path("resume", "a checkpoint to go on from; auto: the newest of the same run"),
        _path("data_path", "folder that holds the datasets' folders", changes="nothing"),
        _path("checkpoint_dir", "folder of the checkpoints", changes="nothing"),
        _machine_flag("trust_pickles", "read what RecBole saved by save_dataset: it can run code"),
        _machine_flag("save_dataset", "save the filtered dataset"),
        _machine_path("dataset_save_path", "the saved dataset to read"),
        _machine_flag("save_dataloaders", "save the data loaders"),
        _machine_path("dataloaders_save_path", "the saved data loaders to read"),
        _any("gpu_id", "the GPUs to use, such as 0 or 0,1", changes="nothing"),
        _machine_flag("use_gpu", "as RecBole's"),
        _integer("worker", "processes that load data", low=0, high=64, changes="nothing"),
        _choice("state", "least level of the log", choices=_LEVELS, any_case=True, null=True, changes="nothing"),
        _machine_flag("show_progress", "a progress bar, where the screen is a terminal"),
        _machine_flag("verbose", "show the whole log on the screen, configuration and model with it"),
        _machine_flag("log_wandb", "log to Weights & Biases"),
        _text("wandb_project", "its project", changes="nothing"),
        _any("config_files", "YAML files with parameters", changes="nothing"),
        _machine_flag("allow_unknown_keys", "let keys pass that nothing reads"),
        _integer("nproc", "processes on this machine, one a GPU", low=1, changes="nothing"),
        _text("ip", "address of the master node", changes="nothing"),
        _any("port", "its port", changes="nothing"),
        _integer("group_offset", "global rank of this machine's first process", low=0, changes="nothing"),
    ),
}  # fmt: skip

# What RecBole sets itself, or reads although none of its default files names it (tests/config compares its source).
RECBOLE_MACHINE_KEYS = {"device", "local_rank", "offset", "single_spec"}
RECBOLE_KEYS = {
    *RECBOLE_MACHINE_KEYS,
    *("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args", "config_file"),
    *("encoding", "token_num_threshold", "neg_sampling", "training_neg_sample_num", "xgb_early_stopping_rounds"),
    *("NEG_ITEMS", "POS_ITEMS", "MASK_INDEX", "MASK_ITEM_SEQ", "CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN"),
    *("INVERSE_ITEM_SEQ", "REORDER_ITEM_SEQ", "cin", "contrast", "eta", "feature_num", "has_residual", "norm", "sim"),
    *("tail_ratio", "use_filter"),
}

# Names by which other programs know a key; a misspelt one gets these first.
ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("dim", "emb_size"),
    "n_layers": ("num_layers", "num_blocks"),
    "n_heads": ("num_heads",),
    "hidden_dropout_prob": ("dropout",),
    "num_steps": ("timesteps", "n_steps", "diffusion_steps"),
    "guidance_scale": ("cfg_scale",),
    "reorder_ratio": ("augmentation_ratio",),
    "epochs": ("num_epochs", "n_epochs", "max_epochs"),
    "stopping_step": ("patience",),
    "train_batch_size": ("batch_size",),
    "learner": ("optimizer", "optim"),
    "learning_rate": ("lr",),
    "weight_decay": ("wd", "l2", "l2_reg"),
    "topk": ("k", "top_k"),
    "MAX_ITEM_LIST_LENGTH": ("max_len", "maxlen", "max_seq_length", "max_seq_len"),
    "USER_ID_FIELD": ("user_col",),
    "ITEM_ID_FIELD": ("item_col",),
    "TIME_FIELD": ("time_col",),
    "worker": ("num_workers",),
    "state": ("log_level",),
}

GROUPS = {**MODEL_KEYS, **RUN_KEYS}
KEYS: dict[str, Key] = {key.name: key for group in GROUPS.values() for key in group}
# Keys that are read whatever the model.
RUN = {key.name for group in RUN_KEYS.values() for key in group}
# How the item embeddings start, and when they move.
START_KEYS = {"item_embedding_file", "pretrain", "pretrain_config", "freeze_embedding_epochs", "freeze_mode"}
# What depends on the machine or on how a run is watched, and on no result.
MACHINE_KEYS = {key.name for key in KEYS.values() if key.changes == "nothing"} | RECBOLE_MACHINE_KEYS
# What may differ between a run and its continuation.
CONTINUATION_KEYS = MACHINE_KEYS | {key.name for key in KEYS.values() if key.changes == "length"}


def describe_keys() -> str:
    """The table as text, a line a key: name, what it may hold, meaning."""
    lines = []
    for group, keys in GROUPS.items():
        lines += [*([""] if lines else []), f"{group}:"]
        for key in keys:
            note = {"nothing": " [no result depends on it]", "length": " [a longer run goes on from a shorter one]"}
            lines.append(f"  {key.name}: {key.allowed}\n      {key.meaning}{note.get(key.changes, '')}")
            lines += [f"      .{field.name}: {field.allowed}; {field.meaning}" for field in key.fields]
    return "\n".join(lines)
