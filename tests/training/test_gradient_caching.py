"""Gradient caching against one step that keeps the whole graph: loss, every gradient, memory, processes."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.model import matching, objective_base
from modeling_svitt_ego.model.contrastive import Contrastive
from modeling_svitt_ego.model.losses import ego_nce, sample_hard_negatives, shared_action
from modeling_svitt_ego.model.masked_language import corrupt
from modeling_svitt_ego.training.gradient_caching import CachedStep, MicroBatches, MicroBatchSampler, tower_inputs
from modeling_svitt_ego.training.objectives import freeze_unreached_parameters
from tests.helpers.tiny_model import STILL, assert_same_gradients, gradients, tiny_batch, tiny_model

LIVELY = {"vision": {"drop_path_rate": 0.5, "num_random_blocks": 3, "keep_strategy": "random"}}
# Half precision ranks some tokens otherwise than float64, which is not what is compared.
UNPRUNED = STILL | {"vision": STILL["vision"] | {"keep_rate": 1.0}}
CLASSES = [SViTTEgoModel, SViTTEgoForVideoTextRetrieval, SViTTEgoForPreTraining]


def cut(batch, size):
    rows = len(batch["input_ids"])
    return [{key: value[first : first + size] for key, value in batch.items()} for first in range(0, rows, size)]


def cached_step(model, micro_batches, seed=0, **settings):
    torch.manual_seed(seed)
    core = settings.pop("core", model)
    step = CachedStep(model, core, MicroBatches(iter(micro_batches), len(micro_batches)), **settings)
    loss = step.start()
    for number in range(len(micro_batches)):
        loss = loss + step.micro_batch(number)
    return loss, step


def whole_graph_step(model, micro_batches, seed=0):
    """The same draws in the same order, but one graph over everything and one backward."""
    torch.manual_seed(seed)
    config, sizes = model.config, [len(part["input_ids"]) for part in micro_batches]
    encoded = [model.encode(*tower_inputs(part)) for part in micro_batches]
    videos, texts = (
        F.normalize(torch.cat([out[name] for out in encoded]), dim=-1) for name in ("video_embeds", "text_embeds")
    )
    tags = [torch.cat([part[name] for part in micro_batches]) for name in ("verb_tags", "noun_tags")]
    positives = shared_action(*tags)
    logits = videos @ texts.T / model.clamp_temperature()
    loss = config.contrastive_weight * ego_nce(logits, logits.T, positives)
    if hasattr(model, "vtm_head"):
        text_states = [row for out in encoded for row in out.text_model_output.last_hidden_state]
        video_states = [row for out in encoded for row in out.vision_model_output.last_hidden_state]
        masks = [row for part in micro_batches for row in part["attention_mask"]]
        video_ids = sample_hard_negatives(logits.T, positives).tolist()
        text_ids = sample_hard_negatives(logits, positives).tolist()
        sums, count = [], 0

        def match(pairs, label):
            out = model.match(
                *(
                    torch.stack([of[i] for i in ids])
                    for of, ids in zip(
                        (text_states, masks, video_states),
                        ([t for t, _ in pairs], [t for t, _ in pairs], [v for _, v in pairs]),
                    )
                )
            )
            sums.append(F.cross_entropy(out, torch.full((len(pairs),), label), reduction="sum"))
            return len(pairs)

        rows = torch.arange(len(videos)).split(sizes)
        for part in rows:
            negatives = [(t, video_ids[t]) for t in part.tolist() if video_ids[t] >= 0]
            negatives += [(text_ids[v], v) for v in part.tolist() if text_ids[v] >= 0]
            count += match(negatives, 0)
        if hasattr(model, "mlm_head"):
            corrupted = [corrupt(config, part["input_ids"], part["attention_mask"]) for part in micro_batches]
        mlm, masked = [], 0
        for part, out, number in zip(rows, encoded, range(len(rows))):
            count += match([(i, i) for i in part.tolist()], 1)
            if hasattr(model, "mlm_head"):
                ids, labels = corrupted[number]
                video = out.vision_model_output.last_hidden_state
                scores = model.predict_masked(ids, micro_batches[number]["attention_mask"], video)
                mlm.append(F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum"))
                masked += (labels != -100).sum()
        loss = loss + config.vtm_weight * sum(sums) / count
        if mlm:
            loss = loss + config.mlm_weight * sum(mlm) / masked
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("rows_at_once", [1024, 3])
def test_loss_and_every_gradient_equal_one_graph_with_everything_random(cls, rows_at_once, monkeypatch):
    """Catches a pattern, dropout or drop path not replayed, a gradient lost between passes, a mean over a part."""
    monkeypatch.setattr(objective_base, "ROWS_AT_ONCE", rows_at_once)
    if rows_at_once == 3 and cls is not SViTTEgoModel:  # other draws of negatives than the reference's
        draw_nearest(monkeypatch)
        monkeypatch.setitem(globals(), "sample_hard_negatives", nearest)
    model = tiny_model(cls, vtm_weight=0.7, mlm_weight=0.3, contrastive_weight=1.5, **LIVELY).double().train()
    micro_batches = cut(double(tiny_batch(7)), 3)  # 3, 3 and 1 rows
    expected_loss = whole_graph_step(model, micro_batches)
    expected = gradients(model)
    loss, step = cached_step(model, micro_batches)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-10)
    other, _ = cached_step(model, micro_batches, seed=1)
    assert not torch.allclose(other, loss), "nothing random was active"
    named = {"contrastive": 1.5, "vtm": 0.7, "mlm": 0.3}
    weighted = sum(weight * step.loss_info[name] for name, weight in named.items() if name in step.loss_info)
    torch.testing.assert_close(weighted, loss)


def nearest(logits, positives):
    """No draw: the most similar negative."""
    ids = logits.masked_fill(positives, float("-inf")).argmax(-1)
    return torch.where(positives.all(-1), -1, ids)


def double(batch):
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("loss", ["ego_nce", "info_nce"])
@pytest.mark.parametrize("size", [7, 2])
def test_it_equals_the_models_own_step_on_the_whole_batch(cls, loss, size, monkeypatch):
    """Catches objectives that differ from the model's forward: weights, means, positives, negatives' rows."""
    draw_nearest(monkeypatch)
    model = tiny_model(cls, contrastive_loss=loss, vtm_weight=0.7, **STILL).double().train()
    batch = double(tiny_batch(7))
    if cls is SViTTEgoForPreTraining:
        torch.manual_seed(3)
        batch["mlm_input_ids"], batch["mlm_labels"] = corrupt(
            model.config, batch["input_ids"], batch["attention_mask"]
        )
    whole = model(**batch, return_loss=True)
    whole.loss.backward()
    expected = gradients(model)
    loss, step = cached_step(model, cut(batch, size))
    torch.testing.assert_close(loss, whole.loss.detach(), rtol=1e-12, atol=1e-12)
    assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-10)
    assert step.loss_info.keys() == whole.loss_info.keys()
    for name, value in whole.loss_info.items():
        torch.testing.assert_close(step.loss_info[name].double(), value.double())


@pytest.mark.parametrize("weights", [{"contrastive_weight": 0}, {"vtm_weight": 0}, {"mlm_weight": 0}], ids=str)
def test_an_objective_of_weight_zero_is_not_run(weights, monkeypatch):
    """Catches the similarity matrix or a fusion pass computed for nothing."""
    model = tiny_model(**weights, **STILL).train()
    owner, name = {
        "contrastive_weight": (Contrastive, "of_rows"),
        "vtm_weight": (model, "match"),
        "mlm_weight": (model, "predict_masked"),
    }[[*weights][0]]
    monkeypatch.setattr(owner, name, lambda *_: pytest.fail(f"{name} was called"))
    for loss_info in (
        cached_step(model, cut(tiny_batch(4), 2))[1].loss_info,
        model(**tiny_batch(4), return_loss=True).loss_info,
    ):
        assert [*weights][0].removesuffix("_weight") not in loss_info and loss_info


def test_texts_of_other_lengths_meet_as_negatives():
    """Catches micro-batches padded to their own longest text, whose states cannot be stacked."""
    model = tiny_model(SViTTEgoForVideoTextRetrieval, **STILL).double().train()
    batch = double(tiny_batch(4))
    parts = cut(batch, 2)
    for key in ("input_ids", "attention_mask"):
        parts[1][key] = parts[1][key][:, :6]  # its texts have 6 and 5 tokens
    loss, _ = cached_step(model, parts)
    expected = gradients(model)
    again, _ = cached_step(model, cut(batch, 2))
    torch.testing.assert_close(loss, again)
    assert_same_gradients(expected, gradients(model), rtol=1e-8, atol=1e-10)


def peak_of_saved_tensors(run) -> int:
    """Most bytes that graphs held at one time."""
    live = peak = 0

    class Held:
        def __init__(self, tensor):
            nonlocal live, peak
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            live += self.bytes
            peak = max(peak, live)

        def __del__(self):
            nonlocal live
            live -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        run()
    return peak


@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForPreTraining], ids=lambda cls: cls.__name__)
def test_the_graphs_memory_does_not_grow_with_the_contrastive_batch(cls):
    """Catches a graph that outlives its micro-batch: without caching it grows by 4 from 4 to 16 clips."""
    model = tiny_model(cls, **STILL).train()
    cached, plain = [], []
    for rows in (4, 8, 16):
        batch = tiny_batch(rows)
        cached.append(peak_of_saved_tensors(lambda batch=batch: cached_step(model, cut(batch, 2))))
        plain.append(peak_of_saved_tensors(lambda batch=batch: model(**batch, return_loss=True).loss.backward()))
        model.zero_grad()
    assert cached[2] <= 1.02 * cached[0], cached
    assert plain[2] > 3 * plain[0] and cached[2] < 0.3 * plain[2], (cached, plain)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_gradient_checkpointing_inside_changes_nothing(reentrant):
    """Catches a recomputation that starts from another random state than the replayed forward."""
    model = tiny_model(**LIVELY).double().train()
    parts = cut(double(tiny_batch(7)), 3)
    loss, _ = cached_step(model, parts)
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, _ = cached_step(model, parts)
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    assert_same_gradients(expected, gradients(model), rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_as_near_to_float64_as_the_plain_step():
    """Catches gradients rounded between the passes: the error may be at most twice the plain bf16 step's."""
    batch = tiny_batch(6)
    exact = tiny_model(SViTTEgoModel, **UNPRUNED).double().train()
    exact(**double(batch), return_loss=True).loss.backward()
    exact = gradients(exact)
    model = tiny_model(SViTTEgoModel, **UNPRUNED).train()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(**batch, return_loss=True).loss
    plain.backward()
    plain = gradients(model)

    def in_autocast(**kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return model(**kwargs)

    cached_step(in_autocast, cut(batch, 2), core=model)
    cached = gradients(model)
    errors = [sum(((found[n].double() - exact[n]) ** 2).sum() for n in exact) ** 0.5 for found in (plain, cached)]
    size = sum((g**2).sum() for g in exact.values()) ** 0.5
    assert errors[1] <= 2 * errors[0] and errors[0] < 0.1 * size, (errors, size)


def test_a_scaled_backward_gives_scaled_gradients():
    """Catches the negatives' gradient scaled twice under a GradScaler."""
    model = tiny_model(**STILL).double().train()
    parts = cut(double(tiny_batch(6)), 2)
    cached_step(model, parts)
    expected = {name: 1024 * gradient for name, gradient in gradients(model).items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    cached_step(model, parts, backward=lambda loss: scaler.scale(loss).backward(), loss_scale=scaler.get_scale)
    assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cls", [SViTTEgoModel, SViTTEgoForVideoTextRetrieval], ids=lambda cls: cls.__name__)
def test_fp16_with_a_grad_scaler(cls, monkeypatch):
    """Catches an overflow that reaches the weights or the optimizer, and small gradients lost before the unscaling."""
    draw_nearest(monkeypatch)
    batch = tiny_batch(6)

    def fresh():
        model = tiny_model(cls, **STILL).train()
        freeze_unreached_parameters(model)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    exact, _ = fresh()
    exact.double()(**double(batch), return_loss=True).loss.backward()
    exact = gradients(exact)

    def unscaled(init_scale, cached):
        """Gradients after `unscale_`, and the optimizer, the scaler and the model after the step."""
        model, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1)

        def in_autocast(**kwargs):
            with torch.autocast("cpu", torch.float16):
                return model(**kwargs)

        def backward(loss):
            scaler.scale(loss).backward()

        if cached:
            settings = {"core": model, "backward": backward, "loss_scale": scaler.get_scale}
            cached_step(in_autocast, cut(batch, 2), **settings)
        else:
            backward(in_autocast(**batch, return_loss=True).loss)
        scaler.unscale_(optimizer)
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        scaler.step(optimizer)
        scaler.update()
        return found, optimizer, scaler, model

    plain, *_ = unscaled(256.0, cached=False)
    cached, optimizer, scaler, model = unscaled(256.0, cached=True)
    errors = [sum(((found[n].double() - exact[n]) ** 2).sum() for n in exact) ** 0.5 for found in (plain, cached)]
    size = sum((g**2).sum() for g in exact.values()) ** 0.5
    assert plain.keys() == cached.keys() == exact.keys()
    assert errors[1] <= 2 * errors[0] and errors[0] < 0.05 * size, (errors, size)
    assert scaler.get_scale() == 512 and {int(s["step"]) for s in optimizer.state.values()} == {1}

    found, optimizer, scaler, model = unscaled(2.0**60, cached=True)
    assert not all(gradient.isfinite().all() for gradient in found.values())
    assert scaler.get_scale() == 2.0**59 and not optimizer.state, "skipped, and the scale halved"
    start, _ = fresh()
    for name, value in start.state_dict().items():
        if name != "temperature":
            assert torch.equal(model.state_dict()[name], value), name


def test_lora_trains_through_it():
    """Catches passes that go past PEFT's wrapper, and frozen weights that break a backward."""
    from peft import LoraConfig, get_peft_model  # late: the processes below import this file

    config = LoraConfig(r=2, target_modules=r".*\.(q_proj|v_proj)", init_lora_weights=False)
    for task in ("FEATURE_EXTRACTION", None):
        config.task_type = task
        torch.manual_seed(5)
        model = get_peft_model(tiny_model(SViTTEgoModel, **STILL), config).double().train()
        batch = double(tiny_batch(5))
        model(**batch, return_loss=True).loss.backward()
        expected = gradients(model)
        assert expected and all("lora_" in name for name in expected)
        cached_step(model, cut(batch, 2), core=model.get_base_model())
        assert_same_gradients(expected, gradients(model), rtol=1e-9, atol=1e-10)


def test_micro_batches_are_read_when_asked_for():
    """Catches a whole contrastive batch decoded before the first clip is embedded."""
    read = []
    batches = MicroBatches((read.append(i) or i for i in range(9)), 3, keep=lambda x: 10 * x)
    assert len(batches) == 3 and read == []
    assert batches[0] == 0 and read == [0]
    assert list(batches) == [0, 10, 20] and read == [0, 1, 2]


def test_the_sampler_cuts_every_batch_by_itself():
    """Catches a micro-batch that runs over into the next contrastive batch."""

    class Batches:
        batch_size = 5

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])

    sampler = MicroBatchSampler(Batches(), 2)
    assert list(sampler) == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]] and len(sampler) == 6


def two_processes_step(rank, folder):
    """A process of two: a cached step under DDP on its half of the rows, in micro-batches of 2, 2 and 1."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = tiny_model(SViTTEgoForPreTraining, vtm_weight=0, mlm_weight=0, **STILL).train()
    freeze_unreached_parameters(model)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    reductions = []
    ddp.register_comm_hook(None, counted_all_reduce(reductions))
    parts = cut({key: value[rank * 5 : rank * 5 + 5] for key, value in tiny_batch(10).items()}, 2)
    torch.manual_seed(0)
    step = CachedStep(ddp, model, MicroBatches(iter(parts), 3), no_sync=ddp.no_sync, gather=True)
    with ddp.no_sync():
        loss = step.start()
    for number in range(3):
        with ddp.no_sync() if number < 2 else contextlib.nullcontext():
            loss = loss + step.micro_batch(number)
    torch.save((loss, gradients(model), reductions), f"{folder}/{rank}.pt")
    sharded = sharded_step(parts)
    if rank == 0:
        torch.save(sharded, f"{folder}/sharded.pt")
    draw_nearest(pytest.MonkeyPatch())
    refuse_the_whole_matrix(pytest.MonkeyPatch())
    for name, run in (("plain", plain_objectives), ("cached", cached_objectives)):
        torch.save(run(rank), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def sharded_step(parts):
    """The same with parameters and gradients sharded (FSDP 2): every gradient, whole again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_model(SViTTEgoForPreTraining, vtm_weight=0, mlm_weight=0, **STILL).train()
    freeze_unreached_parameters(model)
    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if type(module).__name__ in ("VisionLayer", "TextLayer", "FusionLayer"):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    step = CachedStep(model, model, MicroBatches(iter(parts), 3), gather=True)
    step.start()
    for number in range(3):
        model.set_requires_gradient_sync(number == 2)
        step.micro_batch(number)
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def draw_nearest(patch):
    patch.setattr(matching, "sample_hard_negatives", lambda x, y, *_: nearest(x, y))


def all_objectives_batch():
    """Ten rows, masked beforehand; row 3 shares its action with everyone, and the first half's texts are longer."""
    batch = double(tiny_batch(10))
    batch["verb_tags"][3] = batch["noun_tags"][3] = 1
    batch["attention_mask"][5:, 5:] = 0
    batch["input_ids"] = batch["input_ids"] * batch["attention_mask"]
    torch.manual_seed(3)
    batch["mlm_input_ids"], batch["mlm_labels"] = corrupt(
        all_objectives_model().config, batch["input_ids"], batch["attention_mask"]
    )
    return batch


def all_objectives_model():
    return tiny_model(SViTTEgoForPreTraining, vtm_weight=0.7, mlm_weight=0.3, **STILL).double().train()


def refuse_the_whole_matrix(patch):
    """The whole similarity matrix, 10 by 10, is on no process."""

    def checked(rows, columns, compute=objective_base.product):
        assert len(rows) == 5 and len(columns) == 10, (rows.shape, columns.shape)
        return compute(rows, columns)

    patch.setattr(objective_base, "product", checked)


def of_process(rank):
    batch = {key: value[rank * 5 : rank * 5 + 5] for key, value in all_objectives_batch().items()}
    if rank == 1:
        for key in ("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"):
            batch[key] = batch[key][:, :5]
    return batch


def plain_objectives(rank):
    model = all_objectives_model()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    outputs = ddp(**of_process(rank), return_loss=True, gather=True)
    outputs.loss.backward()
    return outputs.loss.detach(), gradients(model), outputs.loss_info


def cached_objectives(rank):
    model = all_objectives_model()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    step = CachedStep(ddp, model, MicroBatches(iter(cut(of_process(rank), 2)), 3), no_sync=ddp.no_sync, gather=True)
    with ddp.no_sync():
        loss = step.start()
    for number in range(3):
        with ddp.no_sync() if number < 2 else contextlib.nullcontext():
            loss = loss + step.micro_batch(number)
    return loss, gradients(model), step.loss_info


def counted_all_reduce(reductions):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    def hook(state, bucket):
        reductions.append(bucket.buffer().numel())
        return allreduce_hook(torch.distributed.group.WORLD, bucket)

    return hook


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with what two processes found."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(two_processes_step, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("step", ["plain", "cached"])
def test_two_processes_draw_hard_negatives_from_all_rows_as_one_does(step, two_processes, monkeypatch):
    """Catches negatives of one's own rows only, their gradient kept by the wrong process, a mean per process."""
    model = all_objectives_model()
    drawn = []
    monkeypatch.setattr(matching, "sample_hard_negatives", lambda x, y, *_: drawn.append(nearest(x, y)) or drawn[-1])
    whole = model(**all_objectives_batch(), return_loss=True)
    whole.loss.backward()
    expected = gradients(model)
    halves = torch.arange(10) // 5
    for ids in drawn:
        assert ids[3] == -1 and {0, 1} <= set((ids // 5 - halves)[ids >= 0].abs().tolist()), "from one half only"
    losses, found, infos = zip(*(torch.load(two_processes / f"{step}-{rank}.pt") for rank in (0, 1)))
    torch.testing.assert_close(sum(losses) / 2, whole.loss.detach(), rtol=1e-12, atol=1e-12)
    for name, value in whole.loss_info.items():
        torch.testing.assert_close((infos[0][name] + infos[1][name]).double() / 2, value.double(), msg=name)
    assert_same_gradients(found[0], found[1], rtol=0, atol=0)
    assert_same_gradients(expected, found[0], rtol=1e-9, atol=1e-10)


def test_two_processes_with_uneven_micro_batches_equal_one(two_processes):
    """Catches gradients summed instead of averaged, a reduction per micro-batch, and rows compared with half only."""
    (loss_0, found, reductions), (loss_1, other, _) = (torch.load(two_processes / f"{rank}.pt") for rank in (0, 1))
    model = tiny_model(SViTTEgoForPreTraining, vtm_weight=0, mlm_weight=0, **STILL).train()
    freeze_unreached_parameters(model)
    whole = model(**tiny_batch(10), return_loss=True).loss
    whole.backward()
    torch.testing.assert_close((loss_0 + loss_1) / 2, whole.detach(), rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, other, rtol=0, atol=0)
    expected = gradients(model)
    assert_same_gradients(expected, found, rtol=1e-4, atol=1e-5)
    assert_same_gradients(expected, torch.load(two_processes / "sharded.pt"), rtol=1e-4, atol=1e-5)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(reductions) == trainable, "one exchange of every gradient per step"
